"""What an error that left a workload means: the Outcome of its rank, in one line.

    outcome = outcome_of(error, rank=2, failure=recorder.failure())

Pure, and without torch unless the workload has imported it.
"""

import re
import sys

from ray_memprof.errors import EXIT_DEVICE_OOM, EXIT_HOST_OOM, EXIT_WORKLOAD, RunError
from ray_memprof.plan import Outcome, Status
from ray_memprof.units import size_text
from wan.errors import DeviceMemoryError, WanError

Failure = tuple[str, int, int, int]
"""Path of the innermost span that the error left, its step, allocated and reserved bytes."""
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMGT]?i?B)")
# torch's CPU allocator raises a plain RuntimeError.
_HOST_ALLOCATOR = "DefaultCPUAllocator: "


def outcome_of(error: BaseException, rank: int, failure: Failure | None) -> Outcome:
    """What `error` means for the rank that it ended."""
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return Outcome(rank=rank, status="ok")
    path, step, allocated, reserved = failure or ("", -1, 0, 0)
    status, code, reason = _meaning(error)
    if status == "oom" and not isinstance(error, WanError):
        held = f"allocated {size_text(allocated)}, reserved {size_text(reserved)}, asked {reason}"
        reason = f"device out of memory in {_place(path, step)}: {held}"
    return Outcome(
        rank=rank,
        status=status,
        exit_code=code,
        reason=reason,
        hint=error.hint if isinstance(error, WanError | RunError) else "",
        path=path,
        step=step,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
    )


def _meaning(error: BaseException) -> tuple[Status, int, str]:
    """Status, exit code and text; of a device that is full, the text is what was asked for."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, WanError | RunError):
        return ("oom" if isinstance(error, DeviceMemoryError) else "failed"), error.exit_code, text
    if _is_device_oom(error):
        asked = _ASKED.search(str(error))
        return "oom", EXIT_DEVICE_OOM, asked.group(1) if asked else "an amount torch does not tell"
    if isinstance(error, MemoryError) or _HOST_ALLOCATOR in text:
        what = text.partition(_HOST_ALLOCATOR)[2] or text or type(error).__name__
        return "host_oom", EXIT_HOST_OOM, f"host memory ran out: {what}"
    return "failed", EXIT_WORKLOAD, f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_device_oom(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _place(path: str, step: int) -> str:
    place = path or "no span"
    return f"{place} step {step}" if step >= 0 else place
