"""Folders that the hosts of one start have left become one run, on one clock, or are refused with the reason."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_tables import blank, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.driver.joining import joined
from ray_memprof.driver.recorded import complete
from ray_memprof.errors import ConfigError
from ray_memprof.query import database
from ray_memprof.store import transfer
from ray_memprof.store.run_files import manifest_path
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.writer_lock import has_ended, hold

S = 1_000_000_000
NOW = 1_700_000_000 * S
VARIABLES = {"MASTER_ADDR": "host0", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}


def calls(*times: tuple[int, int], op: str = "barrier") -> list[dict[str, Any]]:
    return [
        blank("collectives", op=op, group="0", group_size=4, start_ns=NOW + start, end_ns=NOW + end)
        for start, end in times
    ]


def host(
    tmp_path: Path,
    number: int,
    ranks: tuple[int, ...],
    *,
    ahead_ns: int = 0,
    program: str = "train.py",
    num_ranks: int = 4,
    variables: dict[str, str] | None = None,
    name: str = "",
    **told: Any,
) -> Path:
    """The folder of a host whose clock is `ahead_ns` ahead: its ranks meet at 2 s and at 5 s."""
    config = f"name: nano\nworkload: script\nscript: {{path: /at{number}/{program}}}\nmodel_config: {{device: cpu}}\n"
    folder = RunFolder.create(
        tmp_path / f"disk{number}{name}", "nano", config_text=config, num_ranks=num_ranks
    )
    folder.note(started_by="record", start=variables or VARIABLES, start_ns=NOW + ahead_ns)
    for rank in ranks:
        late = rank * S // 10
        rows = {
            "spans": [
                span(1, "script", (NOW + ahead_ns, NOW + ahead_ns + 9 * S), allocated=(0, 0, 10 + rank))
            ],
            "collectives": calls(
                (ahead_ns + 2 * S - late, ahead_ns + 2 * S + 1000),
                (ahead_ns + 5 * S - S + late, ahead_ns + 5 * S + 2000),
            ),
            "communicators": [
                blank("communicators", group="0", backend="gloo", group_size=4, how_known="none", ranks="0-3")
            ],
        }
        make_run(folder.path, {rank: rows})
        about = {"rank": rank, "host": f"host{number}", "pid": 4 + rank, "started": 1, "local_rank": rank % 2}
        ended = {"status": "ok", "exit_code": 0, "reason": "", "end_ns": NOW + ahead_ns + 9 * S}
        (folder.path / f"logs/rank{rank}.json").write_text(json.dumps(about | ended | told))
    return folder.path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def columns(run_dir: Path, table: str, rank: int, *names: str) -> list[tuple[Any, ...]]:
    (part,) = run_dir.glob(f"tables/{table}/rank={rank}/part-*.parquet")
    rows = pq.ParquetFile(part).read(list(names)).to_pylist()
    return [tuple(row[name] for name in names) for row in rows]


@pytest.mark.parametrize("order", [0, 1])
def test_all_ranks_come_into_the_folder_of_rank_0(tmp_path: Path, order: int) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3))
    before = files(away)
    run_dir, notes = joined([home, away] if not order else [away, home])
    assert (run_dir, notes) == (home, [])
    lines = complete(run_dir)
    assert lines[0] == "nano: ok"
    assert not [line for line in lines if line.startswith(("warning", "hint"))]
    peaks = database.query(home, "peak_by_rank").to_pylist()
    assert [one["allocated_peak_bytes"] for one in peaks] == [10, 11, 12, 13]
    places = [columns(home, "ranks", rank, "host", "node", "local_rank") for rank in range(4)]
    assert places == [[("host0", 0, 0)], [("host0", 0, 1)], [("host1", 1, 0)], [("host1", 1, 1)]]
    assert files(away) == before


def test_a_folder_in_which_a_rank_is_still_written_is_taken_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3))
    monkeypatch.setattr(transfer, "has_ended", lambda path: has_ended(path, 0.1))
    with hold(manifest_path(away, 3)), pytest.raises(ConfigError) as raised:
        joined([home, away])
    assert str(raised.value) == f"{away}: the records of rank 3 are still being written"
    joined([home, away])
    assert complete(home)[0] == "nano: ok"


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3), ahead_ns=70 * S)
    assert joined([home, away])[1]
    lines = complete(home)
    times = columns(home, "spans", 2, "start_ns", "end_ns")
    assert joined([away, home]) == (home, [])
    assert complete(home) == lines
    assert columns(home, "spans", 2, "start_ns", "end_ns") == times


@pytest.mark.parametrize("ahead_ns", [70 * S, -70 * S, 3 * S])
def test_times_of_a_host_whose_clock_is_off_are_shifted_by_what_their_barriers_tell(
    tmp_path: Path, ahead_ns: int
) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3), ahead_ns=ahead_ns)
    _, (note,) = joined([home, away])
    assert ("ahead of" if ahead_ns > 0 else "behind") in note
    complete(home)
    (((offset_ns,),),) = {tuple(columns(home, "ranks", rank, "clock_offset_ns")) for rank in (2, 3)}
    # Rank 3 waits least at the first barrier and rank 0 at the second: the bounds are these waits.
    assert abs(offset_ns - ahead_ns) < S
    for rank in (2, 3):
        assert columns(home, "spans", rank, "start_ns", "end_ns") == [
            (NOW + ahead_ns - offset_ns, NOW + ahead_ns + 9 * S - offset_ns)
        ]
    lines = complete(home)  # sizes of the rewritten parts are those of the manifest
    assert not [line for line in lines if line.startswith("warning")]
    assert columns(home, "spans", 0, "start_ns") == [(NOW,)]


def test_clocks_that_no_barrier_contradicts_are_taken_as_they_are(tmp_path: Path) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3), ahead_ns=10_000)
    assert joined([home, away]) == (home, [])
    assert columns(home, "spans", 2, "start_ns") == [(NOW + 10_000,)]


def test_ranks_that_no_folder_has_are_told(tmp_path: Path) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (3,))
    lines = complete(joined([home, away])[0])
    assert any(line.startswith("warning: rank 2: recorded nothing") for line in lines)
    assert lines[-1].startswith("hint: rank 2 left nothing here")


def test_a_killed_rank_of_the_other_host_is_taken_in_once_it_is_silent(tmp_path: Path) -> None:
    home, away = host(tmp_path, 0, (0, 1)), host(tmp_path, 1, (2, 3))
    note = away / "logs/rank3.json"
    facts = json.loads(note.read_text())
    note.write_text(
        json.dumps({name: facts[name] for name in facts if name != "end_ns"} | {"status": "running"})
    )
    with pytest.raises(ConfigError, match="has not ended: still running: rank 3"):
        joined([home, away])
    assert not (home / "logs/rank2.json").exists()
    for path in [*away.glob("tables/*/rank=3/*"), note]:
        os.utime(path, (1_700_000_000,) * 2)
    complete(joined([home, away])[0])
    facts = RunFolder.open(home).facts
    assert (facts["status"], facts["culprits"]) == ("died", [3])


def test_without_the_folder_of_rank_0_the_others_come_together(tmp_path: Path) -> None:
    one, other = host(tmp_path, 1, (4, 5), num_ranks=6), host(tmp_path, 2, (2, 3), num_ranks=6)
    run_dir, _ = joined([one, other])
    assert run_dir == other
    assert len(list(run_dir.glob("tables/spans/rank=*"))) == 4


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"num_ranks": 8}, "number of ranks 4 and 8"),
        ({"program": "eval.py"}, "program train.py and eval.py"),
        ({"variables": {**VARIABLES, "TORCHELASTIC_RUN_ID": "b"}}, "TORCHELASTIC_RUN_ID none and b"),
        ({"variables": {"SLURM_JOB_ID": "7", "MASTER_PORT": "29501"}}, "MASTER_PORT 29500 and 29501"),
        ({"ranks": (1, 2)}, "rank 1 is in "),
        ({"ahead_ns": 1000 * S}, "one began 991 s after the other had ended"),
        ({"ranks": ()}, "there is no run"),
    ],
)
def test_what_is_not_of_one_start_is_refused_with_the_reason(
    tmp_path: Path, other: dict[str, Any], line: str
) -> None:
    home = host(tmp_path, 0, (0, 1))
    away = host(tmp_path, 1, **{"ranks": (2, 3)} | other)
    before = files(home)
    done = CliRunner().invoke(app, ["finish", str(home), str(away)])
    assert done.exit_code == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 2  # the line and its hint
    assert files(home) == before


def test_each_host_may_write_the_address_of_the_first_in_its_own_way(tmp_path: Path) -> None:
    home = host(tmp_path, 0, (0, 1))
    away = host(tmp_path, 1, (2, 3), variables={**VARIABLES, "MASTER_ADDR": "10.0.0.1"})
    assert joined([home, away])[0] == home


def test_folders_that_cannot_be_taken_are_one_line(tmp_path: Path) -> None:
    home = host(tmp_path, 0, (0, 1))
    launched = host(tmp_path, 1, (2, 3))
    RunFolder.open(launched).note(started_by="launch")
    torn = host(tmp_path, 2, (2, 3))
    (torn / "run.json").unlink()
    copy = Path(shutil.copytree(home, tmp_path / "copy"))
    for other, line in (
        (home, "is named twice"),
        (launched, "was not recorded by its ranks"),
        (torn, "run.json is missing or empty"),
        (tmp_path / "nowhere", "there is no run"),
    ):
        done = CliRunner().invoke(app, ["finish", str(home), str(other)])
        assert (done.exit_code, line in done.stderr) == (2, True), done.stderr
    assert joined([home, copy])[0] == home  # a copy of the same folder adds nothing
