"""Recordings of others, brought into this project's tables: one file each."""
