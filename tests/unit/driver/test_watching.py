"""A run as another terminal sees it: by the launcher's file, by the notes of recorded ranks, until it has ended."""

import io
import json
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_tables import make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.driver import watching
from ray_memprof.driver.far_runs import FarRun
from ray_memprof.driver.watching import Folder, follow, run_to_watch, view
from ray_memprof.errors import ConfigError
from ray_memprof.recorder.status import Beat
from ray_memprof.store.live_file import LiveFile
from ray_memprof.store.processes import process_facts
from ray_memprof.store.rank_notes import note_rank
from ray_memprof.store.run_summary import note_summary
from ray_memprof.store.standing import Standing, standing

GIB = 2**30
OLD, NEW = "20260101-000000-aaaa", "20260102-000000-bbbb"


def made(folder: Path, status: str = "running", **facts: Any) -> Path:
    if not folder.exists():
        make_run(folder, {0: {"spans": [span(1, "denoise", (0, 10), allocated=(0, 0, GIB))]}})
    known = {"run_id": folder.name, "name": folder.parent.name, "num_ranks": 2, "status": status}
    now = {"start_ns": time.time_ns(), "driver": process_facts()}
    (folder / "run.json").write_text(json.dumps({**known, **now, **facts}))
    return folder


def beat(rank: int, step: int, gib: float = 1.0) -> Beat:
    return Beat(
        rank=rank, sequence=1, path="denoise", stage="denoise", step=step, num_steps=8,
        allocated_bytes=int(gib * GIB), reserved_bytes=int(2 * gib * GIB), device_used_bytes=int(3 * gib * GIB),
    )  # fmt: skip


def note(run_dir: Path, *beats: Beat, done: int = 3) -> None:
    pace = {"num_done": done, "num_total": 8, "text": "2.0 s a step, 10 s left in the steps"}
    LiveFile(run_dir).note(lambda: {"device": "cuda", "pace": pace, "beats": list(map(asdict, beats))})


def now_of(run_dir: Path) -> Standing:
    found = standing(run_dir)
    assert found is not None
    return found


def seen(run_dir: Path, **options: Any) -> list[str]:
    """What follow() prints into a file."""
    out = io.StringIO()
    follow(Folder(run_dir), Console(file=out, width=110), **options)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run 'latest'"):
        run_to_watch(None, tmp_path)


def test_the_newest_that_goes_on_is_watched_and_else_the_newest(tmp_path: Path) -> None:
    made(tmp_path / "a" / OLD, "ok")
    new = made(tmp_path / "b" / NEW, "ok")
    assert run_to_watch(None, tmp_path) == new
    live = made(tmp_path / "c" / "20250101-000000-cccc")
    (made(tmp_path / "d" / "20270101-000000-dddd") / "run.json").write_text("{")
    assert run_to_watch(None, tmp_path) == live
    assert run_to_watch("b", tmp_path) == new


def test_the_table_of_the_launcher_is_shown(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD)
    note(run, beat(1, 3))
    title, head, first, second, *_, pace = seen(run, once=True)
    assert title == f"a/{OLD}: running"
    assert head.split()[:4] == ["rank", "stage", "step", "allocated"]
    assert first.split() == ["0", "waiting"]
    assert second.split() == [
        *("1", "denoise", "step", "4", "of", "8", "1.00", "GiB", "2.00", "GiB", "3.00", "GiB", "1.00", "GiB"),
    ]
    assert pace.endswith(" 2.0 s a step, 10 s left in the steps")


def test_a_run_whose_ranks_do_not_work_yet(tmp_path: Path) -> None:
    (tmp_path / "a" / OLD).mkdir(parents=True)
    run = made(tmp_path / "a" / OLD)
    assert run_to_watch(None, tmp_path) == run_to_watch("a", tmp_path) == run
    assert seen(run, once=True) == [f"a/{OLD}: running, before its first step"]


def test_a_launcher_that_says_nothing_is_told(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD)
    note(run, beat(0, 1))
    late = view(run, now_of(run), time.time() + 30)
    assert late.warning == "the launcher has said nothing for 30 s"
    assert view(run, now_of(run)).warning == ""


def test_ranks_without_a_launcher_are_shown_by_what_they_say(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD, started_by="record", num_ranks=3)
    note_rank(run, 0, {"status": "running", "gpu_index": 5, **process_facts()})
    note_rank(run, 1, {"status": "ok", **process_facts()})
    title, head, *rows = seen(run, once=True)
    assert title.startswith(f"a/{OLD}: running, for 0 s now")
    assert head.split() == ["rank", "status", "host", "process", "device", "last", "rows"]
    host = socket.gethostname()
    assert [row.split()[:3] for row in rows] == [["0", "running", host], ["1", "ok", host], ["2", "waiting"]]
    assert ("GPU 5" in rows[0], "CPU" in rows[1], rows[0].endswith("0 s ago")) == (True, True, True)
    first, later = view(run, now_of(run)), view(run, standing(run, time.time_ns() + 9 * 10**9) or now_of(run))
    assert first.line().endswith("running, for 0 s now: 1 of 3 ranks run")
    assert (later.line() != first.line(), later.mark()) == (True, first.mark())  # only time has passed


def test_of_very_many_ranks_the_first_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD, started_by="record", num_ranks=1000)
    found = view(run, now_of(run))
    assert (len(found.notes), found.warning) == (watching.MOST_NOTES, "and 936 more ranks")


def test_lines_come_when_rank_0_gets_on_and_the_last_ones_at_the_end(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD)
    steps = iter([0, 0, -1, 1, 1, None])  # -1: between two stages

    def go_on(_: float) -> None:
        step = next(steps)
        if step is None:
            LiveFile(run).remove()
            made(run, "ok", exit_code=0)
            note_summary(run, ["measured"], [])
        elif step < 0:
            note(run, replace(beat(0, step), stage=""))
        else:
            note(run, beat(0, step), beat(1, step, gib=2.0))

    held = "2.00 GiB allocated, 4.00 GiB reserved, 6.00 GiB device used (rank 1, the most of 2)"
    pace = "2.0 s a step, 10 s left in the steps"
    assert seen(run, sleep=go_on) == [
        f"a/{OLD}: running, before its first step",
        f"denoise step 1 of 8: {held}, {pace}",
        f"denoise step 2 of 8: {held}, {pace}",
        "a: ok, exit 0",
        "measured",
        f"run folder: {run}",
    ]


def test_a_terminal_shows_the_table_and_then_the_last_lines(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD)
    note(run, beat(0, 1), beat(1, 1))

    def end(_: float) -> None:
        made(run, "ok", exit_code=0)
        note_summary(run, ["measured"], [])

    out = io.StringIO()
    console = Console(file=out, width=110, force_terminal=True, color_system=None, legacy_windows=False)
    follow(Folder(run), console, sleep=end)
    assert "denoise  step 2 of 8   1.00 GiB" in out.getvalue()
    assert out.getvalue().rstrip().endswith(f"a: ok, exit 0\nmeasured\nrun folder: {run}")


def test_the_report_is_waited_for_while_the_launcher_lives(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / OLD, "ok", exit_code=0)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            note_summary(run, ["measured"], [])

    assert seen(run, sleep=sleep)[1] == "measured"
    assert len(waits) == 3


def test_a_run_whose_launcher_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    gone = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1}
    run = made(tmp_path / "a" / OLD, driver=gone)
    assert seen(run, sleep=lambda _: pytest.fail("waited"))[0] == (
        "a: unknown: its driver ended before the run did"
    )


def test_the_command_shows_a_run_once(tmp_path: Path) -> None:
    made(tmp_path / "a" / OLD)
    done = CliRunner().invoke(app, ["watch", "--once", "--output-dir", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"a/{OLD}: running, before its first step\n")


def test_ctrl_c_ends_the_watching_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    made(tmp_path / "a" / OLD)
    monkeypatch.setattr(watching, "follow", interrupt)
    done = CliRunner().invoke(app, ["watch", "--output-dir", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, "")


# ---- over Ray ----


def test_the_name_of_an_actor_says_where_a_run_is() -> None:
    run = FarRun("ab12", Path("/home/a b/profiler_logs/ulysses8") / NEW)
    assert FarRun.of(run.name) == run
    for meant in (None, "latest", "ulysses8", NEW, f"ulysses8/{NEW}", str(run.folder)):
        assert run.is_called(meant), meant
    assert not run.is_called("ulysses")


def watched_over_ray(folder: Path, *arguments: str, **environ: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(
        app, ["watch", "--output-dir", str(folder), *arguments], env={"RAY_ADDRESS": None, **environ}
    )
    return done.exit_code, done.stderr.splitlines()


def test_without_a_cluster_there_is_one_line_and_the_exit_code_of_a_ray_that_is_not_reached(
    tmp_path: Path,
) -> None:
    code, (error, hint) = watched_over_ray(tmp_path, "--address", "127.0.0.1:1")
    assert (code, error[:51]) == (22, "error: Ray at 127.0.0.1:1 could not be reached: [Er")
    assert hint.startswith("hint: is it running there?")
    assert watched_over_ray(tmp_path, RAY_ADDRESS="127.0.0.1:1") == (code, [error, hint])


def test_ray_is_not_asked_where_the_run_is_here_or_no_cluster_is_named(tmp_path: Path) -> None:
    code, (error, *_) = watched_over_ray(tmp_path)
    assert (code, "no run" in error) == (2, True)
    # With its summary: else the report is waited for, because this process, its launcher, lives.
    note_summary(made(tmp_path / "a" / NEW, "ok"), ["measured"], [])
    code, errors = watched_over_ray(tmp_path, "a", RAY_ADDRESS="127.0.0.1:1")
    assert (code, errors) == (0, [])


def test_no_ray_is_started_to_look_for_a_run(tmp_path: Path) -> None:
    code, (error, hint) = watched_over_ray(tmp_path, "--address", "local")
    assert (code, hint) == (2, "hint: HOST:PORT of a Ray that runs, or auto")
    assert error == "error: --address local would start a Ray, in which no run is"


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://head:6379", "head", "head:x"])
def test_an_address_that_is_none_of_a_ray_is_refused_before_it_is_tried(tmp_path: Path, address: str) -> None:
    told = [
        f"error: the address '{address}' of the Ray that the run has joined must be auto or HOST:PORT",
        "hint: on a node of the cluster: --address auto, or that of its head, HOST:6379 where nothing else was set",
    ]
    assert watched_over_ray(tmp_path, "--address", address) == (2, told)
    assert watched_over_ray(tmp_path, RAY_ADDRESS=address) == (2, told)


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_memprof.installed.find_spec", lambda name: None)
    code, errors = watched_over_ray(tmp_path, "--address", "127.0.0.1:1")
    assert (code, errors) == (
        2,
        [
            "error: watching a run of another node needs ray, which is not installed here",
            "hint: pip install 'ray-memprof[run]'",
        ],
    )
