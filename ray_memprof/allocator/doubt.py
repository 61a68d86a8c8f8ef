"""What of the rules of the allocator a snapshot leaves open, and how much a block may differ for that.

    doubt = Doubt(limits=True)
    doubt.most(wanted, rest)               # bytes that a block can have taken at most

Takes what a snapshot says of settings and pools; leaves nothing.
"""

from dataclasses import dataclass
from typing import Any

from ray_memprof.allocator.rules import MIN_BLOCK_BYTES, SMALL_BYTES

Pool = tuple[int, int]
"""A memory pool, as torch numbers them."""

DEFAULT_POOL: Pool = (0, 0)

_LEAST_LIMIT_BYTES = 20 * 2**20
"""max_split_size is no less."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What of the rule cannot be told from the settings."""

    setting: bool = False
    """expandable_segments was not the same all the time."""
    pools: bool = False
    """There are pools beside the default one."""
    limits: bool = False
    """How sizes are rounded, and from which one on blocks are kept whole, is not in the snapshot."""
    everything: bool = False
    """What the settings say has been proved wrong."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.setting or self.pools or self.limits or self.everything

    def most(self, wanted: int, rest: int) -> int:
        """Bytes that a block can have taken at most where limits are not known, of its own and the `rest` behind it."""
        if self.everything or wanted >= _LEAST_LIMIT_BYTES:
            return wanted + rest
        rounded = 1 << (wanted - 1).bit_length()
        kept = MIN_BLOCK_BYTES if wanted <= SMALL_BYTES else SMALL_BYTES
        return min(wanted + rest, rounded + kept)


def pool_of(value: Any) -> Pool | None:
    """A memory pool as torch numbers them; None: no such numbers."""
    is_pool = (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(one, int) for one in value)
    )
    return (value[0], value[1]) if is_pool else None
