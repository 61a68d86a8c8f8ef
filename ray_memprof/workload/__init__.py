"""What runs in a rank: Wan2.1 from its options to the saved video, or any script, as torchrun runs it. No Ray.

Read wan.py first.
"""
