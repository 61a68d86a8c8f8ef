"""The commands that find, show and remove runs: ls, show, open, rm, gc, doctor, --version."""

import json
import shutil
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from run_tables import make_ranks, make_run, span, summary_lines
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.driver import doctor
from ray_memprof.report.derive import derive
from ray_memprof.store.processes import process_facts

MIB, SECOND = 2**20, 10**9
OLD, NEW = "20260101-000000-aaaa", "20260102-000000-bbbb"


def make(folder: Path, peak: int, **facts: Any) -> Path:
    """A run of one rank, derived unless it is running."""
    told = {"run_id": folder.name, "name": folder.parent.name, "status": "ok", "num_ranks": 1, "exit_code": 0}
    known = {**told, "start_ns": SECOND, **facts}
    make_run(folder, {0: {"spans": [span(1, "denoise", (0, SECOND), allocated=(0, 0, peak * MIB))]}})
    (folder / "run.json").write_text(json.dumps(known))
    (folder.parent / "latest").unlink(missing_ok=True)
    (folder.parent / "latest").symlink_to(folder.name)
    if known["status"] != "running":
        make_ranks(folder, {"status": "ok"}, **told, source="cpu", config="{}", environment="{}")
        derive(folder, [])
    return folder


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; to derive them takes a second each."""
    folder = tmp_path_factory.mktemp("made")
    make(folder / "base" / OLD, 100)
    make(folder / "wide" / NEW, 120, status="failed", exit_code=16, problems=["it broke"])
    return folder


@pytest.fixture
def logs(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_MEMPROF_DIR", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    shutil.copytree(made_once, tmp_path / "profiler_logs", symlinks=True)
    return tmp_path / "profiler_logs"


def going_on(folder: Path) -> Path:
    return make(folder, 7, status="running", driver=process_facts(), progress={"step": 1, "t_ns": 2**62})


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def lines(*arguments: object) -> list[str]:
    result = call(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


# ls


def test_there_are_no_runs(tmp_path: Path) -> None:
    assert lines("ls", "--output-dir", tmp_path) == [f"no runs in {tmp_path}"]
    assert lines("ls", "--output-dir", tmp_path, "--json") == ["[]"]
    nowhere = tmp_path / "nowhere"
    assert lines("ls", "--output-dir", nowhere) == [f"no runs in {nowhere}, for there is no such folder"]


def test_runs_are_listed_the_newest_first(logs: Path) -> None:
    head, _, *rows = [line.split() for line in lines("ls")]
    assert head == [
        "name",
        "run",
        "when",
        "age",
        "status",
        "ranks",
        "device",
        "used",
        "allocated",
        "on",
        "disk",
    ]
    assert [(row[0], row[1], row[2], row[6], row[7]) for row in rows] == [
        ("wide", NEW, "1970-01-01", "failed", "1"),
        ("base", OLD, "1970-01-01", "ok", "1"),
    ]
    assert [row[-4:-2] for row in rows] == [["120", "MiB"], ["100", "MiB"]]


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (120, "name run when age status ranks device used allocated on disk"),
        (80, "name run age status ranks device used"),
        (60, "name run status device used"),
        (40, "name run status"),
    ],
)
def test_a_narrow_terminal_has_a_line_for_each_run(
    logs: Path, monkeypatch: pytest.MonkeyPatch, width: int, names: str
) -> None:
    monkeypatch.setattr("ray_memprof.query.answers.terminal_width", lambda: width)
    head, _, *rows = lines("ls")
    assert head.split() == names.split()
    assert len(rows) == 2 and all(len(row) <= width for row in rows)


def test_only_some_runs_are_listed_and_the_rest_is_told(logs: Path) -> None:
    assert [line.split()[0] for line in lines("ls", "b*")[2:]] == ["base"]
    assert lines("ls", "nope") == [f"no runs of that name in {logs}"]
    assert lines("ls", "--most", "1")[-1] == "1 older runs: --most, or --json for all"


def test_runs_are_listed_for_programs(logs: Path, tmp_path: Path) -> None:
    found = json.loads(call("ls", "--json", "--out", tmp_path / "runs.json").stdout or "null")
    assert found is None
    wide, base = json.loads((tmp_path / "runs.json").read_text())
    assert (wide["run_id"], wide["allocated_peak_bytes"], wide["exit_code"]) == (NEW, 120 * MIB, 16)
    assert base["path"] == str(logs / "base" / OLD)
    assert base["size_bytes"] == sum(
        one.stat().st_size for one in (logs / "base" / OLD).rglob("*") if one.is_file()
    )


# show


def test_the_last_lines_are_those_that_were_measured(logs: Path) -> None:
    run = logs / "base" / OLD
    assert lines("show", "base") == [
        "base: ok, exit 0",
        *summary_lines(run),
        f"report: {run / 'report.html'}",
    ]
    first, second, *_ = lines("show")
    assert (first, second) == ("wide: failed, exit 16", "warning: it broke")


def test_lines_come_from_the_summary_and_else_from_the_tables(logs: Path) -> None:
    run = logs / "base" / OLD
    before = lines("show", "base")
    (run / "summary.json").unlink()
    assert lines("show", "base") == before
    (run / "summary.json").write_text(
        json.dumps(
            {
                "lines": ["as printed"],
                "allocated_peak_bytes": 1,
                "device_used_peak_bytes": 1,
                "records_bytes": 1,
            }
        )
    )
    assert lines("show", "base")[1:-1] == ["as printed"]


def test_a_run_that_goes_on_shows_what_there_is(logs: Path) -> None:
    run = going_on(logs / "base" / "20260103-000000-cccc")
    result = call("show", "base")
    text = "running, step 2"
    note = f"note: base/{run.name}: {text}; this is only what was recorded until now\n"
    assert (result.exit_code, result.stderr) == (0, note)
    shown = result.stdout.splitlines()
    assert (shown[0], shown[-1]) == (f"base: {text}", f"run folder: {run}")
    assert shown[1].startswith("rank 0: peak allocated 7.00 MiB")


def test_a_recorded_program_that_ended_well_tells_no_exit_code(logs: Path) -> None:
    make(logs / "prog" / "r1", 1, started_by="record")
    assert lines("show", "prog")[0] == "prog: ok"


# open


class Browser:
    """Writes down what it is asked to open."""

    def __init__(self, name: str, works: bool) -> None:
        self.name, self.works, self.opened = name, works, list[str]()

    def open(self, url: str) -> bool:
        self.opened.append(url)
        return self.works


@pytest.mark.parametrize(
    ("browser", "is_asked", "is_shown"),
    [
        (Browser("firefox", True), True, True),
        (Browser("firefox", False), True, False),
        (Browser("w3m", True), False, False),
        (None, False, False),
    ],
)
def test_the_report_is_opened_or_only_named(
    logs: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser | None, is_asked: bool, is_shown: bool
) -> None:
    def get() -> Browser:
        if browser is None:
            raise webbrowser.Error("could not locate runnable browser")
        return browser

    monkeypatch.setattr(webbrowser, "get", get)
    result = call("open", "base")
    path = logs / "base" / OLD / "report.html"
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert (browser.opened if browser else []) == ([f"file://{path}"] if is_asked else [])
    assert result.stderr.startswith("note: there is no browser here") != is_shown


def test_there_is_no_report_to_open(logs: Path) -> None:
    (logs / "base" / OLD / "report.html").unlink()
    result = call("open", "base")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [f"error: base/{OLD} has no report.html", f"hint: ray-memprof report base/{OLD} writes it"],
    )


# rm, gc


def test_runs_are_removed_and_first_only_named(logs: Path) -> None:
    (first, last) = lines("rm", "base", "--dry-run")
    assert first.startswith(f"would remove base/{OLD} (")
    assert lines("rm", "base", f"base/{OLD}")[0] == first.replace("would remove", "removed")
    assert last.startswith("would remove 1 run")
    assert [one.name for one in logs.iterdir()] == ["wide"]


def test_no_run_is_removed_if_one_goes_on(logs: Path) -> None:
    going_on(logs / "live" / "20260103-000000-cccc")
    result = call("rm", "base", "live")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: live/20260103-000000-cccc is not removed: running, step 2")
    assert sorted(one.name for one in logs.iterdir()) == ["base", "live", "wide"]


def test_a_run_whose_facts_cannot_be_read_is_left_to_the_user(logs: Path) -> None:
    broken = logs / "broken" / "20260103-000000-cccc"
    (broken / "tables").mkdir(parents=True)
    (broken / "run.json").write_text("{garbage")
    result = call("rm", "broken")
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: {broken} is not removed: {broken / 'run.json'} cannot be read: ")
    assert hint == "hint: if nothing in it is needed, remove the folder yourself"
    assert broken.is_dir()


def test_a_file_of_a_run_does_not_stand_for_all_of_it(logs: Path) -> None:
    file = logs / "base" / OLD / "report.html"
    result = call("rm", file)
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            f"error: {file} lies in the run base/{OLD}, which would go as a whole",
            f"hint: ray-memprof rm base/{OLD}, or remove the file yourself",
        ],
    )
    assert file.exists()
    assert lines("rm", file.parent)[0].startswith(f"removed base/{OLD}")


def test_all_but_the_newest_go(logs: Path) -> None:
    going_on(logs / "live" / "20250101-000000-cccc")
    assert lines("gc", "--keep", "2", "--dry-run") == ["nothing to remove"]
    assert lines("gc", "--keep", "1", "--dry-run")[0].startswith(f"would remove base/{OLD}")
    assert lines("gc", "--keep", "1")[-1].startswith("removed 1 run, ")
    assert sorted(one.name for one in logs.iterdir()) == ["live", "wide"]
    assert call("gc").exit_code == 2  # how many stay is said, not guessed


# --version, doctor


def test_the_version_is_printed() -> None:
    (line,) = lines("--version")
    assert line.startswith("ray-memprof 0.")


def test_the_doctor_fits_on_a_screen_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda: {"error": "not installed"})
    monkeypatch.setattr(doctor, "_driver_facts", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda package: "1.2" if package == "ray" else "")
    shown = lines("doctor", "--output-dir", tmp_path / "new" / "logs")
    assert len(shown) <= 24
    names = [line.split()[0] for line in shown if not line.startswith(" ")]
    assert names == ["Python", "ray-memprof", "torch", "driver", "Ray", "disk", "/dev/shm", "packages"]
    assert "torch        not installed" in shown
    assert any(line.strip().startswith("-> pip install ") and "duckdb" in line for line in shown)
