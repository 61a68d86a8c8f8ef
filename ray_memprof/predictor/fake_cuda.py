"""torch.cuda without a GPU and without a CUDA build, for fake tensors: the device is a FakeDevice.

    with fake_cuda(device), FakeTensorMode(allow_non_fake_inputs=True):
        torch.empty(3, device="cuda")           # a FakeTensor whose is_cuda is True
        torch.cuda.empty_cache()                # the FakeDevice gives its cache back

torch itself makes fake tensors of any device, but asks a guard which device is current, and a CPU build has none for
CUDA. It has one that does nothing, for CUDA builds on machines without a GPU; here torch is made to install that one.
"""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ray_memprof.predictor.fake_device import FakeDevice, Stream
from ray_memprof.predictor.outside import PageLocked

_CUDA = 1
"""c10::DeviceType::CUDA."""
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
"""c10::impl::device_guard_impl_registry: a pointer for each type of device."""
_VIRTUAL_FUNCTIONS = 64
"""At least as many as the class of a guard has."""


@contextmanager
def guarded() -> Iterator[None]:
    """Let torch have a guard for CUDA that does nothing, if it has none.

    torch's own ensureCUDADeviceGuardSet() installs it where the present guard counts no devices. So for the length of
    that call the present guard is an object all of whose functions return 0.
    """
    guards = (ctypes.c_void_p * (_CUDA + 1)).in_dll(_c10(), _GUARDS)
    if guards[_CUDA]:
        # A CUDA build whose GPUs are hidden gets the one that does nothing; one that sees a GPU keeps its own.
        torch._C._ensureCUDADeviceGuardSet()
        yield
        return
    zero = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 0)
    address = ctypes.cast(zero, ctypes.c_void_p).value
    table = (ctypes.c_void_p * _VIRTUAL_FUNCTIONS)(*[address] * _VIRTUAL_FUNCTIONS)
    counts_none = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    guards[_CUDA] = ctypes.addressof(counts_none)
    torch._C._ensureCUDADeviceGuardSet()
    if guards[_CUDA] == ctypes.addressof(counts_none):
        guards[_CUDA] = None
        raise RuntimeError(f"torch {torch.__version__} has no guard for CUDA devices that are not there")
    try:
        yield
    finally:
        guards[_CUDA] = None


def _c10() -> ctypes.CDLL:
    assert torch.__file__ is not None
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))


@contextmanager
def fake_cuda(device: FakeDevice) -> Iterator[None]:
    """Let torch.cuda be about `device`."""
    with ExitStack() as stack:
        stack.enter_context(guarded())
        for name, instead in _functions(device).items():
            stack.enter_context(patch.object(torch.cuda, name, instead))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch, "tensor", _tensor))
        stack.enter_context(patch.object(FakeTensor, "new_tensor", _new_tensor, create=True))
        stack.enter_context(patch.object(torch.UntypedStorage, "resize_", _resizing(device)))
        stack.enter_context(patch.object(FakeTensor, "data", property(_data, _set_data), create=True))
        stack.enter_context(patch.object(FakeTensor, "is_cuda", property(_is_cuda), create=True))
        yield


def _functions(device: FakeDevice) -> dict[str, Any]:
    profile, page_locked = device.profile, PageLocked(device)

    class FakeStream(Stream):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(device)

    class FakeEvent(Event):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(device)

    def properties(*_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            name=profile.name,
            major=profile.capability[0],
            minor=profile.capability[1],
            total_memory=profile.total_bytes,
            multi_processor_count=profile.num_sms,
        )

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _nothing,
        "_lazy_init": _nothing,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "init": _nothing,
        "synchronize": lambda *_: device.synchronize(),
        "empty_cache": device.empty_cache,
        "mem_get_info": lambda *_: (profile.total_bytes - device.used, profile.total_bytes),
        "max_memory_allocated": lambda *_: device.allocator.allocated_peak,
        "max_memory_reserved": lambda *_: device.allocator.reserved_peak,
        "memory_allocated": lambda *_: device.allocator.allocated,
        "memory_reserved": lambda *_: device.allocator.reserved,
        "reset_peak_memory_stats": _nothing,
        "get_device_capability": lambda *_: profile.capability,
        "get_device_name": lambda *_: profile.name,
        "get_device_properties": properties,
        "Stream": FakeStream,
        "Event": FakeEvent,
        "current_stream": lambda *_: device.stream,
        "default_stream": lambda *_: device.default_stream,
        "stream": lambda stream: device.on(stream),
        "set_stream": device.set_stream,
        "cudart": lambda: _Runtime(page_locked),
        "check_error": _nothing,
    }


def _resizing(device: FakeDevice) -> Any:
    """FSDP gives memory back by making a storage smaller, which is no operation."""
    resize = torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        device.resize(storage)
        return result

    return resize_


_plain_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """As torch.tensor, whose copy to a device fake tensors do not hear of."""
    made = _plain_tensor(data, **kwargs)
    return made if device is None else made.to(device)


def _new_tensor(tensor: FakeTensor, data: Any, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As Tensor.new_tensor, for the same reason."""
    return _tensor(data, dtype=dtype or tensor.dtype, device=tensor.device)


_DATA: Any = torch.Tensor.data


def _data(tensor: FakeTensor) -> Any:
    return _DATA.__get__(tensor)


def _set_data(tensor: FakeTensor, data: FakeTensor) -> None:
    """A fake tensor keeps its device beside its data: it goes with them."""
    _DATA.__set__(tensor, data)
    tensor.fake_device = data.fake_device


def _is_cuda(tensor: FakeTensor) -> bool:
    """As torch finds it out by way of an operation, which takes 40 times as long."""
    return not tensor.fake_mode.in_kernel_invocation and tensor.fake_device.type == "cuda"


def _nothing(*_: Any, **__: Any) -> None:
    return None


class Event:
    """A moment on a stream of the fake device."""

    def __init__(self, device: FakeDevice) -> None:
        self._device, self.done_ns = device, 0
        device.note("event.new", self)

    def record(self, stream: Stream | None = None) -> None:
        """Take the time at which all that is queued on the stream is done."""
        stream = stream or self._device.stream
        self._device.note("record", self, stream)
        self.done_ns = stream.free_ns

    def wait(self, stream: Stream | None = None) -> None:
        """Let the stream wait for this moment."""
        (stream or self._device.stream).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for this moment."""
        self._device.note("event.synchronize", self)
        self._device.wait_until(self.done_ns)

    def query(self) -> bool:
        """Whether the moment has passed."""
        self._device.note("event.query")
        return self.done_ns <= self._device.now_ns


class _Runtime:
    """What wan asks of libcudart."""

    def __init__(self, page_locked: PageLocked) -> None:
        self._page_locked = page_locked

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        self._page_locked.lock(size)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        return 0


class _Generator(torch.Generator):
    """A generator of a device that is not there draws no numbers; the CPU's will do."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")  # type: ignore[call-arg] # the stub has only __init__
