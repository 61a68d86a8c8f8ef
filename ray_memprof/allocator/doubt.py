"""Which of the allocator's rules a snapshot leaves open, and by how much a block's size may differ because of that.

    doubt = Doubt(size_rules=True)
    doubt.most(wanted, rest)               # bytes that a block can have taken at most

Takes the settings and pools of a snapshot; writes nothing.
"""

from dataclasses import dataclass
from typing import Any

from ray_memprof.allocator.rules import LARGE_SEGMENT_BYTES, MIN_BLOCK_BYTES, SMALL_BYTES

Pool = tuple[int, int]
"""A memory pool, as torch numbers them."""

DEFAULT_POOL: Pool = (0, 0)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Which parts of the rules are not known from the settings."""

    setting: bool = False
    """expandable_segments was not the same all the time."""
    pools: bool = False
    """There are pools beside the default one."""
    size_rules: bool = False
    """The snapshot lacks how sizes are rounded, and from which size on blocks are kept whole."""
    everything: bool = False
    """What the settings say has been proved wrong."""

    def __bool__(self) -> bool:
        """Whether there is any doubt."""
        return self.setting or self.pools or self.size_rules or self.everything

    def most(self, wanted: int, rest: int) -> int:
        """Return the most bytes a block can have taken, of its own and of the `rest` behind, if limits are unknown."""
        if self.everything or wanted >= LARGE_SEGMENT_BYTES:  # max_split_size is never less
            return wanted + rest
        rounded = 1 << (wanted - 1).bit_length()
        kept = MIN_BLOCK_BYTES if wanted <= SMALL_BYTES else SMALL_BYTES
        return min(wanted + rest, rounded + kept)


def pool_of(value: Any) -> Pool | None:
    """Return `value` as a memory pool, as torch numbers them; None: it is no such pair of numbers."""
    is_pool = (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(one, int) for one in value)
    )
    return (value[0], value[1]) if is_pool else None
