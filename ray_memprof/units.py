"""Bytes as people read them, GiB and MiB of 1024 as nvidia-smi counts, and as people write them.

size_text(18_628_102_656)        # "17.35 GiB"
size_text(34_635_776)            # "33.0 MiB"
parse_size("30 GiB")             # 32_212_254_720
"""

import re
from fractions import Fraction

from ray_memprof.errors import ConfigError

MIB = 2**20
GIB = 2**30
_UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": MIB, "gib": GIB, "tib": 2**40},
}


def size_text(num_bytes: int) -> str:
    """`num_bytes` with its unit: GiB from a quarter of one on, MiB below."""
    if abs(num_bytes) >= GIB // 4:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB"


def at_least(text: str, is_at_least: bool) -> str:
    """`text`, said to be a lower bound where it is one."""
    return f"at least {text}" if is_at_least else text


def parse_size(text: str) -> int:
    """The bytes that a number with its unit means, a fraction of a byte left out; KiB is 1024 B, kB 1000 B.

    Raises:
        ConfigError: no number, no unit, or another unit than B, kB, KiB, MB, MiB, GB, GiB, TB and TiB.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(
            f"{text!r} is no size",
            hint="a number and its unit: 30 GiB, 500 MB or 4096 B; GiB are 1024^3 bytes, GB are 1000^3",
        )
    return int(Fraction(found[1]) * unit)
