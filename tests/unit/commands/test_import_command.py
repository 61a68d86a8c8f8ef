"""The command `import`: what it prints, refuses and leaves."""

import errno
import os
import pickle
from pathlib import Path

import pytest
from snapshots import MIB, Call, Simulation, event, snapshot, write
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import DiskFull
from ray_memprof.formats.torch_snapshot.read import import_snapshots


def test_the_command_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = write(Path("rank0.pickle"), snapshot([event("alloc", 0, 512)], []))
    Path("rank1.pickle").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path}/pwned")))

    result = CliRunner().invoke(app, ["import", str(good), "rank1.pickle", "--name", "theirs"])

    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "error: rank1.pickle asks for 'posix.system': a snapshot holds data only; nothing of it was run",
        "hint: import only what torch.cuda.memory._dump_snapshot or `ray-memprof export --format snapshot` wrote",
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "profiler_logs",
        "rank0.pickle",
        "rank1.pickle",
    ]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("latest", "stands for the newest run wherever a run is asked for"),
        ("a/b", "must be letters from A to Z, digits"),
        ("..", "must be letters from A to Z, digits"),
        ("-x", "must be letters from A to Z, digits"),
        ("\u00e9", "must be letters from A to Z, digits"),
        ("x" * 121, "must be at most 120 characters long"),
    ],
)
def test_a_name_follows_the_rules_of_the_key_name(tmp_path: Path, name: str, what: str) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], []))
    folder = ["--output-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["import", str(path), f"--name={name}", *folder])
    assert (result.exit_code, what in result.output) == (2, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("written_by", ["a table", "the run itself"])
def test_a_full_disk_is_told_with_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_by: str
) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], []))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if written_by == "a table":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match="No space left on device") as caught:
        import_snapshots([path], tmp_path / "runs" / "x", "x")
    assert caught.value.hint == "make room on that disk, or name a folder on another one: --output-dir"
    assert not (tmp_path / "runs").exists()


def test_the_command_makes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rank0.pickle"), Simulation(1, expandable=False).snapshot())

    result = CliRunner().invoke(app, ["import", "rank0.pickle", "--name", "theirs"])

    assert result.exit_code == 0, result.output
    latest = tmp_path / "profiler_logs" / "theirs" / "latest"
    assert result.stdout == f"report: {latest.resolve() / 'report.html'}\n"
    assert result.stderr == "rank 0: rank0.pickle, cuda:0\n"
    assert (latest / "run.duckdb").exists()


def test_names_of_files_tell_a_terminal_nothing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "\x1b[31m\nrank0: x.pickle", snapshot([event("segment_alloc", 0, 2 * MIB, 1)], [])
    )
    done = CliRunner().invoke(
        app, ["import", str(path), "--name", "x", "--output-dir", str(tmp_path / "runs")]
    )
    assert done.exit_code == 0
    # The events end elsewhere than the segments: a warning names the file too.
    lines = done.stderr.splitlines()
    assert len(lines) > 1
    assert all(line.startswith(("rank 0: ", "warning: rank 0: ")) for line in lines)
    assert "\x1b" not in done.stderr
    assert lines[0] == rf"rank 0: {tmp_path}/\x1b[31m\nrank0: x.pickle, cuda:0"
