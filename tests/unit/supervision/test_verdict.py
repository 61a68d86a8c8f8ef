"""Whose fault an error is: a peer's, or the rank's own."""

from pathlib import Path

import pytest

from ray_memprof.errors import DiskFull
from ray_memprof.rank.messages import Outcome
from ray_memprof.supervision.verdict import (
    Verdict,
    interruption,
    is_peer_error,
    judge,
    verdict_of,
    verdict_of_bug,
)

STORE = "[Rank 1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] by key '0'"


def failed(rank: int, reason: str) -> Outcome:
    return Outcome(rank=rank, status="failed", exit_code=16, reason=reason)


@pytest.mark.parametrize(
    "reason",
    [
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection reset by peer",
        "RuntimeError: [gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800ms for recv operation",
        "RuntimeError: Connection closed by peer",
        "RuntimeError: Rank 2 successfully reached monitoredBarrier, but failed to recv",
        "DistBackendError: ncclRemoteError: NET/Socket : peer 10.0.0.1<4444> has unexpectedly closed the connection",
        "DistBackendError: ncclSystemError: Connect to 10.0.0.1<4444> returned 111(Connection refused)",
        "DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)",
        "DistBackendError: NCCL communicator was aborted on rank 1.",
        f"DistBackendError: {STORE}, but store->get('0') got error: wait timeout after 600000ms",
        "DistStoreError: wait timeout after 8000ms, keys: /default_pg/0//cuda//0",
        "DistStoreError: Timed out after 301 seconds waiting for clients. 1/2 clients joined.",
        "DistNetworkError: failed to recv, got 0 bytes",
        "DistNetworkError: The client socket has timed out after 60000ms while trying to connect.",
    ],
)
def test_who_only_complains_of_another_rank(reason: str) -> None:
    assert is_peer_error(failed(1, reason))


@pytest.mark.parametrize(
    "reason",
    [
        "DistBackendError: ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
        "DistBackendError: ncclUnhandledCudaError: Cuda failure 999 'unknown error'",
        "DistBackendError: ncclInternalError: Message truncated : received 1024 bytes instead of 256",
        "DistBackendError: ncclSystemError: Error while creating segment /dev/shm/x: No space left on device",
        "DistNetworkError: The server socket has failed to listen on any address. port: 29500, EADDRINUSE",
        "RuntimeError: PytorchStreamReader failed reading file data/7: unexpected end of file",
        "RuntimeError: PytorchStreamReader failed reading /data/gloo/x.pt: unexpected end of file",
        "RuntimeError: download of https://example.org/x failed: Connection reset by peer",
        "RuntimeError: recv failed",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "ProtocolError: ('Connection broken: ConnectionResetError(104)', 'Connection reset by peer')",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "EOFError: Ran out of input",
        "TimeoutError: timed out waiting for the prompt service",
        "ValueError: wait timeout must be positive",
    ],
)
def test_what_is_the_ranks_own(reason: str) -> None:
    one = failed(1, reason)
    assert not is_peer_error(one)
    verdict = judge([failed(0, "DistNetworkError: failed to recv, got 0 bytes"), one], ("a", "a"))
    assert (verdict.ranks, verdict.reason, verdict.hint) == (
        (1,),
        f"rank 1: {reason}",
        "the traceback is in logs/rank1.log",
    )


def test_a_rank_that_names_itself_is_named_once() -> None:
    full = [failed(rank, f"rank {rank}: cannot write /x: No space left on device") for rank in (1, 0)]
    assert judge(full[:1], ("a", "a")).reason == "rank 1: cannot write /x: No space left on device"
    # The first of several speaks.
    assert judge(full, ("a", "a")).reason == "rank 1: cannot write /x: No space left on device"


@pytest.mark.parametrize(("has_started", "status"), [(False, "never_started"), (True, "failed")])
def test_an_error_of_the_driver_is_the_verdict_with_its_own_code_and_hint(
    has_started: bool, status: str
) -> None:
    error = DiskFull("/x: full", hint="make room")
    assert verdict_of(error, has_started=has_started) == Verdict(
        status=status,  # type: ignore[arg-type] # one of Status
        exit_code=15,
        reason="/x: full",
        hint="make room",
    )


def test_a_bug_is_told_in_one_line_with_the_file_of_its_traceback() -> None:
    found = verdict_of_bug(KeyError("a\nb"), Path("logs/driver.log"))
    assert (found.exit_code, found.reason) == (1, "internal error: KeyError: 'a\\nb'")
    assert verdict_of_bug(ValueError("a\nb"), Path("d.log")).reason == "internal error: ValueError: a"
    assert found.hint == "please report it, with logs/driver.log"


def test_a_signal_is_the_verdict_with_the_code_that_a_shell_reports() -> None:
    found = interruption(15)
    assert (found.status, found.exit_code, found.reason) == ("interrupted", 143, "interrupted by SIGTERM")
