"""Which rank caused the end of a run, and when a standstill is a hang. Pure: no Ray, no torch, no configuration.

Read watch.py first.
"""
