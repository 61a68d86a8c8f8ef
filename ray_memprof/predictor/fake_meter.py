"""The meter of a predicted rank: reads a FakeDevice, in the terms of meters/meter.py."""

from typing import Any

import torch

from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.recorder.rows import Sample


class FakeMeter:
    """Measures one FakeDevice.

    Args:
        device: what is measured.
        events: whether events are kept.
        begun_ns: the time at which the device's clock began, in ns since 1970.
    """

    source = "predicted"

    def __init__(self, device: FakeDevice, *, events: bool, begun_ns: int) -> None:
        self._device, self.has_events, self._begun_ns = device, events, begun_ns

    @property
    def _allocator(self) -> CachingAllocator:
        return self._device.allocator

    @property
    def is_on(self) -> bool:
        """Whether there is a context."""
        return self._device.has_context

    def start(self) -> None:
        """Nothing to do: the device counts from its first byte."""

    def stop(self) -> None:
        """Nothing to do."""

    def read(self) -> Reading:
        """What is held now; what comes after it is later: else a sample would count for a span that has just ended."""
        reading = self.peek()
        self._device.now_ns += 1
        return reading

    def peek(self) -> Reading:
        """What is held now."""
        allocator = self._allocator
        return Reading(
            t_ns=self._begun_ns + self._device.now_ns,
            allocated=allocator.allocated,
            reserved=allocator.reserved,
            active=allocator.active,
            device_used=self._device.used,
            host_rss=self._device.host_bytes,
            allocated_peak=-1,
            reserved_peak=-1,
            active_peak=-1,
            num_allocs=self._device.num_allocs,
            num_segments=self._device.num_segments,
            num_retries=allocator.num_retries,
        )

    def sample(self) -> Sample:
        """What a sampler would see at this moment."""
        allocator, used = self._allocator, self._device.used
        return Sample(
            t_ns=self._begun_ns + self._device.now_ns,
            device_used_bytes=used,
            process_used_bytes=used,
            others_used_bytes=0,
            allocated_bytes=allocator.allocated,
            reserved_bytes=allocator.reserved,
            host_rss_bytes=self._device.host_bytes,
            utilisation_fraction=None,
        )

    def answers(self) -> bool:
        """A device that is not there answers at once."""
        return True

    def stamp(self, span_id: int) -> None:
        """Events from now on belong to `span_id`."""
        self._device.span_id = span_id

    def pending(self, reading: Reading) -> int:
        """How many events wait."""
        return self._allocator.num_waiting_events

    def drain(self) -> Batch:
        """The events since the last call, as torch's snapshots have them."""
        if not self.has_events:
            return Batch([], None)
        columns, times, stamps = self._device.take_events()
        shift_us = self._begun_ns // 1000
        events = [
            {
                "action": action,
                "addr": address,
                "size": requested,
                "stream": stream,
                "time_us": time_us + shift_us,
                "user_metadata": str(stamp),
            }
            for action, address, requested, stream, time_us, stamp in zip(
                columns.action,
                columns.address,
                columns.requested_bytes,
                columns.stream,
                times,
                stamps,
                strict=True,
            )
        ]
        settings = {"expandable_segments": self._device.rules.expandable_segments}
        return Batch(events, self.peek(), self._device.num_allocs, settings)

    def base_segments(self) -> list[Any]:
        """None: the device is new."""
        return []

    def locate(self, tensor: torch.Tensor) -> tuple[int, int, int] | None:
        """Where the storage of a tensor is; None: not on the device."""
        if not tensor.is_cuda:
            return None
        storage = tensor.untyped_storage()
        block = self._device.block_of(storage)
        if block is None:
            return None
        return (self._begun_ns + self._device.now_ns) // 1000, block.address, storage.nbytes()

    def peaks(self) -> tuple[int, int]:
        """Peaks of allocated and reserved bytes."""
        return self._allocator.allocated_peak, self._allocator.reserved_peak
