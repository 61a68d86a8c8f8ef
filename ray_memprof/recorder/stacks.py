"""Numbers for Python stacks: the same frames, the same number.

    stacks = Stacks(store)
    stacks.number(event)                  # its frames are written once, by flush()

Takes events of the allocator; leaves the table stacks. Frames of an FX graph have the name of the graph's node too,
where torch keeps it: torch.fx.experimental._config.enrich_profiler_metadata.
"""

from collections.abc import Sequence
from typing import Any

import torch._utils

from ray_memprof.allocator.replay import (
    Event,
)
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.schema import stack_columns
from ray_memprof.wording import frame_name

# Not public: a later torch may have it elsewhere. Without it frames have no names of nodes.
_add_nodes = getattr(torch._utils, "_augment_frames", None)


_hidden: set[str] = set()
"""Files whose frames are no part of the program's stack."""


def hide_frames(file: str) -> None:
    """Leave the frames of a file out of all stacks: it stands between the program and torch, and allocates nothing."""
    _hidden.add(file)


class Stacks:
    """Numbers for Python stacks: the same frames, the same number."""

    def __init__(self, store: RankStore) -> None:
        self._store = store
        self._numbers: dict[tuple[tuple[str, str, int], ...], int] = {}
        self._new: list[tuple[int, int, str, str, int]] = []

    def number(self, event: Event) -> int | None:
        """Return the number of the stack of `event`; None: it has none."""
        shown = [frame for frame in event.get("frames", ()) if frame["filename"] not in _hidden]
        frames = tuple((frame["name"], frame["filename"], frame["line"]) for frame in shown)
        if not frames:
            return None
        if frames not in self._numbers:
            number = self._numbers[frames] = len(self._numbers)
            self._new += [(number, index, *frame) for index, frame in enumerate(_with_nodes(shown))]
        return self._numbers[frames]

    def flush(self) -> None:
        """Write the stacks that are new."""
        if self._new:
            self._store.append("stacks", stack_columns(self._new))
            self._new.clear()


def _with_nodes(frames: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Frames as rows, with the names of nodes."""
    # Copies: the program may have asked for the same frames.
    told = [dict(frame) for frame in frames]
    if _add_nodes is not None:
        _add_nodes(told)
    return [
        (frame_name(frame["name"], frame.get("fx_node_name")), frame["filename"], frame["line"])
        for frame in told
    ]
