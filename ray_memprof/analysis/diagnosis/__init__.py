"""Says in sentences what makes the peak of a run high, each with what would change it. Read diagnose.py first."""
