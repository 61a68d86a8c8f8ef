"""Numbers for Python stacks: the same frames, the same number."""

from ray_memprof.allocator.replay import (
    Event,
)
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.schema import stack_columns


class Stacks:
    """Numbers for Python stacks: the same frames, the same number."""

    def __init__(self, store: RankStore) -> None:
        self._store = store
        self._numbers: dict[tuple[tuple[str, str, int], ...], int] = {}
        self._new: list[tuple[int, int, str, str, int]] = []

    def number(self, event: Event) -> int | None:
        """Return the number of the stack of `event`; None: it has none."""
        frames = tuple((frame["name"], frame["filename"], frame["line"]) for frame in event.get("frames", ()))
        if not frames:
            return None
        if frames not in self._numbers:
            number = self._numbers[frames] = len(self._numbers)
            self._new += [(number, index, *frame) for index, frame in enumerate(frames)]
        return self._numbers[frames]

    def flush(self) -> None:
        """Write the stacks that are new."""
        if self._new:
            self._store.append("stacks", stack_columns(self._new))
            self._new.clear()
