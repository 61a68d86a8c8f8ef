"""The CUDA meter: the caching allocator's counters and events, and what the device has in use.

Another allocator (cudaMallocAsync, RMM and the like) reports no events, or not even counters: what it reports is
recorded, and what is missing is noted. Costs on an H200 host: a reading 20 to 35 us (75 us in a rank of four), a stamp
1 us, draining 0.6 to 0.9 us an event. Nothing here makes a CUDA context: until the program makes its own, readings show
what the driver reports.
"""

import functools
import importlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.meters.meter import (
    COUNT_RESETS,
    PEAK_RESETS,
    Batch,
    HostRss,
    Reading,
)
from ray_memprof.recorder.meters.nvml import Device
from ray_memprof.recorder.meters.shared_history import FRAMES_COST, SharedHistory
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.thread_watch import Moves

_LOOK_S = 0.002
"""Seconds between two looks at the model's thread: if it moves on, it is at another place by then."""
_COUNTED = frozenset(("alloc", "free_requested", "free_completed"))


class CudaMeter:
    """Measures one device of this process.

    Args:
        index: of the device, as torch counts (the local rank).
        events: record allocator events.
        stacks: record a Python stack with each allocation (23 us an event when drained).
        device: the same device through NVML, for what is in use before CUDA starts; None: zeros until then.
        clock: tells the time.
    """

    source = "cuda"

    def __init__(
        self,
        index: int,
        *,
        events: bool,
        stacks: bool = False,
        device: Device | None = None,
        problems: Problems | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock, self._drained_ns = clock or Clock(), 0
        self.has_events = events
        self._index, self._device = index, device
        self._problems = problems or Problems()
        self._history = SharedHistory(index, self._counters, has_stacks=stacks, problems=self._problems)
        self._is_on = self._is_started = self._has_context = False
        self._num_seen = self._num_lost = 0
        self._base_counters = self._drained = _Counters()
        self._thread = self._used = 0
        self._resetting = 0
        """The thread on which the meter itself resets the peaks just now; 0: none."""
        self._base: list[Any] = []
        self._span = 0
        self._resets: dict[str, Callable[..., None]] = {}
        self._kept = (0, 0, 0)  # peaks before the program's resets, since our own last reset
        self._forgotten: Counter[str] = Counter()  # counts that the program has reset
        self._stats: dict[str, Any] = {}
        self._num_allocs_seen = 0
        self._host_rss = HostRss()
        silent_in_children(self)

    def forked(self) -> None:
        """In a child there is no CUDA to ask."""
        self._is_on = self._is_started = self._has_context = False

    def start(self) -> None:
        """Begin now, or when the program starts CUDA, before its first allocation."""
        self._is_started, self._thread = True, threading.get_ident()
        for names, instead in (
            (PEAK_RESETS, self._reset_by_program),
            (COUNT_RESETS, self._counts_reset_by_program),
        ):
            for name in names:
                if (reset := getattr(torch._C, name, None)) is not None:
                    self._resets[name] = reset
                    setattr(torch._C, name, functools.partial(instead, reset))
        if self.has_events:
            self._history.hook()
        if self._history.is_costly:
            with self._problems.noting("stacks of compiled code are not named"):
                # torch imports it when it names the first stack: four seconds, in the middle of the model.
                importlib.import_module("torch._inductor.codecache")
        torch.cuda._lazy_call(self._begin_guarded)

    def _reset_by_program(self, reset: Callable[..., None], *args: Any) -> None:
        """The program resets the allocator's peaks: their values so far are kept here.

        If another thread than the model's does this while a span begins, the span may get the peak from before it.
        """
        if self._is_on and threading.get_ident() != self._resetting:
            with self._problems.noting("peaks before a reset by the program are unknown"):
                self._kept = self._tops(self._read_stats())
        reset(*args)

    def _counts_reset_by_program(self, reset: Callable[..., None], *args: Any) -> None:
        """The program resets the numbers of allocations: their values so far are kept here."""
        if self._is_on:
            with self._problems.noting("counts before a reset by the program are unknown"):
                counts = _counts(self._read_stats())
                reset(*args)
                self._forgotten.update(counts)
                # The reset may have been of another device.
                self._forgotten.subtract(_counts(self._read_stats()))
                return
        reset(*args)

    def _tops(self, stats: dict[str, Any]) -> tuple[int, int, int]:
        """Return the peaks since the meter's own last reset: allocated, reserved and active bytes."""
        allocated, reserved, active = self._kept
        return (
            max(allocated, stats["allocated_bytes"]["all"]["peak"]),
            max(reserved, stats["reserved_bytes"]["all"]["peak"]),
            max(active, stats["active_bytes"]["all"]["peak"]),
        )

    def _reset_peaks(self) -> None:
        # Called by its name, as the program would: others that watch resets (PeakWatch) see this one too. The peaks
        # were read already; reading them again would cost as much as the reading.
        self._resetting = threading.get_ident()
        try:
            torch._C._cuda_resetPeakMemoryStats(self._index)
        finally:
            self._resetting = 0
        self._kept = (0, 0, 0)

    def _begin_guarded(self) -> None:
        """Begin; called inside the program's own start of CUDA, which an error raised here would break."""
        if not self._is_started or self._is_on:
            return
        try:
            self._begin()
        except Exception as error:
            self._problems.note("the allocator cannot be recorded", error)
            self.has_events = False
        self._is_on = True

    def _begin(self) -> None:
        self._look_at_allocator()
        was_in_use = torch.cuda.is_initialized()
        if was_in_use and self._stats:
            self._reset_peaks()
        if not self.has_events:
            return
        self._history.begin()
        if was_in_use:
            # Memory that is held already has no events, and its peaks are not of this recording.
            self._base = self._history.segments()
            self._base_counters = self._drained = self._counters()
        if threading.get_ident() == self._thread:
            self._history.stamp(self._span)

    def _look_at_allocator(self) -> None:
        """Find out what the allocator reports: a program may have replaced torch's own by another one."""
        backend = torch.cuda.get_allocator_backend()
        try:
            self._stats = torch._C._cuda_memoryStats(self._index)
            _counters_of(self._stats)
        except Exception as error:  # RuntimeError, KeyError, or any other: it depends on the allocator
            self._stats, self.has_events = {}, False
            self._problems.note(
                f"the allocator ({backend}) has no counters, device memory alone is recorded", error
            )
            return
        if backend != "native" and self.has_events:
            self.has_events = False
            self._problems.add(f"the allocator ({backend}) reports no events, only its counters are recorded")

    def _read_stats(self) -> dict[str, Any]:
        """Return the allocator's counters, or the last known ones where it fails; {}: it has none."""
        if self._stats:
            try:
                self._stats = torch._C._cuda_memoryStats(self._index)
            except Exception as error:
                self._problems.note("the allocator's counters could not be read", error)
        return self._stats

    def base_segments(self) -> list[Any]:
        """Segments of this device that were there when recording began."""
        return [segment for segment in self._base if segment["device"] == self._index]

    @property
    def is_on(self) -> bool:
        """Whether the program had a CUDA context at the last reading."""
        return self._has_context

    def _looks_for_context(self) -> bool:
        """Whether the program has a CUDA context; torch starts CUDA first, and makes the context when it is needed.

        Asking CUDA for the device's memory would make the context: 130 ms of the program's time, in one reading.
        """
        if self._is_on and not self._has_context:
            has = torch._C._cuda_hasPrimaryContext  # type: ignore[attr-defined] # no stub has it
            self._has_context = bool(has(self._index))
        return self._has_context

    def read(self) -> Reading:
        """Read counters and device memory of this moment; at level stage the allocator's peaks are reset.

        Without events there is no other way to get the peak of a span. So at that level, what the program gets from
        torch.cuda.max_memory_allocated() is the peak since the last span boundary.
        """
        reading = self.peek()
        if self._is_on and self._stats and not self.has_events:
            self._reset_peaks()
        return reading

    def peek(self) -> Reading:
        """Read counters and device memory of this moment."""
        host_rss = self._host_rss.read()
        if not self._looks_for_context():
            used = 0 if self._device is None else self._device.used_bytes()
            return Reading(self._clock.now_ns(), 0, 0, 0, used, host_rss, 0, 0, 0, 0, 0, 0)
        stats = self._read_stats()
        counters = _counters_of(stats, self._forgotten) if stats else _Counters()
        self._num_allocs_seen = counters.num_allocs
        peaks = (-1, -1, -1) if self.has_events or not stats else self._tops(stats)
        return Reading(
            # Taken after the counters: while the allocator waits for the driver, they may come seconds late.
            t_ns=self._clock.now_ns(),
            allocated=counters.allocated,
            reserved=counters.reserved,
            active=counters.active,
            device_used=self._device_used(),
            host_rss=host_rss,
            allocated_peak=peaks[0],
            reserved_peak=peaks[1],
            active_peak=peaks[2],
            num_allocs=counters.num_allocs,
            num_segments=counters.num_segments,
            num_retries=counters.num_retries,
        )

    def answers(self) -> bool:
        """Whether the allocator can be asked from another thread than the model's.

        The allocator keeps its lock while it waits for the device: for ever, if a collective hangs and memory is to be
        freed. torch waits for that lock while it holds Python's lock, and then no thread could report where the model
        is. So the answer is yes only if the model's thread was seen to move on.
        """
        if not self._is_on or threading.get_ident() == self._thread:
            return True
        moves = Moves()
        moves.look(sys._current_frames().get(self._thread))
        time.sleep(_LOOK_S)
        return moves.look(sys._current_frames().get(self._thread)) > 1

    def _device_used(self) -> int:
        try:
            free, total = torch.cuda.mem_get_info(self._index)
        except RuntimeError:
            # After a fault (an assertion in a kernel, a bad address) every call of CUDA fails with that error. The
            # model gets the error itself, and what was recorded so far is needed all the more.
            return self._used
        self._used = total - free
        return self._used

    def peaks(self) -> tuple[int, int]:
        """The allocator's own peaks since recording began: allocated and reserved bytes."""
        stats = self._read_stats() if self._is_on else {}
        if not stats:
            return 0, 0
        allocated, reserved, _ = self._tops(stats)
        return allocated, reserved

    def locate(self, tensor: torch.Tensor) -> tuple[int, int, int] | None:
        """Where the storage of a tensor is: wall clock in microseconds, address, bytes. None: no event tells of it."""
        device = tensor.device
        if not (self._is_on and self.has_events and device.type == "cuda" and device.index == self._index):
            return None
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        return (time.time_ns() // 1000, address, storage.nbytes()) if address else None

    def stamp(self, span_id: int) -> None:
        """Events of this thread from now on carry `span_id`."""
        self._span = span_id
        if self._is_on and self.has_events:
            self._history.stamp(span_id)

    def pending(self, reading: Reading) -> int:
        """Estimate the waiting events: three an allocation (made, free requested, freed); more if they have stacks."""
        if not self.has_events:
            return 0
        num_allocs = max(reading.num_allocs, self._num_allocs_seen) - self._drained.num_allocs
        return 3 * num_allocs * (FRAMES_COST if self._history.is_costly else 1)

    def drain(self) -> Batch:
        """Take the recorded events, from any thread."""
        if not (self._is_on and self.has_events):
            return Batch([], None)
        # Before the copy: torch draws its line (see WallTimes) when the copy begins, and the copy may take long.
        times = self._clock.times(self._drained_ns)
        taken = self._history.take(may_empty=threading.get_ident() == self._thread)
        self._drained_ns = times.now_ns
        before: _Counters = taken.before
        self._drained = taken.after
        return Batch(
            taken.events,
            taken.after.reading() if taken.before == taken.after else None,
            before.num_allocs - self._base_counters.num_allocs,
            self._history.settings,
            self._lost(before, taken.events),
            times,
            [segment for segment in self._history.last_segments if segment["device"] == self._index],
        )

    def _lost(self, before: "_Counters", events: list[Any]) -> int:
        """Return how many events the allocator counted up to `before` that never came and were not reported yet."""
        # The model waits meanwhile, so this counts in C.
        came = Counter(map(itemgetter("action"), events))
        self._num_seen += sum(came[action] for action in _COUNTED)
        missing = before.num_events - self._base_counters.num_events - self._num_seen
        more = max(0, missing - self._num_lost)
        self._num_lost += more
        return more

    def _counters(self) -> "_Counters":
        return _counters_of(torch._C._cuda_memoryStats(self._index), self._forgotten)

    def stop(self) -> None:
        """Stop recording events, and give torch its functions back."""
        for name, reset in self._resets.items():
            setattr(torch._C, name, reset)
        self._resets = {}
        if self._is_started:
            self._history.end()
        self._is_started = self._is_on = self._has_context = False


class _Counters(NamedTuple):
    """What changes with the events of the allocator."""

    allocated: int = 0
    reserved: int = 0
    active: int = 0
    num_allocs: int = 0
    num_segments: int = 0
    num_retries: int = 0
    num_events: int = 0
    """Blocks allocated, requested to be freed, and freed."""

    def reading(self) -> Reading:
        """Return these counters as a Reading, to compare the replay with."""
        return Reading(0, self.allocated, self.reserved, self.active, 0, 0, -1, -1, -1, self.num_allocs, 0, 0)


def _counts(stats: dict[str, Any]) -> Counter[str]:
    return Counter(
        allocs=stats["allocation"]["all"]["allocated"],
        frees=stats["allocation"]["all"]["freed"],
        completed=stats["active"]["all"]["freed"],
        segments=stats["segment"]["all"]["allocated"],
        retries=stats["num_alloc_retries"],
    )


def _counters_of(stats: dict[str, Any], forgotten: Counter[str] | None = None) -> _Counters:
    # Called twice for every span, so it makes no Counter where none is needed.
    allocation, active = stats["allocation"]["all"], stats["active"]["all"]
    allocs, frees, completed = allocation["allocated"], allocation["freed"], active["freed"]
    segments, retries = stats["segment"]["all"]["allocated"], stats["num_alloc_retries"]
    if forgotten:
        allocs, frees = allocs + forgotten["allocs"], frees + forgotten["frees"]
        completed, segments = completed + forgotten["completed"], segments + forgotten["segments"]
        retries += forgotten["retries"]
    return _Counters(
        stats["allocated_bytes"]["all"]["current"],
        stats["reserved_bytes"]["all"]["current"],
        stats["active_bytes"]["all"]["current"],
        allocs,
        segments,
        retries,
        allocs + frees + completed,
    )
