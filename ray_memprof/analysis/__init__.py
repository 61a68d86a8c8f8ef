"""Conclusions from recorded runs.

diagnosis/ says what makes the peak high, comparison/ what changed between runs, what_if.py what the peak would be under
other settings of the allocator.
"""
