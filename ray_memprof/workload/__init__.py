"""The programs that run in a rank: Wan2.1 from its options to the saved video, or any script as under torchrun. No Ray.

Read wan.py first.
"""
