"""What moved between runs, and which bounds it broke. Read compare.py first."""
