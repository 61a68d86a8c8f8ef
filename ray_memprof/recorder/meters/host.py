"""The host meter: live storages of CPU or fake tensors, so that runs without a GPU fill the same tables.

A storage counts from the operation that made it until it is freed, with its exact bytes. Operations are seen on the
thread that calls start(), in backward passes that it runs, and on threads of Python's threading that are started after
it; what these threads make belongs to the span that is open on the first thread. Operations of other threads are not
seen: those of threads that were there before, and of threads that C++ starts. Memory that torch did not make (a NumPy
array) is no tensor: the ledger of the process has it (host_ledger.py). A buffer that one operation makes and frees
inside itself is not seen.
"""

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any, Literal

import torch
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from ray_memprof.recorder.after_import import after_import
from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.meters.mapped_files import MappedFiles
from ray_memprof.recorder.meters.meter import Batch, HostPages, Pages, Reading
from ray_memprof.recorder.meters.tensors import tensors_of
from ray_memprof.recorder.replacements import Replacements

_BETWEEN = (__file__, f"{torch.__path__[0]}/_compile.py", f"{torch.__path__[0]}/_dynamo/")
"""Files whose frames lie between an operation and the meter: no part of the program's stack."""

_Kind = Literal["file_tensors", "shared_tensors"]
"""Fields of Pages."""


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor; None: it has none, as sparse tensors and those of mkldnn, or none with memory (meta)."""
    has_storage: bool = torch._C._has_storage(tensor)
    return tensor.untyped_storage() if has_storage and not tensor.is_meta else None


class _Operations(TorchDispatchMode):
    """Sees the operations of the thread that enters it: torch has a stack of modes for every thread."""

    supports_higher_order_operators = True

    def __init__(self, meter: "HostMeter") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch.compile works beside this mode; else it would refuse to compile the program."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch's own guard would import torch.compile with the first operation; see _guard()."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the storages that it made."""
        kwargs = kwargs or {}
        if not self._meter.is_counting:
            return func(*args, **kwargs)
        given = list(tensors_of((*args, *kwargs.values())))
        if any(is_traceable_wrapper_subclass(tensor) for tensor in given):
            # For a DTensor and the like: its own handler runs first, then the plain tensors inside come here.
            return NotImplemented
        known = {storage._cdata for tensor in given if (storage := _storage_of(tensor)) is not None}
        result = func(*args, **kwargs)
        self._meter.count(result, known)
        return result


_UNGUARDED = _Operations.__torch_dispatch__


def _guard() -> None:
    """Keep torch.compile out of the meter: inside a compiled program it would compile what the meter does, too.

    Importing torch._dynamo takes a second and 100 MB, so that only a program that imports it itself has it.
    """
    if _Operations.__torch_dispatch__ is _UNGUARDED:
        _Operations.__torch_dispatch__ = _disable_dynamo(_UNGUARDED)  # type: ignore[method-assign]


class HostMeter:
    """Measures the storages that operations make.

    Args:
        events: keep an event for each storage made or freed.
        source: cpu for real tensors, predicted for fake ones.
        stacks: keep the Python stack of each storage made (1 us a frame).
        clock: tells the time.
    """

    def __init__(
        self, *, events: bool, source: str = "cpu", stacks: bool = False, clock: Clock | None = None
    ) -> None:
        self.source, self.has_events, self._has_stacks = source, events, stacks
        self._clock = clock or Clock()
        self.is_counting = False
        """Whether operations are counted: between start() and stop(), but never in a forked child."""
        self._allocated = self._peak = self._whole_peak = self._num_allocs = 0
        self._sizes: dict[int, int] = {}
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._events: list[dict[str, Any]] = []
        self._stamp = "0"
        # Storages may be freed by the garbage collector, inside any line of this thread or another one.
        self._lock = threading.RLock()
        self._host_pages, self._files = HostPages(), MappedFiles()
        self._of_kind: Counter[_Kind] = Counter()
        self._kinds: dict[int, _Kind] = {}
        self._operations: _Operations | None = None
        self._replaced, self._guarded = Replacements(), ExitStack()
        self._frames: dict[tuple[Any, int], dict[str, Any]] = {}
        silent_in_children(self)

    def forked(self) -> None:
        """In a forked child nothing is counted, and nothing waits for the old lock."""
        self.is_counting, self._lock = False, threading.RLock()

    @property
    def is_on(self) -> bool:
        """Host memory needs no start of a device."""
        return True

    def start(self) -> None:
        """Begin to count, on the calling thread and on those that are started from now on."""
        self.is_counting = True
        self._guarded.enter_context(after_import("torch._dynamo", _guard))
        self._replaced.put(torch.UntypedStorage, "resize_", self._resized())
        hearing = self._files.hearing(torch.UntypedStorage.from_file)
        self._replaced.put(torch.UntypedStorage, "from_file", hearing)
        self._replaced.put(torch.UntypedStorage, "share_memory_", self._shared())
        self._replaced.put(threading.Thread, "start", self._hearing(threading.Thread.start))
        self._operations = _Operations(self)
        self._operations.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End; call it on the thread that called start()."""
        if self._operations is not None:
            self._operations.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._operations = None
        self._replaced.take_back()
        self._guarded.close()
        self.is_counting = False

    def _hearing(self, start: Callable[..., None]) -> Callable[..., None]:
        """Return a Thread.start that counts the thread's operations from its first line to its last."""
        meter = self

        def start_heard(thread: threading.Thread) -> None:
            if meter.is_counting:
                run = thread.run

                def run_heard() -> None:
                    with suppress(AttributeError):
                        del thread.run  # only this thread's own attribute; the class still has run()
                    with _Operations(meter):
                        run()

                thread.run = run_heard  # type: ignore[method-assign]
            start(thread)

        return start_heard

    def _resized(self) -> Any:
        """FSDP gives memory back by making a storage smaller, which is no operation."""
        resize, meter = torch.UntypedStorage.resize_, self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            number = meter._numbers.get(storage)
            if number is not None:
                meter._change(number, storage.nbytes())
            return result

        return resize_

    def _shared(self) -> Any:
        """A storage that is counted moves into shared memory, which is no operation either."""
        share, meter = torch.UntypedStorage.share_memory_, self

        def share_memory_(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
            result = share(storage, *args, **kwargs)
            number = meter._numbers.get(storage)
            if number is not None:
                meter._moved(number, storage)
            return result

        return share_memory_

    def _moved(self, number: int, storage: torch.UntypedStorage) -> None:
        """A storage lies in shared memory from now on."""
        with self._lock:
            if number not in self._kinds and storage.is_shared():
                self._kinds[number] = "shared_tensors"
                self._of_kind["shared_tensors"] += self._sizes.get(number, 0)

    def count(self, result: Any, known: set[int]) -> None:
        """Count the storages of an operation's result that are none of those `known` from its arguments."""
        for tensor in tensors_of((result,)):
            if isinstance(tensor, FakeTensor) and self.source != "predicted":
                continue  # it takes no memory: torch.compile and torch.export look at the program with such tensors
            storage = _storage_of(tensor)
            if storage is not None and (storage._cdata not in known or storage in self._numbers):
                self._count(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        with self._lock:
            number = self._numbers.get(storage)
            if number is None:
                self._num_allocs += 1
                number = self._numbers[storage] = self._num_allocs
                if self.source == "cpu" and (kind := self._kind(storage)) is not None:
                    self._kinds[number] = kind
                # What lives until the process ends is not freed before.
                weakref.finalize(storage, self._change, number, 0).atexit = False
        self._change(number, storage.nbytes())

    def _kind(self, storage: torch.UntypedStorage) -> "_Kind | None":
        """In which kind of memory a storage lies; None: private memory."""
        if self._files.holds(storage):
            return "file_tensors"
        return "shared_tensors" if storage.is_shared() else None

    def _change(self, number: int, size: int) -> None:
        """Storage `number` now has `size` bytes; 0: it is gone."""
        if not self.is_counting:
            return
        with self._lock:
            before = self._sizes.get(number, 0)
            if before == size:
                return
            if (kind := self._kinds.get(number)) is not None:
                self._of_kind[kind] += size - before
            if before:
                del self._sizes[number]
                if not size:
                    self._kinds.pop(number, None)
                self._allocated -= before
                self._note("free_requested", number, before)
                self._note("free_completed", number, before)
            if size:
                self._sizes[number] = size
                self._allocated += size
                self._note("alloc", number, size)
                self._peak = max(self._peak, self._allocated)
                self._whole_peak = max(self._whole_peak, self._allocated)

    def _note(self, action: str, number: int, size: int) -> None:
        if not self.has_events:
            return
        event = {
            "action": action,
            "addr": number,
            "size": size,
            "stream": 0,
            "time_us": self._clock.now_ns() // 1000,
            "user_metadata": self._stamp,
        }
        if self._has_stacks and action == "alloc":
            event["frames"] = self._stack()
        self._events.append(event)

    def _stack(self) -> list[dict[str, Any]]:
        """Return the stack of the operation that runs on this thread, the innermost frame first."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
            frame = frame.f_back
        frames = []
        while frame is not None:
            place = (frame.f_code, frame.f_lasti)
            known = self._frames.get(place)
            if known is None:
                code = frame.f_code
                known = self._frames[place] = {
                    "name": code.co_name, "filename": code.co_filename, "line": frame.f_lineno or 0
                }  # fmt: skip
            frames.append(known)
            frame = frame.f_back
        return frames

    def read(self) -> Reading:
        """Read the live bytes of this moment; device_used is the resident memory of the process."""
        with self._lock:
            reading = self.peek()
            self._peak = self._allocated
            return reading

    def peek(self) -> Reading:
        """As read(); no peak begins anew."""
        host_rss, pages = self._host_pages.read()
        with self._lock:
            if pages is not None:
                of_kind = self._of_kind
                pages = Pages(pages.files, pages.shared, of_kind["file_tensors"], of_kind["shared_tensors"])
            live, peak = self._allocated, -1 if self.has_events else self._peak
            now, num_allocs = self._clock.now_ns(), self._num_allocs
        return Reading(now, live, live, live, host_rss, host_rss, peak, peak, peak, num_allocs, 0, 0, pages)

    def peaks(self) -> tuple[int, int]:
        """Most live bytes since the meter began, for allocated and reserved alike."""
        return self._whole_peak, self._whole_peak

    def locate(self, tensor: torch.Tensor) -> tuple[int, int, int] | None:
        """The number of the storage of a tensor and its bytes, with the time of now; None: it is not counted."""
        if not (self.is_counting and self.has_events) or tensor.is_meta:
            return None
        storage = tensor.untyped_storage()
        number, num_bytes = self._numbers.get(storage), storage.nbytes()
        if number is None or not num_bytes:
            return None
        return self._clock.now_ns() // 1000, number, num_bytes

    def stamp(self, span_id: int) -> None:
        """Events from now on carry `span_id`."""
        self._stamp = str(span_id)

    def pending(self, reading: Reading) -> int:
        """Return the number of waiting events."""
        return len(self._events)

    def answers(self) -> bool:
        """Always True: the lock of this meter is held for microseconds."""
        return True

    def drain(self) -> Batch:
        """Take the waiting events."""
        with self._lock:
            events, self._events = self._events, []
            return Batch(events, self.peek())

    def base_segments(self) -> list[Any]:
        """Return nothing: memory that was there before is not counted."""
        return []
