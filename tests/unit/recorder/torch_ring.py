"""torch's ring of allocator events and what _record_memory_history and _snapshot do with it, as torch 2.11 does it.

Facts of c10/cuda/CUDACachingAllocator.cpp: an array is appended to while it is shorter than max_entries, then a cursor
runs over it. Setting max_entries empties nothing; clear_history and enabled=None do. A snapshot copies the trace first
and then writes an event `snapshot` with the stamp of its thread. Times are reckoned from a counter at every snapshot
anew, so that they may differ by microseconds from copy to copy.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

KIB = 1024


@dataclass
class TorchRing:
    """Of one device."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    most: int = 1
    cursor: int = 0
    is_on: bool = False

    def write(self, **event: Any) -> None:
        """An event of the allocator."""
        if not self.is_on:
            return
        if len(self.entries) < self.most:
            self.entries.append(event)
            return
        self.entries[self.cursor] = event
        self.cursor += 1
        if self.cursor == self.most:
            self.cursor = 0

    def clear(self) -> None:
        self.cursor = 0
        self.entries.clear()

    def copy(self, shift_us: int = 0) -> list[dict[str, Any]]:
        ordered = self.entries[self.cursor :] + self.entries[: self.cursor]
        return [{**event, "time_us": event["time_us"] + shift_us} for event in ordered]


@dataclass
class TorchHistory:
    """The functions of torch._C, with the rings of `num_devices` and each thread's own stamp."""

    num_devices: int = 1
    rings: list[TorchRing] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    """Arguments of _cuda_record_memory_history."""
    now_us: int = 1_000_000
    shift_us: int = 0
    during_copy: Callable[[], None] = lambda: None
    """What other threads do between the copy of a trace and its marker."""
    after_copy: Callable[[], None] = lambda: None
    """What they do before the caller goes on."""
    context: str | None = None
    num_snapshots: int = 0

    def __post_init__(self) -> None:
        self.rings = [TorchRing() for _ in range(self.num_devices)]
        self.local = threading.local()

    def set_metadata(self, text: str) -> None:
        self.local.text = text

    def get_metadata(self) -> str:
        return getattr(self.local, "text", "")

    def record(
        self, enabled: str | None, context: str | None, stacks: str, max_entries: int, clear_history: bool,
        compile_context: bool = False, annotations: bool = False, skip_actions: Any = (),
    ) -> None:  # fmt: skip
        if enabled not in (None, "state", "all") or context not in (None, "state", "alloc", "all"):
            raise RuntimeError("expected state to be 'state', 'all', or None")
        self.calls.append((enabled, context, stacks, max_entries, clear_history))
        self.context = context if enabled else None
        for ring in self.rings:
            ring.is_on, ring.most = enabled is not None, max(1, max_entries if enabled == "all" else 1)
            if enabled is None or clear_history:
                ring.clear()

    def record_legacy(
        self, enabled: bool, record_context: bool = True, max_entries: int = 1, record_alloc_context: bool = False,
        cpp: bool = False, clear_history: bool = False, *rest: Any,
    ) -> None:  # fmt: skip
        context = "alloc" if record_alloc_context else "state" if record_context else None
        self.record(
            "all" if enabled else None, context, "all" if cpp else "python", max_entries, clear_history
        )

    def is_enabled(self) -> bool:
        return self.rings[0].is_on

    def event(self, action: str, addr: int, size: int, *, device: int = 0, **more: Any) -> None:
        self.now_us += 1
        frames = {}
        if self.context == "all" or (self.context == "alloc" and action in ("alloc", "segment_alloc")):
            frames = {"frames": [{"name": "f", "filename": "program.py", "line": size}]}
        self.rings[device].write(
            action=action, addr=addr, size=size, stream=0, time_us=self.now_us, user_metadata=self.get_metadata(),
            compile_context="N/A", **frames, **more,
        )  # fmt: skip

    def snapshot(self, pool: Any = None) -> dict[str, Any]:
        self.num_snapshots += 1
        traces = []
        for device, ring in enumerate(self.rings):
            traces.append(ring.copy(self.shift_us))
            if device == 0:
                self.during_copy()
            self.event("snapshot", 0, 77, device=device)
        self.after_copy()
        return {
            "segments": [{"device": device, "blocks": []} for device in range(self.num_devices)],
            "device_traces": traces,
            "allocator_settings": {"expandable_segments": True},
            "external_annotations": [],
        }


@dataclass
class FakeCuda(TorchHistory):
    """What the meter calls of torch: an allocator with counters and its history, and a start of its own.

    Blocks are as large as what is asked for, and a segment each.
    """

    is_on: bool = False
    has_context: bool = False
    is_lazy: bool = False
    """Its start makes no context; the first allocation does."""
    queued: list[Callable[[], None]] = field(default_factory=list)
    current: int = 0
    peak: int = 0
    num_allocs: int = 0
    num_frees: int = 0
    blocks: dict[int, int] = field(default_factory=dict)
    is_broken: bool = False
    backend: str = "native"
    stats_error: Exception | None = None

    def start(self) -> None:
        """The program starts CUDA."""
        for call in self.queued:
            call()
        self.is_on, self.has_context = True, not self.is_lazy

    def lazy_call(self, call: Callable[[], None]) -> None:
        if self.is_on:
            call()
        else:
            self.queued.append(call)

    def alloc(self, size: int = KIB) -> int:
        """A tensor of this thread; its address."""
        self.has_context = True
        self.num_allocs += 1
        address = self.num_allocs
        self.blocks[address] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        self.event("alloc", address, size)
        return address

    def free(self, address: int) -> None:
        size = self.blocks.pop(address)
        self.num_frees += 1
        self.current -= size
        self.event("free_requested", address, size)
        self.event("free_completed", address, size)

    def stats(self, index: int) -> dict[str, Any]:
        if self.stats_error is not None:
            raise self.stats_error
        held = {"all": {"current": self.current, "peak": self.peak}}
        return {
            "allocated_bytes": held, "reserved_bytes": held, "active_bytes": held, "num_alloc_retries": 2,
            "allocation": {"all": {"allocated": self.num_allocs, "freed": self.num_frees}},
            "active": {"all": {"allocated": self.num_allocs, "freed": self.num_frees}},
            "segment": {"all": {"allocated": 1}},
        }  # fmt: skip

    def snapshot(self, pool: Any = None) -> dict[str, Any]:
        held = {"device": 0, "total_size": self.current}
        return {**super().snapshot(pool), "segments": [held, {"device": 1}]}

    def reset_peak(self, index: int = 0) -> None:
        if self.stats_error is not None:
            raise self.stats_error
        self.peak = self.current

    def reset_counts(self, index: int = 0) -> None:
        self.num_allocs = self.num_frees = 0

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self.has_context = True
        if self.is_broken:
            raise RuntimeError("device-side assert triggered")
        return 100 * KIB - self.current, 100 * KIB

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put all this where torch has it."""
        for where, name, function in (
            (torch.cuda, "_lazy_call", self.lazy_call),
            (torch.cuda, "is_initialized", lambda: self.is_on),
            (torch.cuda, "get_allocator_backend", lambda: self.backend),
            (torch.cuda, "mem_get_info", self.mem_get_info),
            (torch._C, "_accelerator_resetPeakStats", self.reset_peak),
            (torch._C, "_cuda_resetPeakMemoryStats", self.reset_peak),
            (torch._C, "_accelerator_resetAccumulatedStats", self.reset_counts),
            (torch._C, "_cuda_resetAccumulatedMemoryStats", self.reset_counts),
            (torch._C, "_cuda_hasPrimaryContext", lambda index: self.has_context),
            (torch._C, "_cuda_memoryStats", self.stats),
            (torch._C, "_cuda_memorySnapshot", self.snapshot),
            (torch._C, "_cuda_record_memory_history", self.record),
            (torch._C, "_cuda_record_memory_history_legacy", self.record_legacy),
            (torch._C, "_cuda_isHistoryEnabled", self.is_enabled),
            (torch._C, "_cuda_setMemoryMetadata", self.set_metadata),
            (torch._C, "_cuda_getMemoryMetadata", self.get_metadata),
        ):
            monkeypatch.setattr(where, name, function, raising=False)
