"""The configuration of a run: YAML in, one checked value out. Read load.py first. Imports no torch and no Ray."""
