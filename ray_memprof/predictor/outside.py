"""Memory of the device outside the allocator: what takes it, when, and how much.

The context comes with the first allocation; torch's own kernels with the first one that runs; cuBLAS and cuDNN with the
first product. Host memory that is page-locked needs tables on the device. NCCL takes memory for each peer that a rank
sends to or receives from, when it does so for the first time.

Sources: measured on the GPU of the profile, see its file. Buffers of NCCL's connections: src/transport/p2p.cc of NCCL
2.28, with memory taken in steps of 2 MiB; measured on four H200s with NCCL_BUFFSIZE 4, 2, 1 and 0.5 MiB: 2.61, 2.38,
2.38 and 2.14 GiB outside the allocator in all, whose differences are as here.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ray_memprof.predictor.fake_device import FakeDevice, Stream

_MIB = 2**20
_HOST_PAGE_BYTES, _ENTRY_BYTES, _STEP_BYTES = 4096, 8, 2 * _MIB
"""A page of host memory, its entry in the device's table, and the steps in which the device's memory is taken."""
_NUM_CHANNELS = 32
_FIXED_BUFFER_BYTES = int((0.5 + 4.69) * _MIB)
"""Of a receiver, for one channel and peer: the buffers of the protocols LL and LL128; NCCL_BUFFSIZE comes on top."""
_SENDER_BYTES = 2 * _MIB
"""Of one channel and peer: memory is taken in steps of 2 MiB."""
DEFAULT_BUFFER_BYTES = 4 * _MIB
"""NCCL_BUFFSIZE where it is not set."""


class Modules:
    """Code of kernels and what libraries keep: loaded when it is first needed."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._has_kernels = self._has_libraries = self._has_more = False

    def ran(self, *, is_product: bool, is_softmax: bool) -> None:
        """A kernel runs."""
        profile = self._device.profile
        if not self._has_kernels:
            self._has_kernels = True
            self._device.add_outside(profile.kernels_bytes)
        if is_product and not self._has_libraries:
            self._has_libraries = True
            self._device.add_outside(profile.libraries_bytes)
        if is_softmax and not self._has_more:
            self._has_more = True
            self._device.add_outside(profile.more_kernels_bytes)


class PageLocked:
    """Host memory that the device reads by itself."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._locked = self._tables = 0

    def lock(self, size: int) -> None:
        """So many bytes more are page-locked."""
        if not self._locked:
            self._device.add_outside(self._device.profile.first_page_locked_bytes)
        self._locked += size
        wanted = -(-self._locked // _HOST_PAGE_BYTES) * _ENTRY_BYTES
        tables = -(-wanted // _STEP_BYTES) * _STEP_BYTES
        self._device.add_outside(tables - self._tables)
        self._tables = tables


class Exchange(dist.Work):
    """What torch.distributed returns for a collective or a batch: wait() lets the current stream wait, not the host."""

    def __init__(self, device: FakeDevice, done: Any) -> None:
        super().__init__()
        self._device, self._done = device, done

    def wait(self, timeout: Any = None) -> bool:
        """Begin no more work on the current stream before it is done."""
        self._device.stream.wait_event(self._done)
        return True


class Nccl:
    """The one communicator of a rank, of all ranks."""

    def __init__(self, device: FakeDevice, buffer_bytes: int) -> None:
        self._device = device
        wanted = _FIXED_BUFFER_BYTES + buffer_bytes
        self._receiver_bytes = -(-wanted // _STEP_BYTES) * _STEP_BYTES
        self._rank = self._size = 0
        self._is_connected = False
        self._barrier: torch.Tensor | None = None
        """What a barrier adds up over the ranks; torch keeps it."""
        self._senders: set[int] = set()
        self._receivers: set[int] = set()
        self._stream = Stream(device)

    def join(self, rank: int, size: int) -> None:
        """The communicator is made."""
        self._rank, self._size = rank, size
        self._device.start()
        self._device.add_outside(self._device.profile.nccl_communicator_bytes)

    def call(self, name: str, args: tuple[Any, ...]) -> None:
        """A collective is called."""
        if name == "barrier" and self._barrier is None:
            self._barrier = torch.zeros(1, device="cuda")
        others = {rank for rank in range(self._size) if rank != self._rank}
        if name == "all_to_all_single":
            self._connect(others, others)
        elif name == "batch_isend_irecv":
            operations = args[0]
            sends = {one.peer for one in operations if one.op is dist.isend}
            self._connect(sends, {one.peer for one in operations if one.op is dist.irecv})
        elif not self._is_connected:
            self._is_connected = True
            self._device.add_outside(self._device.profile.nccl_rings_bytes)

    def exchange(self, num_bytes: int) -> Exchange:
        """A collective in which `num_bytes` cross the link, in the direction with more of them.

        NCCL works on a stream of its own: after what the current stream has to do now, and one after the other. The
        other ranks are taken to be ready when this one is.
        """
        device, stream = self._device, self._stream
        stream.wait_stream(device.stream)
        before = device.stream
        device.set_stream(stream)
        device.run(self._link_ns(num_bytes))
        device.set_stream(before)
        return Exchange(device, stream.record_event())

    def _link_ns(self, num_bytes: int) -> int:
        profile = self._device.profile
        return profile.exchange_ns + int(num_bytes / profile.link_bytes_per_s * 1e9)

    def transfer(self, operations: Sequence[Any]) -> Exchange:
        """Send and receive point to point, in one batch, after what the current stream has to do now.

        torch runs a batch on NCCL's own stream and calls record_stream for each of its tensors, those that are sent
        and those that are received (ProcessGroupNCCL::pointToPoint). Collectives keep their tensors until wait()
        instead (pytorch pull request 148590, which left point to point as it was).
        """
        device, num_bytes = self._device, Counter[Any]()
        for one in operations:
            num_bytes[one.op] += one.tensor.numel() * one.tensor.element_size()
            device.record_stream(one.tensor.untyped_storage(), self._stream)
        # The link carries both directions at once.
        self._stream.wait_stream(device.stream)
        device.occupy(self._stream, self._link_ns(max(num_bytes.values())))
        return Exchange(device, self._stream.record_event())

    def _connect(self, to: set[int], sources: set[int]) -> None:
        new_receivers, new_senders = len(to - self._receivers), len(sources - self._senders)
        self._receivers |= to
        self._senders |= sources
        size = _NUM_CHANNELS * (new_senders * self._receiver_bytes + new_receivers * _SENDER_BYTES)
        self._device.add_outside(size)
