"""Rules of torch's caching allocator for sizes: what a request becomes, and when a block that is too large is split.

    rules = Rules(expandable_segments=True)
    wanted = rules.rounded(1000)                       # 1,024
    rules.splits(wanted, available - wanted)           # whether the rest of the block stays free
    rules.segment_bytes(wanted)                        # what the device is asked for, if no block fits

Replay and import follow recorded blocks by these rules, and caching.py finds blocks by them.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (round_size, should_split, get_allocation_size, get_free_block).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTINGS_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables: torch reads the first, and the second only where the first is absent."""
MIN_BLOCK_BYTES = 512
SMALL_BYTES = 2**20
"""Requests up to this come from the small pool, which splits to the last 512 bytes; the large pool keeps a
remainder of up to this with the block."""
SMALL_SEGMENT_BYTES = 2 * 2**20
"""A segment of the small pool, and a page of one that grows."""
LARGE_SEGMENT_BYTES = 20 * 2**20
"""A segment for requests below OWN_SEGMENT_BYTES, and a page of one that grows; a setting from torch 2.12 on."""
OWN_SEGMENT_BYTES = 10 * 2**20
"""Requests from this on get a segment of their own size."""
SEGMENT_STEP_BYTES = 2 * 2**20
"""Their segments are multiples of this."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of one moment that sizes depend on."""

    expandable_segments: bool = False
    """Whether the allocator grows segments: it splits more then."""
    max_split_bytes: int | None = None
    """Requests of this size and more are never split; None: no limit."""
    divisions: tuple[int, ...] = ()
    """Steps between two powers of two, for each power from 1 MiB on; empty: sizes are rounded to 512 bytes."""
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    """A segment of the large pool for requests below 10 MiB, and a page of one that grows."""
    max_unsplit_rest_bytes: int = LARGE_SEGMENT_BYTES
    """A request of max_split_bytes and more takes a block only if less than this would be left over."""
    garbage_collection_fraction: float = 0.0
    """Of the bytes that the process may reserve: above it, unused blocks are given back before a segment is made; 0:
    never. Without torch.cuda.set_per_process_memory_fraction it has no effect."""

    def under(self, settings: Mapping[str, Any]) -> "Rules":
        """Return the rules under a snapshot's settings.

        If they do not name expandable_segments, it stays as it is; other settings that they do not name are dropped.
        """
        limit = settings.get("max_split_size", -1)
        divisions = settings.get("roundup_power2_divisions", {})
        # Keys are powers of two, "1" for up to 2 MiB; no division is the default.
        steps = tuple(divisions[key] for key in sorted(divisions, key=int))
        return Rules(
            expandable_segments=bool(settings.get("expandable_segments", self.expandable_segments)),
            max_split_bytes=limit if limit > 0 else None,
            divisions=steps if any(step > 1 for step in steps) else (),
            large_segment_bytes=settings.get("large_segment_size", LARGE_SEGMENT_BYTES),
            max_unsplit_rest_bytes=settings.get("max_non_split_rounding_size", LARGE_SEGMENT_BYTES),
            garbage_collection_fraction=settings.get("garbage_collection_threshold", 0.0),
        )

    def rounded(self, requested: int) -> int:
        """Return the bytes of a request after rounding, before a block is looked for."""
        divisions = self._divisions_of(requested) if self.divisions else 0
        if divisions > 1 and requested > MIN_BLOCK_BYTES * divisions:
            return _next_division(requested, divisions)
        return exact_size(requested)

    def _divisions_of(self, requested: int) -> int:
        """Return the divisions for a size: one for each power of two from 1 MiB on; the ends serve all other sizes."""
        interval = max(0, requested.bit_length() - SMALL_BYTES.bit_length())
        return self.divisions[min(interval, len(self.divisions) - 1)]

    def splits(self, wanted: int, rest: int) -> bool:
        """Whether a request gives back the `rest` bytes of the block that it found."""
        if self.expandable_segments or wanted <= SMALL_BYTES:
            return rest >= MIN_BLOCK_BYTES
        return rest > SMALL_BYTES and self.may_split(wanted)

    def may_split(self, wanted: int) -> bool:
        """Whether a request of the large pool is below the size from which on blocks are kept whole."""
        return self.max_split_bytes is None or wanted < self.max_split_bytes

    def may_take(self, wanted: int, available: int) -> bool:
        """Whether a request may take a free block that is large enough: those kept whole are for large requests."""
        limit = self.max_split_bytes
        if limit is None:
            return True
        if wanted < limit:
            return available < limit
        return available < wanted + self.max_unsplit_rest_bytes

    def segment_bytes(self, wanted: int) -> int:
        """Return the bytes of a segment that is made for a request, after rounding."""
        if wanted <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if wanted < OWN_SEGMENT_BYTES:
            return self.large_segment_bytes
        return -(-wanted // SEGMENT_STEP_BYTES) * SEGMENT_STEP_BYTES

    def page_bytes(self, *, is_small: bool) -> int:
        """Return the bytes by which a segment grows, of the small or the large pool."""
        return SMALL_SEGMENT_BYTES if is_small else self.large_segment_bytes


def exact_size(requested: int) -> int:
    """Return the bytes of a request without any setting: rounded up to a multiple of 512, and never 0."""
    return -(-requested // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES or MIN_BLOCK_BYTES


def _next_division(size: int, divisions: int) -> int:
    """Round `size` up to the next of `divisions` equal steps between two powers of two."""
    floor = 1 << (size.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    if size == floor:
        return size
    return floor << 1 if step == 0 else -(-size // step) * step
