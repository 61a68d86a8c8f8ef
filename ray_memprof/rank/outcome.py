"""What an error raised by a workload means: the Outcome of its rank, in one line.

    outcome = outcome_of(error, rank=2, failure=recorder.failure())

Pure, and without torch unless the workload has imported it.
"""

from typing import TYPE_CHECKING

from ray_memprof.errors import (
    EXIT_DEVICE_OOM,
    EXIT_DISK_FULL,
    EXIT_HOST_OOM,
    EXIT_WORKLOAD,
    RunError,
    WorkloadError,
)
from ray_memprof.rank.messages import Outcome, Status
from ray_memprof.rank.shortage import ALLOCATOR, Shortage, headline, shortage_of
from ray_memprof.store.whole_file import is_full
from ray_memprof.wording import error_line, size_text, span_text

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder

Failure = tuple[str, int, int, int]
"""Path of the innermost span that the error left, its step, allocated and reserved bytes."""


def free_at_failure(recorder: "Recorder", total_bytes: int) -> int | None:
    """Free bytes on the device when an error left the innermost span; None: not known.

    Args:
        recorder: saw the error.
        total_bytes: of the device; 0: not known.
    """
    used = recorder.device_used_at_failure()
    return None if not total_bytes or used is None else max(0, total_bytes - used)


def outcome_of(
    error: BaseException, rank: int, failure: Failure | None, *, free_bytes: int | None = None
) -> Outcome:
    """What `error` means for the rank that it ended.

    Args:
        error: raised by the workload.
        rank: number of the rank.
        failure: where the recorder saw the error; None: in no span.
        free_bytes: free on the device at that time; None: not known.
    """
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return Outcome(rank=rank, status="ok")
    path, step, allocated, reserved = failure or ("", -1, 0, 0)
    raised = _raised(error)
    short = None if isinstance(raised, RunError) else shortage_of(raised, free_bytes)
    status, code, reason = _meaning(error, short)
    if status == "oom" and not _explains_oom(error):
        assert short is not None
        held = _held(short, allocated, reserved, free_bytes)
        reason = f"device out of memory in {span_text(path or None, step if step >= 0 else None)}: {held}"
    if short is not None and short.error is not raised and not _explains_oom(error):
        reason += f"; then {_named(raised)}"
    return Outcome(
        rank=rank,
        status=status,
        exit_code=code,
        reason=reason,
        hint=error.hint if isinstance(error, RunError) else "",
        path=path,
        step=step,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        oom_by=short.who if short is not None and status == "oom" and short.who != ALLOCATOR else None,
        oom_free_bytes=free_bytes if status == "oom" else None,
    )


def _raised(error: BaseException) -> BaseException:
    """The error as the workload raised it."""
    return error.__cause__ or error if isinstance(error, WorkloadError) else error


def _explains_oom(error: BaseException) -> bool:
    """Whether the workload itself says in `error` that the device ran out of memory."""
    return isinstance(error, WorkloadError) and error.exit_code == EXIT_DEVICE_OOM


def _meaning(error: BaseException, short: Shortage | None) -> tuple[Status, int, str]:
    """Status, exit code and text of an error."""
    if _explains_oom(error):
        return "oom", EXIT_DEVICE_OOM, headline(error)
    if short is not None and short.where == "device":
        return "oom", EXIT_DEVICE_OOM, short.line
    if short is not None:
        return "host_oom", EXIT_HOST_OOM, f"host memory ran out: {short.line}"
    if isinstance(error, RunError):
        return "failed", error.exit_code, headline(error)
    is_disk = isinstance(error, OSError) and is_full(error)
    return "failed", EXIT_DISK_FULL if is_disk else EXIT_WORKLOAD, _named(error)


def _held(short: Shortage, allocated_bytes: int, reserved_bytes: int, free_bytes: int | None) -> str:
    """Which part got no memory, and how much was allocated, reserved, free and asked for."""
    parts = [f"allocated {size_text(allocated_bytes)}, reserved {size_text(reserved_bytes)}"]
    if free_bytes is not None:
        parts.append(f"free {size_text(free_bytes)}")
    if short.asked or short.who == ALLOCATOR:
        parts.append(f"asked {short.asked or 'an amount that torch does not report'}")
    held = ", ".join(parts)
    return held if short.who == ALLOCATOR else f"{short.who} got none ({short.line}), {held}"


def _named(error: BaseException) -> str:
    return error_line(error, headline(error))
