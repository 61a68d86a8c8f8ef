"""What changed between runs, and which limits were exceeded. Read compare.py first."""
