"""Where every byte of every GPU goes: runs Wan2.1, or any torch.distributed script, under Ray and records its memory.

Read launch.py first; store/schema.py names and explains all tables and columns.
"""
