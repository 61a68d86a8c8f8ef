"""Whose memory ran out, by the errors that torch, its libraries and the driver raise."""

import errno
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ray_memprof.rank.shortage import SCARCE_BYTES, chain, headline, shortage_of

NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {kind}, NCCL version 2.28.9
{name}: {meaning}
Last error:
{last}"""
FULL = {
    "kind": "unhandled cuda error",
    "name": "ncclUnhandledCudaError",
    "meaning": "Call to CUDA function failed.",
}
WRONG = {"kind": "invalid usage", "name": "ncclInvalidUsage", "meaning": "Wrong."}
Distributed = torch.distributed.DistBackendError
Driver = getattr(torch, "AcceleratorError", RuntimeError)


def made(kind: type[Exception], text: str) -> Exception:
    """An error of a class of torch's, some of which cannot be called with a text alone."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def caught(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: B036 - whatever the test raises
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "where", "who", "asked"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            "device",
            "the allocator",
            "2.00 GiB",
        ),
        (
            RuntimeError("Caught it in replica 0.\nCUDA out of memory. Tried to allocate 20.00 MiB."),
            "device",
            "the allocator",
            "20.00 MiB",
        ),
        (made(Distributed, NCCL.format(**FULL, last="Cuda failure 2 'out of memory'")), "device", "NCCL", ""),
        (made(Distributed, NCCL.format(**FULL, last="Cuda failure 'out of memory'")), "device", "NCCL", ""),
        (
            made(Distributed, NCCL.format(**FULL, last="Failed to CUDA calloc async 4194304 bytes")),
            "device",
            "NCCL",
            "4194304 bytes",
        ),
        (
            made(Distributed, NCCL.format(**FULL, last="Failed to CUDA host alloc 4096 bytes")),
            "host",
            "the host",
            "4096 bytes",
        ),
        (
            made(Driver, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            "device",
            "the driver",
            "",
        ),
        (RuntimeError("CUDA driver error: out of memory"), "device", "the driver", ""),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "device", "Triton", ""),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), "device", "the driver", ""),
        (
            MemoryError("std::bad_alloc: out_of_memory: CUDA error at: x.hpp:62: cudaErrorMemoryAllocation"),
            "device",
            "the driver",
            "",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "device",
            "cuBLAS",
            "",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "device", "cuDNN", ""),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            "device",
            "cuDNN",
            "",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
            "host",
            "the host",
            "",
        ),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "device", "cuFFT", ""),
        (
            RuntimeError(
                "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
            ),
            "device",
            "cuSOLVER",
            "",
        ),
        (
            RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
            "device",
            "cuSPARSE",
            "",
        ),
        (RuntimeError("CURAND_STATUS_ALLOCATION_FAILED"), "device", "cuRAND", ""),
        (
            RuntimeError(
                "Caught it in pin memory thread for device 0.\nRuntimeError: CUDA error: out of memory"
            ),
            "host",
            "the host",
            "",
        ),
        (RuntimeError("std::bad_alloc"), "host", "the host", ""),
        (MemoryError(), "host", "the host", ""),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            "host",
            "the host",
            "",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host", "the host", ""),
        (
            RuntimeError("unable to mmap 3 bytes from file </x>: Cannot allocate memory (12)"),
            "host",
            "the host",
            "",
        ),
    ],
)
def test_who_could_not_get_memory(error: BaseException, where: str, who: str, asked: str) -> None:
    found = shortage_of(error)
    assert found is not None
    assert (found.where, found.who, found.asked, found.error) == (where, who, asked, error)


@pytest.mark.parametrize(
    "error",
    [
        made(Distributed, NCCL.format(**WRONG, last="Duplicate GPU detected")),
        made(Driver, "CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("PytorchStreamReader failed reading file data/7: unexpected end of file"),
        RuntimeError("MY_STATUS_ALLOC_FAILED"),
        ValueError("cannot allocate memory for a negative number of frames"),
        OSError(errno.ENOSPC, "No space left on device"),
        SystemExit(1),
    ],
)
def test_other_errors_are_none_of_memory(error: BaseException) -> None:
    assert shortage_of(error) is None


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "cuDNN"),
        ("cuFFT error: CUFFT_INTERNAL_ERROR", "cuFFT"),
        (
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`. If",
            "cuSOLVER",
        ),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "cuBLAS"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", "cuDNN"),
    ],
)
def test_a_library_that_fails_on_a_full_device_without_naming_memory(text: str, who: str) -> None:
    error = RuntimeError(text)
    assert shortage_of(error) is None
    assert shortage_of(error, SCARCE_BYTES) is None
    found = shortage_of(error, 3 * 2**20)
    assert found is not None
    assert (found.where, found.who, found.asked, found.line) == ("device", who, "", text)


@pytest.mark.parametrize(
    "text", ["CUDNN_STATUS_BAD_PARAM", "MYLIB_STATUS_INTERNAL_ERROR", "CUDA error: misaligned"]
)
def test_other_failures_on_a_full_device(text: str) -> None:
    assert shortage_of(RuntimeError(text), 0) is None


def oom() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def wrapped() -> None:
    try:
        oom()
    except RuntimeError as error:
        raise ValueError("step 3 failed") from error


def while_handling() -> None:
    try:
        oom()
    except RuntimeError:
        raise ValueError("step 3 failed")  # noqa: B904 - as programs do it


def cleaned_up() -> None:
    try:
        oom()
    finally:
        raise KeyError("a group that is gone")


def leaves() -> None:
    try:
        oom()
    except RuntimeError:
        raise SystemExit(1)  # noqa: B904


def in_a_group() -> None:
    raise BaseExceptionGroup(
        "two", [KeyError("x"), ExceptionGroup("inner", [ValueError("y"), caught_error()])]
    )


def caught_error() -> Exception:
    error = caught(wrapped)
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize("program", [wrapped, while_handling, cleaned_up, leaves, in_a_group])
def test_errors_around_it_are_looked_through(program: Callable[[], None]) -> None:
    found = shortage_of(caught(program))
    assert found is not None
    assert (found.where, found.who, found.asked) == ("device", "the allocator", "3.00 GiB")


def test_an_error_that_was_handled_is_over() -> None:
    def program() -> None:
        try:
            oom()
        except RuntimeError:
            pass
        raise ValueError("something else")

    def disowned() -> None:
        try:
            oom()
        except RuntimeError:
            raise ValueError("something else") from None

    assert (shortage_of(caught(program)), shortage_of(caught(disowned))) == (None, None)


@pytest.mark.parametrize(("num", "num_searched"), [(63, 63), (64, 64), (65, 64), (1000, 64)])
def test_of_a_long_chain_only_the_last_errors_are_searched(num: int, num_searched: int) -> None:
    errors = [ValueError(str(number)) for number in range(num)]
    for error, before in itertools.pairwise(errors):
        error.__cause__ = before
    assert list(chain(errors[0])) == errors[:num_searched]


def test_a_chain_ends_though_it_bites_its_tail() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(chain(first)) == [first, second]
    assert shortage_of(first) is None


class Tensor:
    def pin_memory(self, *, pin_memory: bool = True) -> None:
        raise RuntimeError("CUDA error: out of memory")


def test_page_locked_memory_is_the_hosts() -> None:
    """The driver's words are the same as for the device's own: the call tells which it was."""
    call = torch_like = Tensor().pin_memory
    pinned = caught(lambda: call())
    pinned.__traceback__ = pinned.__traceback__.tb_next  # type: ignore[union-attr]
    found = shortage_of(pinned)
    assert found is not None and found.where == "host"

    def empty(**options: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    error = caught(lambda: empty(pin_memory=False))
    found = shortage_of(error.with_traceback(error.__traceback__.tb_next))  # type: ignore[union-attr]
    assert found is not None and found.where == "device"
    assert torch_like is call


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one\ntwo", "one"),
        (
            NCCL.format(**FULL, last="Cuda failure 1 'invalid argument'\n"),
            "ncclUnhandledCudaError: Cuda failure 1 'invalid argument'",
        ),
        (
            NCCL.format(**FULL, last="") + "\nException raised from checkTimeout",
            "ncclUnhandledCudaError: Call to CUDA function failed.",
        ),
        (
            "Caught ValueError in process 0.\nOriginal\nTraceback (most recent call last):\n F\nValueError: bad\n",
            "ValueError: bad",
        ),
        (
            'Error(s) in loading Net:\n\tMissing key(s) in state_dict: "a".',
            'Error(s) in loading Net: Missing key(s) in state_dict: "a".',
        ),
    ],
)
def test_the_line_that_says_what_happened(text: str, line: str) -> None:
    assert headline(RuntimeError(text)) == line
