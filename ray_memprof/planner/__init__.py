"""Which configurations fit under a limit, the fastest first; nothing runs on a GPU.

search.py is the flow: space.py says what may be tried, probe.py bounds its memory, full.py predicts what is shown.
"""
