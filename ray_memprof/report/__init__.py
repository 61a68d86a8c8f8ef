"""Pages and last lines of a run. No number is computed here: all come from questions.

Read derive.py first: what is written when a run has ended.
"""
