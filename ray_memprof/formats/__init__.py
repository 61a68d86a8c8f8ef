"""Files of other tools, out and in: memory_events.json, CSV, Perfetto's trace, torch's memory snapshot."""
