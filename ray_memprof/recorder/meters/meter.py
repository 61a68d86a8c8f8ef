"""Where bytes are read: one interface, one file each for CUDA (allocator and device) and for host tensors.

A meter is read at every span boundary on the thread that runs the model; allocator events wait inside it and are
drained in batches. Fake tensors go through the host meter, so that a prediction fills the same tables.
"""

import os
import re
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ray_memprof.recorder.clock import WallTimes

PEAK_RESETS = ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats")
"""Functions of torch._C: every way to reset the allocator's peaks ends in one of them."""
COUNT_RESETS = ("_cuda_resetAccumulatedMemoryStats", "_accelerator_resetAccumulatedStats")
"""The same for the numbers of allocations."""
_PAGES = re.compile(rb"RssAnon:\s*(\d+) kB\s+RssFile:\s*(\d+) kB\s+RssShmem:\s*(\d+) kB")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Pages(NamedTuple):
    """Resident memory of a process by kind, and tensors by the kind of theirs, in bytes; the rest is private."""

    files: int
    """Pages of mapped files."""
    shared: int
    """Shared memory."""
    file_tensors: int = 0
    """Tensors in mapped files, whether their pages are in memory or not."""
    shared_tensors: int = 0
    """Tensors in shared memory."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is held at one moment, in bytes, and counters since the meter began."""

    t_ns: int
    allocated: int
    reserved: int
    active: int
    device_used: int
    host_rss: int
    allocated_peak: int
    """Most since the reading before this one; -1: known only from the events."""
    reserved_peak: int
    active_peak: int
    num_allocs: int
    num_segments: int
    num_retries: int
    pages: Pages | None = None
    """Of host memory that is measured; None: of a device, or the kernel does not tell."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events as the meter got them, decoded off the model's thread."""

    events: list[Any]
    """Dicts of action, addr, size, stream, time_us and user_metadata (and frames), as in torch's snapshots."""
    reading: Reading | None
    """Counters after the last of them; None where another thread allocated meanwhile: then nothing can be compared."""
    num_allocs: int = -1
    """Allocations that the allocator has counted since the meter began. If events of fewer allocations came so far,
    some were lost. -1: no counter."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The allocator's settings, as a snapshot names them."""
    num_lost: int = 0
    """Events that are known to be lost since the drain before."""
    times: WallTimes | None = None
    """Converts the events' times from the host's wall clock into ours; None: they are ours already."""
    segments: list[Any] = field(default_factory=list)
    """Segments of the device after the last event, as in a snapshot."""


class HostRss:
    """Resident memory of this process. The file stays open: opening it at each reading costs four times as much."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        # At the end of the process it is read until the recording has ended.
        weakref.finalize(self, os.close, self._statm).atexit = False

    def read(self) -> int:
        """Bytes of this moment."""
        return int(os.pread(self._statm, 64, 0).split(None, 2)[1]) * _PAGE_BYTES


class HostPages:
    """Resident memory of this process by kind, in 4 us; as HostRss, where a sandbox does not tell kinds."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        weakref.finalize(self, os.close, self._status).atexit = False
        self._rss = None if self._kinds() else HostRss()

    def _kinds(self) -> "re.Match[bytes] | None":
        return _PAGES.search(os.pread(self._status, 4096, 0))

    def read(self) -> tuple[int, Pages | None]:
        """Bytes of this moment: all, and those by kind; None: not told."""
        if self._rss is not None:
            return self._rss.read(), None
        found = self._kinds()
        assert found is not None, "it was told before"
        private, files, shared = (int(one) * 1024 for one in found.groups())
        return private + files + shared, Pages(files, shared)


class Meter(Protocol):
    """Measures one kind of memory."""

    @property
    def source(self) -> str:
        """runs.source of what it measures: cuda, cpu or predicted."""

    @property
    def has_events(self) -> bool:
        """Whether drain() ever returns events (level stage: never)."""

    @property
    def is_on(self) -> bool:
        """Whether this process used the device at the last reading: a program makes its CUDA context when it wants."""

    def start(self) -> None:
        """Begin to measure: every event from now on is recorded."""

    def read(self) -> Reading:
        """Measure now, with the peaks since the reading before; they begin anew."""

    def peek(self) -> Reading:
        """Measure now, from any thread; no peak begins anew."""

    def answers(self) -> bool:
        """Whether peek() and drain() return at once here; asked on other threads than the model's."""

    def stamp(self, span_id: int) -> None:
        """Events from now on belong to `span_id`."""

    def pending(self, reading: Reading) -> int:
        """About how many events drain() would return, by `reading` or by a later one of the meter."""

    def drain(self) -> Batch:
        """Return the events recorded so far, losing none. Quick: the model may be waiting."""

    def base_segments(self) -> list[Any]:
        """Segments that the allocator held when recording began, as in a snapshot; often none."""

    def locate(self, tensor: Any) -> tuple[int, int, int] | None:
        """Where the storage of a tensor is: the time by the events' clock (us), its address there, and its bytes.

        None: it is empty, or of another device, or there are no events. From any thread.
        """

    def peaks(self) -> tuple[int, int]:
        """The meter's own peaks since it began: allocated and reserved bytes; level event only."""

    def stop(self) -> None:
        """End; does nothing where it was never started."""
