"""Memory held before the first event has rows, so that peaks, curves and live blocks agree."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from snapshots import Simulation, write

from ray_memprof.formats.torch_snapshot.read import import_snapshots
from ray_memprof.query import database
from ray_memprof.store.run_files import table_dir


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Simulation, int]:
    """Return the import of a program that began to record late, the true values, and its first event."""
    folder = tmp_path_factory.mktemp("late")
    simulation = Simulation(7, expandable=True)
    start = simulation.moments[250][0]
    path = write(folder / "rank0.pickle", simulation.snapshot(start))
    assert [line for line in import_snapshots([path], folder / "run", "x") if "at least" in line]
    return folder / "run", simulation, start


def ask(run_dir: Path, question: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.query(run_dir, question).to_pylist()
    return rows


def test_the_rows_lead_to_what_was_held(late: tuple[Path, Simulation, int]) -> None:
    run_dir, simulation, start = late
    rows = pq.read_table(table_dir(run_dir, "allocs", 0), partitioning=None).to_pylist()
    before = [row for row in rows if row["seq"] < 0]
    assert [row["seq"] for row in before] == list(range(-len(before), 0))
    assert {(row["category"], row["span_id"], row["t_ns"]) for row in before} == {
        ("before", 0, simulation.events[start]["time_us"] * 1000)
    }
    sums = dict.fromkeys(("alloc", "free_requested", "segment_map"), 0)
    for row in before:
        sums[row["action"]] += row["size_bytes"]
    allocated, reserved, active = simulation.counters[start]
    assert sums == {"alloc": active, "free_requested": active - allocated, "segment_map": reserved}
    assert len(rows) - len(before) == len(simulation.events) - start


def test_peaks_and_what_was_alive_at_them_agree(late: tuple[Path, Simulation, int]) -> None:
    run_dir, simulation, start = late
    allocated, reserved, active = simulation.truth(start)
    (peak,) = ask(run_dir, "peak_by_rank")
    assert [peak[f"{name}_peak_bytes"] for name in ("allocated", "reserved", "active")] == [
        allocated,
        reserved,
        active,
    ]
    assert sum(row["bytes"] for row in ask(run_dir, "alive_at_peak")) == allocated
    (event,) = ask(run_dir, "peak_event")
    counters = [allocated for allocated, *_ in simulation.counters[start + 1 :]]
    assert (event["allocated_bytes"], event["seq"]) == (allocated, counters.index(allocated))


def test_curves_are_those_of_the_program(late: tuple[Path, Simulation, int]) -> None:
    run_dir, simulation, start = late
    moments = ask(run_dir, "categories_over_time")
    active = [counters[2] for counters in simulation.counters[start:]]
    assert max(row["active_bytes"] for row in moments) == max(active)
    assert min(row["active_bytes"] for row in moments) >= min(active) > 0
    assert max(row["before_bytes"] for row in moments) > 0


def test_the_rank_says_that_its_peaks_are_lower_bounds(late: tuple[Path, Simulation, int]) -> None:
    run_dir, _, _ = late
    with database.open_run(run_dir) as connection:
        row = connection.execute("SELECT peak_at_least, inexact_bytes FROM ranks").fetchone()
    assert row == (True, 0)


def test_a_peak_before_every_event_is_found_too(tmp_path: Path) -> None:
    """Blocks are only freed: the peak is what was held at the first event."""
    simulation = Simulation(7, expandable=False)
    start = next(
        moment
        for moment, _ in simulation.moments[100:]
        if simulation.events[moment]["action"] == "free_requested"
    )
    content = simulation.snapshot(start)
    del content["device_traces"][0][1:]
    # The trace ends before the free is completed.
    held = dict(simulation.moments)[start]
    freed = content["device_traces"][0][0]["addr"]
    content["segments"] = held
    for block in (block for segment in held for block in segment["blocks"] if block["address"] == freed):
        block["state"] = "active_pending_free"
    import_snapshots([write(tmp_path / "rank0.pickle", content)], tmp_path / "run", "x")
    allocated = simulation.counters[start][0]
    (peak,) = ask(tmp_path / "run", "peak_by_rank")
    assert peak["allocated_peak_bytes"] == allocated
    assert sum(row["bytes"] for row in ask(tmp_path / "run", "alive_at_peak")) == allocated
    (event,) = ask(tmp_path / "run", "peak_event")
    assert (event["allocated_bytes"], event["category"]) == (allocated, "before")


def test_addresses_in_the_upper_half_sort(tmp_path: Path) -> None:
    at = 2**63 - 2**21
    events = [
        {"action": "segment_alloc", "addr": at, "size": 2**22, "stream": 0, "time_us": 1},
        {"action": "alloc", "addr": at, "size": 2**21, "stream": 0, "time_us": 2},
        {"action": "alloc", "addr": at + 2**21, "size": 2**21, "stream": 2**64 - 1, "time_us": 3},
    ]
    content = {"device_traces": [events], "segments": []}
    import_snapshots([write(tmp_path / "rank0.pickle", content)], tmp_path / "run", "x")
    with database.open_run(tmp_path / "run") as connection:
        rows = connection.execute(
            "SELECT address, stream FROM allocs WHERE action = 'alloc' AND address + size_bytes > 9 ORDER BY address"
        ).fetchall()
    assert rows == [(at, 0), (at + 2**21, 2**64 - 1)]
