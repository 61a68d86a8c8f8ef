"""The entry point of torch: what it does where CUDA starts later, and that it never breaks the import."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from ray_memprof import record_where_asked
from ray_memprof.rank import hook


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CUDA that starts when it is asked to; what happened, in order."""
    happened: list[str] = []
    lock = threading.RLock()

    def lazy_init() -> None:
        with lock:
            if "cuda" not in happened:
                happened.append("cuda")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "_lazy_init", lazy_init)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: "cuda" in happened)
    return happened


def test_recording_begins_when_cuda_has_started_and_its_threads_may_use_cuda(cuda: list[str]) -> None:
    def begin() -> None:
        thread = threading.Thread(target=lambda: torch.cuda._lazy_init(), daemon=True)
        thread.start()
        thread.join(5)
        cuda.append("waits for ever" if thread.is_alive() else "begins")

    hook._when_cuda_starts(begin)
    assert cuda == []
    torch.cuda._lazy_init()
    torch.cuda._lazy_init()
    assert cuda == ["cuda", "begins"]


def test_a_cuda_that_cannot_start_is_not_recorded_and_its_error_passes(
    cuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "_lazy_init", fails)
    hook._when_cuda_starts(lambda: cuda.append("begins"))
    with pytest.raises(RuntimeError, match="no driver"):
        torch.cuda._lazy_init()
    assert cuda == []


def test_without_cuda_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    before = torch.cuda._lazy_init
    hook._when_cuda_starts(lambda: None)
    assert torch.cuda._lazy_init is before


@pytest.mark.parametrize("value", [None, "", "0"])
def test_off_is_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("RAY_MEMPROF", raising=False)
    else:
        monkeypatch.setenv("RAY_MEMPROF", value)
    monkeypatch.setattr(hook, "_load", lambda asked: pytest.fail("it was loaded"))
    hook.load()


def test_no_error_of_ours_breaks_the_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(asked: str) -> None:
        raise KeyError("odd\nlines")

    monkeypatch.setenv("RAY_MEMPROF", "1")
    monkeypatch.setattr(hook, "_load", fails)
    hook.load()
    err = capsys.readouterr().err
    assert err.startswith("ray-memprof: RAY_MEMPROF=1: nothing is recorded: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("value", "num_loads"), [(None, 0), ("", 0), ("0", 0), ("1", 1), ("run.yaml", 1)])
def test_what_torch_calls_reads_one_variable_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, value: str | None, num_loads: int
) -> None:
    loads: list[None] = []
    monkeypatch.setattr(hook, "load", lambda: loads.append(None))
    monkeypatch.delenv("RAY_MEMPROF", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_MEMPROF", value)
    record_where_asked()
    assert len(loads) == num_loads


def test_where_nothing_is_asked_for_no_other_module_of_ours_is_read() -> None:
    asked = "import sys, ray_memprof; ray_memprof.record_where_asked()"
    text = f"{asked}; print([one for one in sys.modules if 'memprof' in one])"
    environ = {name: one for name, one in os.environ.items() if name != "RAY_MEMPROF"}
    done = subprocess.run(
        [sys.executable, "-c", text], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['ray_memprof']\n"
