"""A meter that says what a test tells it to, and a store that keeps rows in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.store.parts import to_batch


@dataclass
class FakeMeter:
    """Bytes are set from outside; each reading is one nanosecond after the one before."""

    has_events: bool = True
    source: str = "cpu"
    is_on: bool = True
    allocated: int = 0
    device_used: int = 0
    allocated_peak: int = -1
    """Since the last reading; -1: told by events."""
    num_allocs: int = 0
    now: int = 0
    span: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    top: int = 0
    is_stuck: bool = False
    """Does not answer other threads than the model's."""

    def start(self) -> None:
        self.calls.append("start")

    def alloc(self, size: int, address: int | None = None) -> None:
        self.num_allocs += 1
        self._event("alloc", self.num_allocs if address is None else address, size)
        self.allocated += size
        self.top = max(self.top, self.allocated)
        if not self.has_events:
            self.allocated_peak = max(self.allocated_peak, self.allocated)

    def free(self, address: int, size: int) -> None:
        self.allocated -= size
        self._event("free_requested", address, size)
        self._event("free_completed", address, size)

    def _event(self, action: str, address: int, size: int) -> None:
        if self.has_events:
            self.events.append(
                {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 1,
                 "user_metadata": str(self.span)}
            )  # fmt: skip

    def read(self) -> Reading:
        self.now += 1
        reading = self.peek()
        if not self.has_events:
            self.allocated_peak = self.allocated
        return reading

    def peek(self) -> Reading:
        held, peak = self.allocated, self.allocated_peak
        return Reading(
            self.now,
            held,
            held,
            held,
            max(self.device_used, held),
            9,
            peak,
            peak,
            peak,
            self.num_allocs,
            0,
            0,
        )

    def answers(self) -> bool:
        return not self.is_stuck

    def stamp(self, span_id: int) -> None:
        self.span = span_id

    def pending(self, reading: Reading) -> int:
        return len(self.events)

    def drain(self) -> Batch:
        events, self.events = self.events, []
        return Batch(events, self.peek(), self.num_allocs)

    def base_segments(self) -> list[Any]:
        return []

    def locate(self, tensor: Any) -> tuple[int, int, int] | None:
        """A test names a storage by its address and bytes."""
        return (1, *tensor)

    def peaks(self) -> tuple[int, int]:
        return self.top, self.top

    def stop(self) -> None:
        self.calls.append("stop")


class FakeStore:
    """Rows by table, checked against the schema; `room` appends go well."""

    def __init__(self, room: int = 1000) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.num_seals = 0
        self.is_closed = False
        self._room = room

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        self._room -= 1
        if self._room < 0:
            raise DiskFull("rank 0: No space left on device")
        self.rows.setdefault(table, []).extend(to_batch(table, columns).to_pylist())

    def seal(self) -> None:
        self.num_seals += 1

    def close(self) -> None:
        self.is_closed = True
