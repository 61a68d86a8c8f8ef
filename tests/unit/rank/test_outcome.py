"""What an error means for its rank."""

import pytest
import torch

from ray_memprof.errors import DiskFull, WorkloadError
from ray_memprof.rank.messages import Outcome
from ray_memprof.rank.outcome import outcome_of

GIB = 2**30
FAILURE = ("denoise/dit.block", 3, 5 * GIB, 6 * GIB)
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.\nSecond line."


def failed(exit_code: int, reason: str, hint: str = "") -> Outcome:
    return Outcome(rank=2, status="failed", exit_code=exit_code, reason=reason, hint=hint)


@pytest.mark.parametrize("code", [None, 0])
def test_a_script_that_exits_well(code: int | None) -> None:
    assert outcome_of(SystemExit(code), 2, FAILURE) == Outcome(rank=2, status="ok")


def test_device_out_of_memory() -> None:
    assert outcome_of(torch.OutOfMemoryError(OOM), 2, FAILURE) == Outcome(
        rank=2,
        status="oom",
        exit_code=11,
        reason=(
            "device out of memory in denoise/dit.block of step 3: "
            "allocated 5.00 GiB, reserved 6.00 GiB, asked 2.00 GiB"
        ),
        path="denoise/dit.block",
        step=3,
        allocated_bytes=5 * GIB,
        reserved_bytes=6 * GIB,
    )


def test_device_out_of_memory_outside_every_span() -> None:
    reason = outcome_of(torch.OutOfMemoryError("CUDA error: out of memory"), 2, None).reason

    assert reason == (
        "device out of memory in no span: allocated 0 B, reserved 0 B, "
        "asked an amount that torch does not report"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a wrong number: 42\nmore"), failed(16, "ValueError: a wrong number: 42")),
        (KeyboardInterrupt(), failed(16, "KeyboardInterrupt")),
        (SystemExit(3), failed(16, "SystemExit: 3")),
        (WorkloadError("no vae.pth", hint="get it", exit_code=3), failed(3, "no vae.pth", "get it")),
        (DiskFull("/x: full", hint="make room"), failed(15, "/x: full", "make room")),
        (
            WorkloadError("the device ran out", hint="try less", exit_code=11),
            Outcome(rank=2, status="oom", exit_code=11, reason="the device ran out", hint="try less"),
        ),
        (
            MemoryError(),
            Outcome(rank=2, status="host_oom", exit_code=14, reason="host memory ran out: MemoryError"),
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            Outcome(
                rank=2,
                status="host_oom",
                exit_code=14,
                reason="host memory ran out: can't allocate memory: 9 bytes",
            ),
        ),
    ],
)  # fmt: skip
def test_other_errors(error: BaseException, expected: Outcome) -> None:
    assert outcome_of(error, 2, None) == expected


def test_nccl_without_memory_is_told_with_what_was_free() -> None:
    error = RuntimeError(
        "NCCL error in: x.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
    )
    assert outcome_of(error, 2, FAILURE, free_bytes=12 * 2**20) == Outcome(
        rank=2,
        status="oom",
        exit_code=11,
        reason=(
            "device out of memory in denoise/dit.block of step 3: NCCL got none (Cuda failure 2 'out of memory'), "
            "allocated 5.00 GiB, reserved 6.00 GiB, free 12.0 MiB"
        ),
        path="denoise/dit.block",
        step=3,
        allocated_bytes=5 * GIB,
        reserved_bytes=6 * GIB,
        oom_by="NCCL",
        oom_free_bytes=12 * 2**20,
    )


def test_the_error_that_the_program_made_of_it_is_told_too() -> None:
    try:
        try:
            raise torch.OutOfMemoryError(OOM)
        except RuntimeError as error:
            raise SystemExit("step 0 failed") from error
    except SystemExit as error:
        told = outcome_of(error, 2, ("denoise", 0, 5 * GIB, 6 * GIB))
    assert (told.status, told.exit_code, told.step, told.reason) == (
        "oom",
        11,
        0,
        "device out of memory in denoise of step 0: allocated 5.00 GiB, reserved 6.00 GiB, asked 2.00 GiB; "
        "then SystemExit: step 0 failed",
    )


def test_an_error_of_the_workload_made_of_a_shortage_is_told_by_the_name_it_had_there() -> None:
    class PromptError(Exception):
        pass

    def workload() -> None:
        try:
            raise torch.OutOfMemoryError(OOM)
        except RuntimeError as error:
            raise PromptError("no prompt") from error

    try:
        try:
            workload()
        except PromptError as error:
            raise WorkloadError("no prompt", hint="shorten it", exit_code=5) from error
    except WorkloadError as error:
        found = outcome_of(error, 2, ("encode.text", -1, 5 * GIB, 6 * GIB))
    assert (found.status, found.exit_code, found.hint, found.reason) == (
        "oom",
        11,
        "shorten it",
        "device out of memory in encode.text: allocated 5.00 GiB, reserved 6.00 GiB, asked 2.00 GiB; "
        "then PromptError: no prompt",
    )


def test_a_full_disk_is_no_fault_of_the_program() -> None:
    assert outcome_of(OSError(28, "No space left on device", "/x/ckpt.pt"), 2, None) == failed(
        15, "OSError: [Errno 28] No space left on device: '/x/ckpt.pt'"
    )
