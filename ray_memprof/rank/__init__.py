"""One rank: the actor that runs the workload on one GPU, and the messages between it and the driver.

Read actor.py first, then plan.py and messages.py.
"""
