"""The CUDA meter: the caching allocator's counters and events, and what the device has in use.

Costs on an H200 host: a reading 20 to 35 us (75 in a rank of four), a stamp 1 us, draining 0.6 to 0.9 us an event.
Nothing here makes a CUDA context: until the program makes its own, readings show what the driver reports.
"""

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ray_memprof.clock import Clock
from ray_memprof.device import Device
from ray_memprof.frames import Moves
from ray_memprof.meters import PEAK_RESETS, Batch, HostRss, Reading

MAX_EVENTS = 2_000_000
"""Ring of the allocator, taken as it fills: far more than arrive between two drains, so that none is lost."""
MAX_KEPT_EVENTS = 131_072
"""Events that another thread than the model's may leave in the ring: decoding them again takes some 50 ms."""
_LOOK_S = 0.002
"""Between two looks at the model's thread: where it gets on, it is somewhere else by then."""
_CURVES = ("allocated_bytes", "reserved_bytes", "active_bytes")


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
        clock: Clock | None = None,
    ) -> None:
        self._clock, self._drained_ns = clock or Clock(), 0
        self.has_events = events
        self._index, self._stacks, self._device = index, stacks, device
        self._is_on = self._is_started = False
        self._drained_allocs = self._base_allocs = self._num_taken = 0
        self._thread = self._used = 0
        self._base: list[Any] = []
        self._stamp = "0"
        self._resets: dict[str, Callable[..., None]] = {}
        self._kept = (0, 0, 0)  # the peaks that the program has reset, since ours began
        self._host_rss = HostRss()

    def start(self) -> None:
        """Begin: now, or in the moment in which the program starts CUDA, before its first allocation."""
        self._is_started, self._thread = True, threading.get_ident()
        self._resets = {name: getattr(torch._C, name) for name in PEAK_RESETS if hasattr(torch._C, name)}
        for name, reset in self._resets.items():
            setattr(torch._C, name, functools.partial(self._reset_by_program, reset))
        torch.cuda._lazy_call(self._begin)

    def _reset_by_program(self, reset: Callable[..., None], *args: Any) -> None:
        """The program lets its peaks begin anew: what they were so far is kept here.

        Where another thread than the model's does so while a span begins, the span may be given the peak before it.
        """
        if self._is_on:
            self._kept = self._tops(torch._C._cuda_memoryStats(self._index))
        reset(*args)

    def _tops(self, stats: dict[str, Any]) -> tuple[int, int, int]:
        """Peaks since ours began: allocated, reserved and active bytes."""
        allocated, reserved, active = (
            max(kept, stats[name]["all"]["peak"]) for kept, name in zip(self._kept, _CURVES, strict=True)
        )
        return allocated, reserved, active

    def _reset_peaks(self) -> None:
        # By its name, as the program would: whoever else watches resets (PeakWatch) hears of this one too.
        torch._C._cuda_resetPeakMemoryStats(self._index)
        self._kept = (0, 0, 0)

    def _begin(self) -> None:
        if not self._is_started or self._is_on:
            return
        if torch.cuda.get_allocator_backend() != "native":
            self.has_events = False  # cudaMallocAsync counts, and tells no events
        was_in_use = torch.cuda.is_initialized()
        if was_in_use:
            self._reset_peaks()
        if self.has_events:
            self._record()
            if was_in_use:
                # What is there already has no events; its peaks are not this recording's.
                self._base = torch._C._cuda_memorySnapshot(None)["segments"]
                self._base_allocs = self._drained_allocs = self._num_allocs()
            torch.cuda.memory._set_memory_metadata(self._stamp)
        self._is_on = True

    def _num_allocs(self) -> int:
        return int(torch._C._cuda_memoryStats(self._index)["allocation"]["all"]["allocated"])

    def base_segments(self) -> list[Any]:
        """Segments of this device that were there when recording began."""
        return [segment for segment in self._base if segment["device"] == self._index]

    def _record(self) -> None:
        torch.cuda.memory._record_memory_history(
            "all",
            context="alloc" if self._stacks else None,
            stacks="python",
            max_entries=MAX_EVENTS,
            clear_history=True,
        )

    @property
    def is_on(self) -> bool:
        """Whether the program has started CUDA."""
        return self._is_on

    def read(self) -> Reading:
        """Counters and device memory of this moment; at level stage the allocator's peaks begin anew.

        There is no other way to the peak of a span without events. So what torch.cuda.max_memory_allocated() tells the
        program at that level is of the time since the last boundary of a span.
        """
        reading = self.peek()
        if self._is_on and not self.has_events:
            self._reset_peaks()
        return reading

    def peek(self) -> Reading:
        """Counters and device memory of this moment."""
        host_rss = self._host_rss.read()
        if not self._is_on:
            used = 0 if self._device is None else self._device.used_bytes()
            return Reading(self._clock.now_ns(), 0, 0, 0, used, host_rss, 0, 0, 0, 0, 0, 0)
        stats = torch._C._cuda_memoryStats(self._index)
        allocated, reserved, active = (stats[name]["all"]["current"] for name in _CURVES)
        peaks = (-1, -1, -1) if self.has_events else self._tops(stats)
        return Reading(
            # Last: while the allocator talks to the driver, the counters may come seconds after they were asked for.
            t_ns=self._clock.now_ns(),
            allocated=allocated,
            reserved=reserved,
            active=active,
            device_used=self._device_used(),
            host_rss=host_rss,
            allocated_peak=peaks[0],
            reserved_peak=peaks[1],
            active_peak=peaks[2],
            num_allocs=stats["allocation"]["all"]["allocated"],
            num_segments=stats["segment"]["all"]["allocated"],
            num_retries=stats["num_alloc_retries"],
        )

    def answers(self) -> bool:
        """Whether the allocator can be asked from another thread than the model's.

        It keeps its lock while it waits for the device: for ever where a collective hangs and memory is to be freed.
        torch waits for that lock with Python's own in hand, and then no thread could tell where the model is. So the
        model's must be seen to get on.
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
            # After a fault (an assertion in a kernel, a bad address) CUDA answers every call with it. The model hears
            # of it by itself, and what was recorded up to here is wanted all the more.
            return self._used
        self._used = total - free
        return self._used

    def peaks(self) -> tuple[int, int]:
        """The allocator's own peaks since recording began: allocated and reserved bytes."""
        if not self._is_on:
            return 0, 0
        allocated, reserved, _ = self._tops(torch._C._cuda_memoryStats(self._index))
        return allocated, reserved

    def stamp(self, span_id: int) -> None:
        """Events of this thread from now on carry `span_id`."""
        self._stamp = str(span_id)
        if self._is_on and self.has_events:
            torch.cuda.memory._set_memory_metadata(self._stamp)

    def pending(self, reading: Reading) -> int:
        """About three events an allocation: it is made, asked to be freed, and freed; and those left in the ring.

        The latter so that the ring is emptied at the next boundary: past MAX_KEPT_EVENTS the rows of spans would
        be written before their events are taken.
        """
        if not self.has_events:
            return 0
        return 3 * (reading.num_allocs - self._drained_allocs) + self._num_taken

    def drain(self) -> Batch:
        """Take the recorded events, and empty the ring where that loses none.

        On another thread it would: the model goes on, and what it allocates between the copy and the emptying would be
        gone. So there the ring is left as it is, and the next call passes over what was taken.
        """
        is_safe = threading.get_ident() == self._thread
        if not (self._is_on and self.has_events) or (not is_safe and self._num_taken > MAX_KEPT_EVENTS):
            return Batch([], None)
        before = self._counters()
        # Before the copy: torch draws its line as it begins, and the copy may take long.
        times = self._clock.times(self._drained_ns)
        snapshot = torch._C._cuda_memorySnapshot(None)
        self._drained_ns = times.now_ns
        trace = snapshot["device_traces"][self._index]
        events = trace[self._num_taken :]
        self._num_taken = 0 if is_safe else len(trace)
        if is_safe:
            self._record()
        after = self._counters()
        self._drained_allocs = after.num_allocs
        return Batch(
            events,
            after if before == after else None,
            before.num_allocs - self._base_allocs,
            snapshot.get("allocator_settings", {}),
            times,
        )

    def _counters(self) -> Reading:
        stats = torch._C._cuda_memoryStats(self._index)
        allocated, reserved, active = (stats[name]["all"]["current"] for name in _CURVES)
        num_allocs = stats["allocation"]["all"]["allocated"]
        return Reading(0, allocated, reserved, active, 0, 0, -1, -1, -1, num_allocs, 0, 0)

    def stop(self) -> None:
        """Stop recording events, and give torch its functions back."""
        for name, reset in self._resets.items():
            setattr(torch._C, name, reset)
        self._resets = {}
        if self._is_on and self.has_events:
            torch.cuda.memory._record_memory_history(None)
        self._is_started = self._is_on = False
