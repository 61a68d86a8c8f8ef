"""The history of the allocator that the program itself asked torch for, kept as torch would have kept it without us.

torch has one ring of events, made for one user. Where both the program and the recorder record, the ring's events are
taken as often as the recorder needs. They are also kept here, as many and with the stacks that the program asked for.
The program's snapshots show them again, in order.
"""

import pickle
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from ray_memprof.recorder.meters.ring import Events, is_marker
from ray_memprof.recorder.problems import Problems

SEPARATOR = "\x1f"
"""Between our stamp and what the program itself set as metadata."""
MOST_IN_MEMORY = 65_536
"""Events of a device that stay in memory; older ones lie compressed in a file that has no name."""
CHUNK = 8_192
_FILE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Request:
    """What the program asked for last; torch's own words and defaults."""

    enabled: str | None = None
    context: str | None = None
    stacks: str = "python"
    max_entries: int = sys.maxsize
    skip_actions: tuple[str, ...] = ()
    has_annotations: bool = False

    @property
    def limit(self) -> int:
        """Events that torch would keep."""
        return max(1, self.max_entries) if self.enabled == "all" else 1


@dataclass(slots=True)
class _File:
    """Chunks one after the other, in a temporary file that is closed when no chunk in it is needed."""

    file: IO[bytes]
    num_chunks: int = 0


@dataclass(slots=True)
class _Chunk:
    file: _File
    offset: int
    num_bytes: int
    num_events: int


class Kept:
    """The last events of one device.

    Args:
        problems: is told if there is no room for the file; then the events stay in memory.
    """

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._recent: Events = []
        self._chunks: deque[_Chunk] = deque()
        self._num_in_files = 0
        self._can_spill = True

    def add(self, events: Events, limit: int) -> None:
        """Add `events`; of all events, at least the last `limit` are kept."""
        self._recent += events
        while len(self._recent) > MOST_IN_MEMORY and self._can_spill and limit > MOST_IN_MEMORY:
            self._can_spill = False
            with self._problems.noting("the program's own history of the allocator stays in memory"):
                self._spill()
                self._can_spill = True
        while self._chunks and self._num_in_files + len(self._recent) - self._chunks[0].num_events >= limit:
            self._drop()
        if not self._chunks and len(self._recent) > limit + CHUNK:
            del self._recent[:-limit]

    def last(self, limit: int) -> Events:
        """Return the last `limit` events, the oldest first."""
        return [*self._spilled(), *self._recent][-limit:]

    def _spilled(self) -> Iterator[dict[str, Any]]:
        for chunk in self._chunks:
            chunk.file.file.seek(chunk.offset)
            yield from pickle.loads(zlib.decompress(chunk.file.file.read(chunk.num_bytes)))

    def _spill(self) -> None:
        data = zlib.compress(pickle.dumps(self._recent[:CHUNK], protocol=4), 1)
        file = self._chunks[-1].file if self._chunks else None
        offset = 0 if file is None else file.file.seek(0, 2)
        if file is None or offset > _FILE_BYTES:
            file, offset = _File(tempfile.TemporaryFile()), 0  # noqa: SIM115 - open while a chunk is in it
        file.file.write(data)
        file.file.flush()
        file.num_chunks += 1
        self._chunks.append(_Chunk(file, offset, len(data), CHUNK))
        self._num_in_files += CHUNK
        del self._recent[:CHUNK]

    def _drop(self) -> None:
        chunk = self._chunks.popleft()
        self._num_in_files -= chunk.num_events
        chunk.file.num_chunks -= 1
        if not chunk.file.num_chunks and not (self._chunks and self._chunks[-1].file is chunk.file):
            chunk.file.file.close()


@dataclass(slots=True)
class ProgramHistory:
    """What the program asked for, and what was recorded for it since."""

    problems: Problems
    request: Request = field(default_factory=Request)
    annotations: list[Any] = field(default_factory=list)
    """External annotations of the rings that were emptied."""
    _kept: dict[int, Kept] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        """Whether the program records."""
        return self.request.enabled is not None

    @property
    def has_frames(self) -> bool:
        """Whether its events have stacks."""
        return self.is_on and self.request.context in ("alloc", "all")

    def ask(self, request: Request, *, clear: bool) -> None:
        """The program makes a new request; its events so far stay, unless it clears them or stops recording."""
        self.request = request
        if clear or not self.is_on:
            self._kept.clear()
            self.annotations.clear()

    def add(self, device: int, events: Events) -> None:
        """Keep the events of a device, if the program records."""
        if not self.is_on:
            return
        if device not in self._kept:
            self._kept[device] = Kept(self.problems)
        skipped = self.request.skip_actions
        own = [
            self._as_program_sees(event)
            for event in events
            if event["action"] not in skipped
            and (SEPARATOR in event.get("user_metadata", "") or not is_marker(event))
        ]
        self._kept[device].add(own, self.request.limit)

    def _as_program_sees(self, event: dict[str, Any]) -> dict[str, Any]:
        stamp = event.get("user_metadata", "")
        ours, separator, text = stamp.partition(SEPARATOR)
        # Metadata that the program set before we began is unchanged.
        seen = {**event, "user_metadata": text if separator or ours.isdecimal() else stamp}
        if not self.has_frames:
            seen.pop("frames", None)
        return seen

    def traces(self, num_devices: int) -> list[Events]:
        """Return the program's events, as `device_traces` of a snapshot."""
        if not self.is_on:
            return [[] for _ in range(num_devices)]
        limit = self.request.limit
        return [
            self._kept[device].last(limit) if device in self._kept else [] for device in range(num_devices)
        ]
