"""The list of runs: from run.json and summary.json, and from footers of Parquet files where there is no summary."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_tables import blank, make_ranks, make_run, span

from ray_memprof.query.run_table import run_columns
from ray_memprof.store import run_summary as run_summary_module
from ray_memprof.store.processes import process_facts
from ray_memprof.store.run_files import RUN_FILE, SUMMARY_FILE
from ray_memprof.store.run_list import ListedRun, listed, listed_runs
from ray_memprof.store.run_summary import note_summary, run_summary

MIB, SECOND = 2**20, 10**9
HEADLINES = [{"allocated_peak_bytes": 7, "device_used_peak_bytes": 9, "path": "denoise"}]


def made(folder: Path, *, summary: bool = False, **facts: Any) -> Path:
    """A run of two ranks that peak at 3 and 5 MiB, and at 6 and 8 MiB of the device."""
    tables = {
        rank: {
            "spans": [
                span(1, "denoise", (0, 10), allocated=(0, 0, peak * MIB), device_used=(0, 0, 2 * peak * MIB))
            ],
            "samples": [blank("samples", t_ns=1, device_used_bytes=8 * MIB)],
        }
        for rank, peak in enumerate((3, 5))
    }
    del tables[1]["samples"]
    make_run(folder, tables)
    if facts:
        known = {"run_id": folder.name, "name": folder.parent.name, "num_ranks": 2}
        (folder / RUN_FILE).write_text(json.dumps(known | facts))
    if summary:
        note_summary(folder, ["a line"], HEADLINES)
    return folder


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_no_runs(tmp_path: Path) -> None:
    assert listed_runs(tmp_path / "none") == []


def test_a_finished_run_is_listed_by_its_summary(tmp_path: Path) -> None:
    run = made(
        tmp_path / "base" / "20260101-000000-aaaa",
        summary=True,
        status="ok",
        exit_code=0,
        reason="",
        start_ns=5,
        end_ns=6,
    )
    assert listed_runs(tmp_path) == [
        ListedRun(
            name="base",
            run_id="20260101-000000-aaaa",
            path=run,
            status="ok",
            reason="",
            exit_code=0,
            num_ranks=2,
            start_ns=5,
            end_ns=6,
            allocated_peak_bytes=7,
            device_used_peak_bytes=9,
            size_bytes=on_disk(run),
        )
    ]


def test_a_run_without_a_summary_is_asked_through_the_footers(tmp_path: Path) -> None:
    run = made(tmp_path / "base" / "r1", status="ok", exit_code=0)
    found = listed(run)
    assert (found.allocated_peak_bytes, found.device_used_peak_bytes) == (5 * MIB, 10 * MIB)
    assert found.size_bytes == on_disk(run)


def test_parts_that_are_no_parquet_yet_are_passed_over(tmp_path: Path) -> None:
    run = made(tmp_path / "base" / "r1", status="ok")
    for rank in (0, 1):
        (part,) = (run / "tables" / "spans" / f"rank={rank}").glob("*.parquet")
        part.write_bytes(b"PAR1")
    found = listed(run)
    assert (found.allocated_peak_bytes, found.device_used_peak_bytes) == (0, 8 * MIB)  # of the sample


def test_a_run_without_run_json_has_what_the_table_runs_says(tmp_path: Path) -> None:
    run = made(tmp_path / "base" / "r1")
    assert (listed(run).status, listed(run).num_ranks, listed(run).start_ns) == ("unknown", None, None)
    make_ranks(run, {}, run_id="r1", status="oom", reason="full", num_ranks=2, start_ns=4, exit_code=11)
    found = listed(run)
    assert (found.status, found.reason, found.exit_code, found.num_ranks, found.start_ns) == (
        *("oom", "full", 11, 2),
        4,
    )


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    progress = {"stage": "denoise", "step": 3, "num_steps": 8, "t_ns": 2**63}
    run = made(tmp_path / "a" / "r1", status="running", driver=process_facts(), progress=progress, start_ns=1)
    found = listed(run)
    assert (found.status, found.reason, found.exit_code) == ("running", "step 4 of 8", None)


def test_a_damaged_run_is_listed_as_such(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / "r1")
    (run / RUN_FILE).write_text("{")
    assert listed(run).status == "unreadable"
    (run / SUMMARY_FILE).write_text('{"lines": 3}')
    assert run_summary(run) is None
    assert listed(run).allocated_peak_bytes == 5 * MIB


def test_facts_are_plain_and_have_the_age(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / "r1", status="ok", start_ns=2 * SECOND)
    facts = listed(run).facts(now_ns=5 * SECOND)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["age_s"], facts["path"]) == (3.0, str(run))
    assert listed(made(tmp_path / "a" / "r2")).facts()["age_s"] is None


def test_the_newest_comes_first(tmp_path: Path) -> None:
    for name in ("b/20260102-000000-aaaa", "a/20260103-000000-aaaa", "a/20260101-000000-aaaa"):
        made(tmp_path / name, summary=True, status="ok")
    assert [one.run_id[:8] for one in listed_runs(tmp_path)] == ["20260103", "20260102", "20260101"]


def test_a_summary_of_a_run_of_which_nothing_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    note_summary(tmp_path, ["peak: no span was recorded"], [])
    found = run_summary(tmp_path)
    assert found is not None
    assert (found.lines, found.allocated_peak_bytes, found.records_bytes) == (
        ("peak: no span was recorded",),
        None,
        0,
    )


@pytest.mark.parametrize("text", ["", "[]", "null", "{}"])
def test_a_file_that_is_no_summary(tmp_path: Path, text: str) -> None:
    (tmp_path / SUMMARY_FILE).write_text(text)
    assert run_summary(tmp_path) is None


def test_a_file_that_goes_while_it_is_counted_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a rank at work, which replaces its files all the time."""
    run = made(tmp_path / "a" / "r1", status="ok")
    (run / "logs").mkdir()
    (run / "logs" / "rank0.log").write_bytes(b"x" * 10)
    entries = run_summary_module._entries

    def gone(folder: str | Path) -> Any:
        listed = entries(folder)
        if Path(folder).name == "logs":
            (run / "logs" / "rank0.log").unlink()
        return listed

    monkeypatch.setattr(run_summary_module, "_entries", gone)
    assert run_summary_module.records_bytes(run) == on_disk(run / "tables")
    assert run_summary_module.records_bytes(tmp_path / "never") == 0
    assert listed(tmp_path / "a" / "never").size_bytes == 0


@pytest.mark.parametrize("summary", [False, True])
def test_a_peak_that_may_lie_before_the_first_event_is_told_as_at_least(
    tmp_path: Path, summary: bool
) -> None:
    run = made(tmp_path / "base" / "r1", status="ok", exit_code=0)
    assert not listed(run).peak_at_least
    make_ranks(run, {}, {"peak_at_least": True})
    if summary:
        note_summary(run, ["a line"], [{**HEADLINES[0], "peak_at_least": True}])
    assert listed(run).peak_at_least
    cells = {one.name: one.cells for one in run_columns([listed(run)])}
    assert cells["allocated"] == ["at least 7 B" if summary else "at least 5.00 MiB"]


def test_a_summary_of_an_older_version_does_not_say_that_a_peak_is_certain(tmp_path: Path) -> None:
    run = made(tmp_path / "base" / "r1", summary=True, status="ok", exit_code=0)
    make_ranks(run, {"peak_at_least": True})
    content = json.loads((run / SUMMARY_FILE).read_text())
    del content["peak_at_least"]
    (run / SUMMARY_FILE).write_text(json.dumps(content))
    assert listed(run).peak_at_least
