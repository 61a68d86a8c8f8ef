"""The pages of a run, and its last lines on the console.

Every size, time and count comes from a question. All that is computed here is how two such numbers compare: a share of
the device, a change against the first run.
Read derive.py first: it says what is written when a run has ended.
"""
