"""The driver of a run under Ray: it starts or joins Ray, books places, starts the ranks and brings the run to its end.

Read cluster.py first, then ending.py. Beside rank/, the only room that imports Ray.
"""
