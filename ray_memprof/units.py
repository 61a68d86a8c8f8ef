"""Bytes as people read them: GiB and MiB of 1024, as nvidia-smi counts.

size_text(18_628_102_656)        # "17.35 GiB"
size_text(34_635_776)            # "33.0 MiB"
"""

MIB = 2**20
GIB = 2**30


def size_text(num_bytes: int) -> str:
    """`num_bytes` with its unit: GiB from a quarter of one on, MiB below."""
    if abs(num_bytes) >= GIB // 4:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB"
