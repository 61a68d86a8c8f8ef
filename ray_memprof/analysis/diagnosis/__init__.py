"""What holds the peak of a run back, in sentences, each with the lever that would change it. Read diagnose.py first."""
