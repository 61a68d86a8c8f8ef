"""What the end of a script means; how it runs is tested in a process of its own (tests/programs)."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ray_memprof.errors import EXIT_WORKLOAD, WorkloadError
from ray_memprof.workload.script import ScriptFailed, explained, run_script
from wan.errors import WeightsError


@pytest.mark.parametrize("code", [None, 0, False])
def test_an_exit_that_means_success_is_success(code: Any) -> None:
    assert explained(SystemExit(code), "job.py") is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (3, "job.py ended with exit code 3"),
        (True, "job.py ended with exit code 1"),
        ("no prompt given", "job.py ended with exit code 1: no prompt given"),
        ("", "job.py ended with exit code 1"),
        (256 + 7, "job.py ended with exit code 7"),
    ],
)
def test_any_other_exit_is_a_failure_that_tells_the_code(code: Any, told: str) -> None:
    found = explained(SystemExit(code), "job.py")
    assert isinstance(found, ScriptFailed)
    assert (str(found), found.hint, found.exit_code) == (
        told, "its output is in the rank's log", EXIT_WORKLOAD,
    )  # fmt: skip


def test_another_error_stays_as_it_is() -> None:
    error = ZeroDivisionError()
    assert explained(error, "job.py") is error


def test_an_error_of_wan_keeps_its_text_hint_and_exit_code() -> None:
    error = WeightsError("t5.pth: cut off", hint="load it again")
    found = explained(error, "job.py")
    assert isinstance(found, WorkloadError)
    assert (str(found), found.hint, found.exit_code) == ("t5.pth: cut off", "load it again", 3)
    assert found.__cause__ is error


def test_errors_of_a_package_that_is_also_called_wan_are_no_errors_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WanError(Exception):
        hint = 7

    theirs = ModuleType("wan.errors")
    theirs.WanError = WanError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wan.errors", theirs)
    error = WanError()
    assert explained(error, "job.py") is error
    monkeypatch.setattr(theirs, "WanError", "no class")
    assert explained(error, "job.py") is error


def test_a_script_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed) as raised:
        run_script(tmp_path / "absent.py", "", ())
    assert (str(raised.value), raised.value.hint) == (
        f"script.path {tmp_path / 'absent.py'}: there is no such file on {os.uname().nodename}",
        "every node must see the script under the same path",
    )
