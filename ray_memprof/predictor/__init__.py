"""Runs without a GPU: wan's own code on fake tensors, with the memory of the device that it would run on.

run.py makes a run folder like any other; fake_rank.py is one rank of it, and fake_device.py its GPU.
"""
