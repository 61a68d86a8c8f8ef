"""Traces of torch.profiler: the steps asked for, in a file per rank, and a clear warning where there are fewer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.spans import span
from ray_memprof.recorder.torch_trace import TraceSchedule, tracing

# Some tests keep every step on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")


def settings(wait: int = 1, warmup: int = 1, active: int = 2) -> TraceSchedule:
    return TraceSchedule(wait=wait, warmup=warmup, active=active)


def make_steps(num_steps: int) -> None:
    """A run: something before the loop, then steps with a part inside."""
    with span("encode.text"):
        torch.ones(2).exp()
    for step in range(num_steps):
        with span("denoise", step=step), span("dit.forward", branch="cond"):
            torch.full((3,), float(step)).exp()


def annotations(path: Path) -> list[str]:
    """Spans in the trace, in order of time."""
    events = json.loads(path.read_text())["traceEvents"]
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    return [event["name"] for event in sorted(marks, key=lambda event: (event["ts"], -event["dur"]))]


def test_a_run_without_steps_leaves_no_trace_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracing(settings(), tmp_path / "trace" / "rank0.pt.trace.json"):
        pass
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == (
        "warning: logging.profiler asks for 4 steps (wait 1, warmup 1, active 2), 0 were made: no trace is left\n"
    )


def test_the_active_steps_and_no_others_are_in_the_trace_of_the_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with tracing(settings(), tmp_path / "trace" / "rank3.pt.trace.json"):
        make_steps(6)
        assert [path.name for path in (tmp_path / "trace").iterdir()] == ["rank3.pt.trace.json"]
    path = tmp_path / "trace" / "rank3.pt.trace.json"
    assert [name for name in annotations(path) if not name.startswith("ProfilerStep")] == [
        "denoise step=2", "dit.forward branch=cond", "denoise step=3", "dit.forward branch=cond",
    ]  # fmt: skip
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("aten::exp") == 2
    assert "[memory]" in names  # profile_memory is on unless switched off
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("num_steps", "left", "marks"),
    [
        (1, "no trace is left", None),
        (2, "0 of 2 active steps are in {path}", 0),
        (3, "1 of 2 active steps are in {path}", 1),
    ],
)
def test_fewer_steps_than_asked_for_are_told_and_what_there_is_is_written(
    num_steps: int, left: str, marks: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracing(settings(), tmp_path / "trace" / "rank0.pt.trace.json"):
        make_steps(num_steps)
    path = tmp_path / "trace" / "rank0.pt.trace.json"
    assert capsys.readouterr().err == (
        f"warning: logging.profiler asks for 4 steps (wait 1, warmup 1, active 2), {num_steps} were made: "
        f"{left.format(path=path)}\n"
    )
    found = None if not path.exists() else sum(name.startswith("denoise") for name in annotations(path))
    assert found == marks


def test_a_run_that_fails_in_a_step_leaves_the_steps_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(RuntimeError, match="no room"),
        tracing(settings(wait=0, warmup=0, active=5), tmp_path / "trace" / "rank0.pt.trace.json"),
    ):
        make_steps(2)
        with span("denoise", step=2):
            raise RuntimeError("no room")
    path = tmp_path / "trace" / "rank0.pt.trace.json"
    assert f"2 were made: 2 of 5 active steps are in {path}" in capsys.readouterr().err
    assert [name for name in annotations(path) if name.startswith("denoise")] == [
        "denoise step=0", "denoise step=1", "denoise step=2",
    ]  # fmt: skip


def test_steps_inside_steps_do_not_count(tmp_path: Path) -> None:
    """A profiled script may open spans of its own inside those that its modules get."""
    with tracing(settings(wait=0, warmup=0, active=2), tmp_path / "trace" / "rank0.pt.trace.json"):
        for step in range(2):
            with span("module", component="Net", step=step), span("denoise", step=0):
                torch.ones(1).exp()
    marks = annotations(tmp_path / "trace" / "rank0.pt.trace.json")
    assert [name for name in marks if not name.startswith("ProfilerStep")] == [
        "module component=Net step=0", "denoise step=0", "module component=Net step=1", "denoise step=0",
    ]  # fmt: skip


def test_a_trace_that_cannot_be_written_ends_the_run_that_went_well(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("not a folder")
    with (
        pytest.raises(DiskFull) as raised,
        tracing(settings(0, 0, 1), tmp_path / "trace" / "rank0.pt.trace.json"),
    ):
        make_steps(2)
    assert (str(raised.value), raised.value.hint) == (
        f"the trace could not be written: [Errno 17] File exists: '{tmp_path}/trace'",
        "torch.profiler writes the cause into the log of the rank",
    )


def test_a_trace_that_breaks_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiler itself only logs that the disk is full."""

    def export(self: object, path: str) -> None:
        Path(path).write_text('{"traceEvents": [{"name": "cut')

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", export)
    with pytest.raises(DiskFull, match=r"rank0\.pt\.trace\.json\.tmp breaks off after 30 bytes"):
        with tracing(settings(0, 0, 1), tmp_path / "trace" / "rank0.pt.trace.json"):
            make_steps(1)
    assert not (tmp_path / "trace" / "rank0.pt.trace.json").exists()


@pytest.mark.parametrize("name", ["start", "step", "stop"])
def test_a_profiler_that_fails_ends_the_trace_and_not_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("Kineto is busy")

    monkeypatch.setattr(torch.profiler.profile, name, fails)
    problems: list[str] = []
    with tracing(settings(), tmp_path / "trace" / "rank0.pt.trace.json", problems.append):
        make_steps(3)
    assert problems == ["there is no trace, for torch.profiler failed: RuntimeError: Kineto is busy"]
