"""Writes files for other tools and reads theirs: memory_events.json, CSV, Perfetto's trace, torch's memory snapshot."""
