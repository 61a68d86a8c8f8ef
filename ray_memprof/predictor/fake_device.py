"""A GPU that is not there: its memory, by the rules of torch's caching allocator, and its time, by a profile.

    device = FakeDevice(profile, Rules())
    device.make(storage)                     # a storage of an operation's result; it is freed when it is gone
    with device.holding(workspace_bytes): ...
    device.run(work)                         # queues a kernel on the current stream
    device.used                              # what nvidia-smi would say

Memory outside the allocator is `outside`: the accounts are those of outside.py. Where `log` is a list, whatever changes
the device adds an entry to it, so that repeats.py can play it back: a name, then what it was called with.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ray_memprof.allocator.caching import Block, CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.rules import Rules
from ray_memprof.predictor.gpu_profile import GpuProfile

_QUEUE_LENGTH = 1024
"""Kernels that wait on the device before the host must wait."""


class Stream:
    """A queue of the device; the allocator has pools of its own for each."""

    def __init__(self, device: "FakeDevice") -> None:
        self._device, self.free_ns = device, 0
        self.number = self.cuda_stream = device.num_streams
        device.num_streams += 1
        self.device = torch.device("cuda:0")
        device.note("stream.new")

    def wait_stream(self, other: "Stream") -> None:
        """Begin no more work before the other stream has done what it has now."""
        self._device.note("wait_stream", self, other)
        self.free_ns = max(self.free_ns, other.free_ns)

    def wait_event(self, event: Any) -> None:
        """Begin no more work before the event."""
        self._device.note("wait_event", self, event)
        self.free_ns = max(self.free_ns, event.done_ns)

    def record_event(self, event: Any = None) -> Any:
        """A new event, at the end of what is queued."""
        event = torch.cuda.Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait until the stream has nothing more to do."""
        self._device.note("stream.synchronize", self)
        self._device.wait_until(self.free_ns)

    def query(self) -> bool:
        """Whether the stream has nothing more to do."""
        self._device.note("stream.query")
        return self.free_ns <= self._device.now_ns

    def __enter__(self) -> "Stream":
        self._before = self._device.stream
        self._device.set_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._device.set_stream(self._before)


class FakeDevice:
    """One device.

    Args:
        profile: the GPU.
        rules: of the allocator.
        keeps_events: False: take_events() has none, and they take no memory.
    """

    def __init__(self, profile: GpuProfile, rules: Rules, *, keeps_events: bool = True) -> None:
        self.profile, self.rules = profile, rules
        self.allocator = CachingAllocator(rules, keeps_events=keeps_events)
        self.has_context = False
        self.num_allocs = 0
        self.num_segments = 0
        self.outside = 0
        """Bytes on the device that are not the allocator's."""
        self.host_bytes = 0
        """Bytes of fake tensors in host memory."""
        self.now_ns = 0
        self.log: list[tuple[Any, ...]] | None = None
        """What the device is asked for, while somebody listens."""
        self.num_streams = 0
        self.default_stream = self.stream = Stream(self)
        self._blocks: weakref.WeakKeyDictionary[torch.UntypedStorage, Block] = weakref.WeakKeyDictionary()
        self._owners: dict[Block, weakref.ref[torch.UntypedStorage]] = {}
        self._finalizers: weakref.WeakKeyDictionary[torch.UntypedStorage, Any] = weakref.WeakKeyDictionary()
        self._emptied: weakref.WeakKeyDictionary[torch.UntypedStorage, bool] = weakref.WeakKeyDictionary()
        self._pending: dict[Block, int] = {}
        """Blocks that other streams use, whose free is requested; the time at which those streams have passed."""
        self._users: dict[Block, list[Stream]] = {}
        """The other streams that use a block."""
        self._used_seen = 0
        self.on_growth: Callable[[], None] = lambda: None
        """Called when more of the device is in use than before."""
        self._queued: deque[int] = deque(maxlen=_QUEUE_LENGTH)
        self.span_id = 0
        self.stamps: list[int] = []
        """The span of each event of the allocator that is not taken yet."""
        self.times_us: list[int] = []

    @property
    def used(self) -> int:
        """Bytes in use on the device."""
        return self.allocator.reserved + self.outside

    def note(self, *entry: Any) -> None:
        """Tell who listens what the device is asked for."""
        if self.log is not None:
            self.log.append(entry)

    # ------------------------------------------------------------------------------
    # Memory

    def start(self) -> None:
        """Make the context, if there is none."""
        if not self.has_context:
            self.has_context = True
            self.add_outside(self.profile.context_bytes)

    def add_outside(self, size: int) -> None:
        """The driver or a library takes memory. Raises torch.OutOfMemoryError where the device has less."""
        if size:
            self.note("outside", size)
        if size > self.profile.total_bytes - self.used:
            raise self._out_of_memory(size)
        self.outside += size
        # What is outside of it the allocator cannot have.
        self.allocator.device_bytes = self.profile.total_bytes - self.outside

    def make(self, storage: torch.UntypedStorage) -> None:
        """Give memory to a storage, until it is gone."""
        size = storage.nbytes()
        if not size or storage in self._blocks:
            return
        self.give(storage, self.alloc(size))

    def give(self, storage: torch.UntypedStorage, block: Block) -> None:
        """Let a storage own a block from now on, instead of the one that it may have: that one is not freed."""
        self.take_away(storage)
        self._blocks[storage], self._owners[block] = block, weakref.ref(storage)
        self._finalizers[storage] = weakref.finalize(storage, self.free, block)
        self._finalizers[storage].atexit = False

    def take_away(self, storage: torch.UntypedStorage) -> None:
        """Let a storage own its block no more; the block is not freed."""
        self._blocks.pop(storage, None)
        finalizer = self._finalizers.pop(storage, None)
        if finalizer is not None:
            finalizer.detach()

    def owner_of(self, block: Block) -> torch.UntypedStorage | None:
        """The storage that owns a block; None: the block is free, or no storage's."""
        owner = self._owners.get(block)
        return None if owner is None else owner()

    def block_of(self, storage: torch.UntypedStorage) -> Block | None:
        """Where the storage is."""
        return self._blocks.get(storage)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """A storage that has memory here, or had, has another size now."""
        if storage not in self._blocks and storage not in self._emptied:
            return
        block = self._blocks.pop(storage, None)
        if block is not None:
            self._finalizers.pop(storage)()
            self._emptied[storage] = True
        self.make(storage)

    def make_host(self, storage: torch.UntypedStorage) -> None:
        """Count a storage in host memory, until it is gone."""
        size = storage.nbytes()
        self.note("host", size)
        self.host_bytes += size
        weakref.finalize(storage, self._free_host, size).atexit = False

    def _free_host(self, size: int) -> None:
        self.note("host", -size)
        self.host_bytes -= size

    def alloc(self, size: int) -> Block:
        """A block for a request of `size` bytes."""
        self.start()
        self._take_back()
        try:
            block = self.allocator.alloc(size, self.stream.number)
        except OutOfDeviceMemory as error:
            self._stamp()
            raise self._out_of_memory(size) from error
        self.num_allocs += 1
        self.note("alloc", size, block)
        self._stamp()
        return block

    def _out_of_memory(self, size: int) -> torch.OutOfMemoryError:
        free = self.profile.total_bytes - self.used
        return torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / 2**20:,.2f} MiB. GPU 0 has a total capacity of "
            f"{self.profile.total_bytes / 2**30:.2f} GiB of which {free / 2**20:,.2f} MiB is free. (predicted)"
        )

    def record_stream(self, storage: torch.UntypedStorage, stream: Stream) -> None:
        """As Tensor.record_stream(): once freed, the block waits for what that stream has to do by then."""
        self.use(self._blocks[storage], stream)

    def use(self, block: Block, stream: Stream) -> None:
        """The same for a block."""
        self.note("record_stream", block, stream)
        self._users.setdefault(block, []).append(stream)

    def free(self, block: Block) -> None:
        """Give a block back to the allocator: at once, or at a request after the streams that use it have passed."""
        self.note("free", block)
        self._owners.pop(block, None)
        users = self._users.pop(block, None)
        if users is None:
            self.allocator.free(block)
        else:
            self._pending[block] = max(stream.free_ns for stream in users)
            self.allocator.free_later(block)
        self._stamp()

    def _take_back(self) -> None:
        """Give the allocator the blocks whose streams have passed; it looks for them at each request."""
        for block in [one for one, time_ns in self._pending.items() if time_ns <= self.now_ns]:
            del self._pending[block]
            self.allocator.complete(block)

    def empty_cache(self) -> None:
        """As torch.cuda.empty_cache()."""
        self.note("empty_cache")
        self.synchronize()
        self.wait_until(max(self._pending.values(), default=0))
        self._pending.clear()
        self.allocator.empty_cache()
        self._stamp()

    def _stamp(self) -> None:
        if self.used > self._used_seen:
            self.on_growth()
        self._used_seen = self.used
        num = self.allocator.num_waiting_events - len(self.stamps)
        if num:
            self.stamps += [self.span_id] * num
            self.times_us += [self.now_ns // 1000] * num

    def take_events(self) -> tuple[Columns, list[int], list[int]]:
        """The allocator's events since the last call, with their times (us) and spans."""
        columns, times, stamps = self.allocator.take_events(), self.times_us, self.stamps
        self.times_us, self.stamps = [], []
        return columns, times, stamps

    @contextmanager
    def holding(self, *sizes: int) -> Iterator[None]:
        """Memory that a kernel needs while it is queued."""
        blocks = [self.alloc(size) for size in sizes if size]
        try:
            yield
        finally:
            for block in blocks:
                self.free(block)

    # ------------------------------------------------------------------------------
    # Time

    def run(self, duration_ns: int) -> None:
        """Queue a kernel on the current stream; 0 ns: there is none, only the host is busy."""
        self.note("run", duration_ns)
        self.now_ns += self.profile.launch_ns if duration_ns else self.profile.view_ns
        if duration_ns:
            self.stream.free_ns = max(self.stream.free_ns, self.now_ns) + duration_ns
            # The host does not run ahead without end: the queue of the device is full.
            self._queued.append(self.stream.free_ns)
            if len(self._queued) == self._queued.maxlen:
                self.wait_until(self._queued[0])

    def occupy(self, stream: Stream, duration_ns: int) -> None:
        """Let a stream be busy for so long, from the moment at which it has nothing else to do; the host is not."""
        self.note("occupy", stream, duration_ns)
        stream.free_ns = max(stream.free_ns, self.now_ns) + duration_ns

    def wait_until(self, time_ns: int) -> None:
        """Let the host wait."""
        self.now_ns = max(self.now_ns, time_ns)

    def synchronize(self) -> None:
        """Let the host wait for the current stream."""
        self.note("synchronize")
        self.wait_until(max(self.stream.free_ns, self.default_stream.free_ns))

    def set_stream(self, stream: Stream) -> None:
        """Queue kernels on that stream from now on."""
        self.note("set_stream", stream)
        self.stream = stream

    def on(self, stream: Stream | None) -> Any:
        """As torch.cuda.stream()."""
        return self.stream if stream is None else stream
