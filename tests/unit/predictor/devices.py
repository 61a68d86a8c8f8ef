"""A fake device to try things on, and fake tensors on it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
import torch._dynamo
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_memprof.allocator.rules import Rules
from ray_memprof.predictor.fake_cuda import fake_cuda
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.fake_kernels import fake_kernels
from ray_memprof.predictor.gpu_profile import GpuProfile, gpu_profile
from ray_memprof.predictor.operations import Operations

MIB = 2**20


def profile(name: str = "H200", **changed: object) -> GpuProfile:
    """Of a GPU model, with changes; who changes launch_ns means all operations of the host."""
    if "launch_ns" in changed:
        changed.setdefault("view_ns", changed["launch_ns"])
    return replace(gpu_profile(name), **changed)  # type: ignore[arg-type]


def device_of(name: str = "H200", *, rules: Rules | None = None, **changed: object) -> FakeDevice:
    return FakeDevice(profile(name, **changed), rules or Rules(expandable_segments=True))


@contextmanager
def on_device(device: FakeDevice) -> Iterator[FakeTensorMode]:
    """Operations on tensors of the device "cuda" are those of `device`."""
    with ExitStack() as stack:
        stack.enter_context(fake_cuda(device))
        stack.enter_context(fake_kernels(device))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Operations(device, mode))
        stack.enter_context(torch.no_grad())
        yield mode


def allocations(device: FakeDevice) -> list[int]:
    """The bytes that were asked for since the last call, in order."""
    columns, _, _ = device.take_events()
    pairs = zip(columns.action, columns.requested_bytes, strict=True)
    return [size for action, size in pairs if action == "alloc"]
