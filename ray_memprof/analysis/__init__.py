"""Conclusions from recorded runs: diagnosis/ says what holds the peak back, comparison/ what moved between runs."""
