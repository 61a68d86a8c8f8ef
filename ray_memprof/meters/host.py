"""The host meter: live storages of CPU or fake tensors, so that runs without a GPU fill the same tables.

A storage counts from the operation that made it until it is freed, with its exact bytes. What torch did not make (a
NumPy array, a mapped file) is not counted. A buffer that one operation makes and frees inside itself is not seen.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from ray_memprof.clock import Clock
from ray_memprof.meters import Batch, HostRss, Reading


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among an operation's arguments or results, which hold them plainly or in lists: a tenth of tree_iter."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class HostMeter(TorchDispatchMode):
    """Measures the storages that operations of one thread make: the thread that calls start().

    Args:
        events: keep an event for each storage made or freed.
        source: cpu for real tensors, predicted for fake ones.
        clock: tells the time.
    """

    def __init__(self, *, events: bool, source: str = "cpu", clock: Clock | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.has_events, self._clock = source, events, clock or Clock()
        self._allocated = self._peak = self._whole_peak = self._num_allocs = 0
        self._sizes: dict[int, int] = {}
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._events: list[dict[str, Any]] = []
        self._stamp = "0"
        # Storages may be freed by the garbage collector, inside any line of this thread or another one.
        self._lock = threading.RLock()
        self._host_rss = HostRss()
        self._resize: Any = None

    @property
    def is_on(self) -> bool:
        """Host memory needs no start of a device."""
        return True

    def start(self) -> None:
        """Begin to count, on the calling thread."""
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resized()  # type: ignore[method-assign]
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End; on the thread that started."""
        if self._resize is not None:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
            self._resize = None

    def _resized(self) -> Any:
        """FSDP gives memory back by making a storage smaller, which is no operation."""
        resize, meter = self._resize, self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            number = meter._numbers.get(storage)
            if number is not None:
                meter._change(number, storage.nbytes())
            return result

        return resize_

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the storages that it made."""
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        if any(is_traceable_wrapper_subclass(tensor) for tensor in given):
            # A DTensor and its like: their own handler first, then the plain tensors inside come here.
            return NotImplemented
        known = {tensor.untyped_storage()._cdata for tensor in given if not tensor.is_meta}
        result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in known or storage in self._numbers:
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        number = self._numbers.get(storage)
        if number is None:
            with self._lock:
                self._num_allocs += 1
                number = self._num_allocs
            self._numbers[storage] = number
            weakref.finalize(storage, self._change, number, 0)
        self._change(number, storage.nbytes())

    def _change(self, number: int, size: int) -> None:
        """Storage `number` now has `size` bytes; 0: it is gone."""
        with self._lock:
            before = self._sizes.get(number, 0)
            if before == size:
                return
            if before:
                del self._sizes[number]
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
        if self.has_events:
            self._events.append(
                {
                    "action": action,
                    "addr": number,
                    "size": size,
                    "stream": 0,
                    "time_us": self._clock.now_ns() // 1000,
                    "user_metadata": self._stamp,
                }
            )

    def read(self) -> Reading:
        """Live bytes of this moment; what the device has in use is the resident memory of the process."""
        with self._lock:
            reading = self.peek()
            self._peak = self._allocated
            return reading

    def peek(self) -> Reading:
        """As read(); no peak begins anew."""
        host_rss = self._host_rss.read()
        with self._lock:
            live, peak = self._allocated, -1 if self.has_events else self._peak
            now, num_allocs = self._clock.now_ns(), self._num_allocs
        return Reading(now, live, live, live, host_rss, host_rss, peak, peak, peak, num_allocs, 0, 0)

    def peaks(self) -> tuple[int, int]:
        """Most live bytes since the meter began, for allocated and reserved alike."""
        return self._whole_peak, self._whole_peak

    def stamp(self, span_id: int) -> None:
        """Events from now on carry `span_id`."""
        self._stamp = str(span_id)

    def pending(self, reading: Reading) -> int:
        """Events that wait."""
        return len(self._events)

    def answers(self) -> bool:
        """Always: its lock is held for microseconds."""
        return True

    def drain(self) -> Batch:
        """Take the events that wait."""
        with self._lock:
            events, self._events = self._events, []
            return Batch(events, self.peek())

    def base_segments(self) -> list[Any]:
        """Nothing: what was there before is not counted."""
        return []
