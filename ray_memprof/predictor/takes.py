"""What the device's memory loses to the driver and to libraries, outside torch's allocator, step by step.

    with TorchGpu.opened(0) as gpu:
        outside(gpu)                  # {"context_bytes": 552402944, "kernels_bytes": 96468992, ...}

The device must be free of programs that take or give back memory meanwhile: it is read by NVML before and after.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from ray_memprof.errors import ConfigError
from ray_memprof.rank.device_of_process import device_of_process
from ray_memprof.recorder.meters.nvml import Device, open_device

_LOCKED_BYTES = 2**20


class Gpu(Protocol):
    """A GPU, and the steps in which a program comes to use it."""

    def used_bytes(self) -> int:
        """In use on the device by anybody."""

    def reserved_bytes(self) -> int:
        """Held by torch's allocator."""

    def make_context(self) -> None:
        """Make the CUDA context."""

    def run_kernel(self) -> None:
        """Run the first kernel of torch."""

    def run_libraries(self) -> None:
        """Run products and a convolution."""

    def run_more(self) -> None:
        """Run kernels of further modules."""

    def lock_pages(self) -> None:
        """Lock pages of host memory, and make a stream."""


def outside(gpu: Gpu) -> dict[str, int]:
    """Bytes that each step takes outside the allocator, by the names of the profile's keys."""
    return grown(
        gpu,
        {
            "context_bytes": gpu.make_context,
            "kernels_bytes": gpu.run_kernel,
            "libraries_bytes": gpu.run_libraries,
            "more_kernels_bytes": gpu.run_more,
            "first_page_locked_bytes": gpu.lock_pages,
        },
    )


def grown(gpu: Gpu, steps: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """By how many bytes the device is fuller outside the allocator after each step; never less than 0."""
    found, before = {}, gpu.used_bytes() - gpu.reserved_bytes()
    for name, step in steps.items():
        step()
        now = gpu.used_bytes() - gpu.reserved_bytes()
        found[name] = max(0, now - before)
        before = now
    return found


class TorchGpu:
    """A GPU as torch and NVML see it."""

    def __init__(self, device: Device, index: int) -> None:
        self.device, self._index = device, index

    @staticmethod
    @contextmanager
    def opened(index: int) -> Iterator["TorchGpu"]:
        """The GPU that torch calls cuda:index, which becomes the current one.

        Raises:
            ConfigError: there is no such GPU, or its driver does not tell how full it is.
        """
        import torch

        if torch.cuda.device_count() <= index:
            raise ConfigError(
                "there is no GPU here that torch can use: a profile is measured on one",
                hint="ray-memprof doctor says what is missing; --gpu of predict takes "
                "a profile that was made elsewhere",
            )
        facts = device_of_process(index).facts  # asks NVML, and makes no context
        with open_device(uuid=facts["gpu_uuid"], index=facts["gpu_index"]) as device:
            if device is None:
                raise ConfigError(
                    "NVML does not show the GPU here: how full it is cannot be read",
                    hint="pip install nvidia-ml-py, and a driver in reach: ray-memprof doctor",
                )
            yield TorchGpu(device, index)

    def used_bytes(self) -> int:
        """In use on the device by anybody."""
        return self.device.used_bytes()

    def reserved_bytes(self) -> int:
        """Held by torch's allocator."""
        import torch

        return torch.cuda.memory_reserved(self._index) if torch.cuda.is_initialized() else 0

    def make_context(self) -> None:
        """Make the CUDA context, by torch's first allocation."""
        import torch

        torch.cuda.set_device(self._index)
        self._kept = torch.empty(1, device="cuda")
        torch.cuda.synchronize()

    def run_kernel(self) -> None:
        """Run the first kernel of torch."""
        import torch

        self._kept.zero_().add_(1)
        torch.cuda.synchronize()

    def run_libraries(self) -> None:
        """Run products and a convolution: the warm-up of a run of wan."""
        import torch
        from torch.nn import functional

        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.zeros(256, 256, dtype=dtype, device="cuda")
            functional.linear(matrix, matrix, matrix[0])
        cube = torch.zeros(1, 1, 3, 16, 16, device="cuda")
        functional.conv3d(cube, cube[..., :3, :3])
        torch.cuda.synchronize()

    def run_more(self) -> None:
        """Run kernels of further modules, such as softmax."""
        import torch

        x = torch.ones(256, 256, device="cuda")
        torch.softmax(x, -1)
        torch.nn.functional.layer_norm(x, (256,))
        torch.cuda.synchronize()

    def lock_pages(self) -> None:
        """Lock pages of host memory as wan does, and copy from there on a stream of its own."""
        import torch

        stream, runtime = torch.cuda.Stream(), torch.cuda.cudart()
        pages = torch.zeros(_LOCKED_BYTES, dtype=torch.uint8)
        torch.cuda.check_error(runtime.cudaHostRegister(pages.data_ptr(), pages.nbytes, 0))
        with torch.cuda.stream(stream):
            self._copied = pages.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        torch.cuda.check_error(runtime.cudaHostUnregister(pages.data_ptr()))
