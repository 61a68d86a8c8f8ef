"""Whether an error says that memory ran out, on the device or the host, and which part of the program asked for it.

    found = shortage_of(error)        # Shortage(where="device", who="NCCL", ...); None: no memory ran out

Pure, and without torch unless the program has imported it. The errors from which this one was raised, the errors that
were being handled then, and the members of an exception group are searched too: wrapping an error does not change what
happened.
"""

import errno
import linecache
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ALLOCATOR = "the allocator"
"""torch's caching allocator, whose events say how much was asked for and how much was free."""
_MOST_LINKS = 64
"""How many errors of a chain are searched: a loop that fails again and again makes chains of thousands."""
_ALLOC_FAILED = re.compile(r"\b([A-Z]{5,9})_(?:STATUS_)?[A-Z_]*ALLOC(?:ATION)?_FAILED\b")
# Other errors of libraries on a full device: cuDNN, cuFFT and cuSOLVER do not mention memory (H200, torch 2.11).
_FAILED = re.compile(
    r"\b([A-Z]{5,9})_(?:STATUS_)?(?:INTERNAL_ERROR|NOT_INITIALIZED|EXECUTION_FAILED|SETUP_FAILED)\w*"
)
SCARCE_BYTES = 128 * 2**20
"""With less free memory on the device, a library may fail to allocate its handle, its kernels or its workspace."""
_LIBRARIES = {
    "CUBLAS": "cuBLAS",
    "CUDNN": "cuDNN",
    "CUFFT": "cuFFT",
    "CUSOLVER": "cuSOLVER",
    "CUSPARSE": "cuSPARSE",
    "CURAND": "cuRAND",
    "CUTENSOR": "cuTENSOR",
    "HIPBLAS": "hipBLAS",
    "ROCBLAS": "rocBLAS",
    "MIOPEN": "MIOpen",
}
# The device was full, as torch's allocators write it, ...
_OF_ALLOCATOR = re.compile(
    r"\b(?:CUDA|HIP|XPU|MPS backend) out of memory\b|\bOut of memory allocating [\d,]+ bytes"
)
# ... and as drivers write it, and libraries that call them without torch's allocator.
_OF_DRIVER = re.compile(
    r"\b(?:CUDA|HIP)(?: driver)? error: out of memory\b|\bTriton Error \[\w+\]: out of memory\b"
    r"|\bcudaErrorMemoryAllocation\b|\bCUDA_ERROR_OUT_OF_MEMORY\b|\bhipErrorOutOfMemory\b"
    r"|\bCuda failure (?:\d+ )?'out of memory'|\bFailed to CUDA (?:m|c)alloc\b"
)
_NCCL = re.compile(r"\b[nNrR]CCL\b|\bnccl[A-Z]\w+|\bCuda failure (?:\d+ )?'|\bFailed to CUDA ")
# The host was full, as C++, the C library and the system write it, ...
_OF_HOST = re.compile(r"\bstd::bad_alloc\b|DefaultCPUAllocator: |\b[Cc]annot allocate memory\b")
# ... and as libraries write it that otherwise allocate device memory. Page-locked host memory comes from the driver,
# whose error says only that memory ran out, not which memory.
_HOST_OF_LIBRARY = re.compile(r"_HOST_ALLOCATION_FAILED\b|\bFailed to CUDA host alloc\b")
_PINNED = re.compile(
    r"\bpin[_ ]memory\b(?!\s*=\s*False)|\bcudaHost(?:Alloc|Register)\b|\bcudaMallocHost\b|\bcudart\(\)\.cudaHost"
)
_ASKED = re.compile(
    r"[Tt]ried to allocate ([\d.]+ [KMGT]?i?B)|Failed to CUDA \w+(?: \w+)? (\d+ bytes)"
    r"|Out of memory allocating ([\d,]+ bytes)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """A failed request for memory."""

    where: Literal["device", "host"]
    who: str
    """What could not get the memory: torch's allocator, a library, the driver, or the host."""
    asked: str
    """How much was asked for, as the error writes it; "" if the error does not say."""
    line: str
    """The line of the error's text about memory."""
    error: BaseException
    """The error that says so: the one that was passed in, or one of its chain."""


def shortage_of(error: BaseException, free_bytes: int | None = None) -> Shortage | None:
    """The shortage of memory that `error`, or another error of its chain, reports; None: no memory ran out.

    Args:
        error: raised by a program.
        free_bytes: free on its device at that time; None: not known. It is needed because some libraries fail on a full
            device with an error that does not mention memory.
    """
    errors = list(chain(error))
    found = next((found for one in errors if (found := _shortage_in(one)) is not None), None)
    if found is None and free_bytes is not None and free_bytes < SCARCE_BYTES:
        found = next((found for one in errors if (found := _left_without(one)) is not None), None)
    return found


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, its members if it is a group, and the errors that it was raised from or while handling them."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MOST_LINKS:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members = list(one.exceptions) if isinstance(one, BaseExceptionGroup) else []
        before = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        waiting += [*members, *([] if before is None else [before])]


def headline(error: BaseException) -> str:
    """The line of an error's text that says what happened; "" if there is no text.

    It is mostly the first line. But NCCL writes its own message last, under a heading, and a DataLoader quotes the
    traceback of its worker.
    """
    text = str(error).strip().partition("\nException raised from ")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if "Last error:" in lines:
        return _nccl_line(lines)
    if any(line.startswith("Traceback (most recent call last)") for line in lines[1:]):
        return lines[-1]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _nccl_line(lines: list[str]) -> str:
    """The kind of an error of NCCL, and the text under "Last error:"."""
    last = lines.index("Last error:")
    kind = next((line.partition(": ")[0] for line in lines[:last] if line.startswith("nccl")), lines[0])
    said = lines[last + 1 :] or [line.partition(": ")[2] for line in lines[:last] if line.startswith("nccl")]
    return f"{kind}: {' '.join(said)}" if said else kind


def _shortage_in(error: BaseException) -> Shortage | None:
    text = str(error)
    where = _where(error, text)
    if where is None:
        return None
    asked = _ASKED.search(text)
    return Shortage(
        where=where,
        who=_who(error, text) if where == "device" else "the host",
        asked=next(filter(None, asked.groups())) if asked else "",
        line=_line(error, text) or type(error).__name__,
        error=error,
    )


def _left_without(error: BaseException) -> Shortage | None:
    """The shortage, if a library failed while hardly any memory was left."""
    failed = _FAILED.search(str(error))
    if failed is None or failed.group(1) not in _LIBRARIES:
        return None
    who = _LIBRARIES[failed.group(1)]
    return Shortage(where="device", who=who, asked="", line=headline(error), error=error)


def _where(error: BaseException, text: str) -> Literal["device", "host"] | None:
    """Which memory an error says was full; None: none."""
    if _is_torch_oom(error) or _OF_ALLOCATOR.search(text):
        return "device"
    if _HOST_OF_LIBRARY.search(text):
        return "host"
    if _library(text) or _OF_DRIVER.search(text):
        return "host" if _wanted_pinned(error, text) else "device"
    is_host = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return "host" if is_host or (isinstance(error, RuntimeError) and _OF_HOST.search(text)) else None


def _is_torch_oom(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    kind = getattr(torch, "OutOfMemoryError", None)
    return kind is not None and isinstance(error, kind)


def _library(text: str) -> str:
    """The library of NVIDIA or AMD that says in `text` that it could not allocate; "" for none."""
    found = _ALLOC_FAILED.search(text)
    return _LIBRARIES.get(found.group(1), "") if found else ""


def _who(error: BaseException, text: str) -> str:
    if _is_torch_oom(error) or _OF_ALLOCATOR.search(text):
        return ALLOCATOR
    if library := _library(text):
        return library
    if _NCCL.search(text) or type(error).__name__ == "DistBackendError":
        return "NCCL"
    return "Triton" if "Triton Error" in text else "the driver"


def _wanted_pinned(error: BaseException, text: str) -> bool:
    """Whether page-locked host memory was asked for, judged by the error's text and by the line that raised it."""
    innermost = traceback.extract_tb(error.__traceback__, limit=-1)
    return any(_PINNED.search(text) for text in (text, *map(_source, innermost)))


def _source(frame: traceback.FrameSummary) -> str:
    """The statement that a frame executes, with the names of its file and function."""
    first = frame.lineno or 0
    lines = (
        linecache.getline(frame.filename, number) for number in range(first, (frame.end_lineno or first) + 1)
    )
    return f"{Path(frame.filename).stem} {frame.name} {''.join(lines)}"


def _line(error: BaseException, text: str) -> str:
    """The line of the error's text that is about memory."""
    found = next(
        (one for one in (_OF_HOST, _OF_DRIVER, _OF_ALLOCATOR, _ALLOC_FAILED) if one.search(text)), None
    )
    if found is None:
        return headline(error)
    line = next((line.strip() for line in text.splitlines() if found.search(line)), headline(error))
    return line.partition("DefaultCPUAllocator: ")[2] or line
