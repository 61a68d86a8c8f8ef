"""One rank: the actor that runs the workload on one GPU, and what it and the driver say to each other.

Read actor.py first, then messages.py.
"""
