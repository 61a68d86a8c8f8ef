"""Conclusions from recorded runs: diagnosis/ says what makes the peak high, comparison/ what changed between runs."""
