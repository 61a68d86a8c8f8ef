"""The pages of a run, and its last lines on the console. No number is computed here: all come from questions.

Read derive.py first: it says what is written when a run has ended.
"""
