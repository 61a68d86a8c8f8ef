"""Recorded runs in the formats of others: one file each."""
