"""The driver of a run under Ray: it starts or joins Ray, books places, starts the ranks and brings the run to its end.

Read cluster.py first, then ending.py. Only this package and rank/ import Ray.
"""
