"""Where every byte of every GPU goes: runs Wan2.1, or any torch.distributed program, and records its memory.

Read launch.py first; store/schema.py names and explains all tables and columns. A program that is recorded may name
its parts:

    with ray_memprof.span("forward"): ...
"""

from ray_memprof.recorder.spans import span, step

__all__ = ["span", "step"]
