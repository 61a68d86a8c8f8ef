"""Where every byte of every GPU goes: runs Wan2.1, or any torch.distributed script, under Ray and records its memory.

Read launch.py first; the words that all parts share are in schema.py.
"""
