"""What a comparison compares, of each run: hand-made rows in, exact rows out."""

from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, blank, event, make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import SQL_DIR
from ray_memprof.query.database import open_run

SECOND = 10**9
Value = tuple[float, bool]


def values_of(run_dir: Path, path: str | None, rank: int | None) -> dict[str, Value]:
    """By measure: the value, and whether it may have been larger."""
    text = (SQL_DIR / "run_values.sql").read_text()
    here = "path IS NOT DISTINCT FROM ? AND rank IS NOT DISTINCT FROM ?"
    with open_run(run_dir) as connection:
        rows = connection.execute(f"FROM ({text}) WHERE {here}", [path, rank]).fetchall()
    found = {row[2]: (row[4], row[5]) for row in rows}
    assert len(found) == len(rows)
    units = {"duration": "s", "step_duration": "s", "imbalance": ""}
    for _, _, measure, unit, *_ in rows:
        assert unit == units.get(measure, "" if measure.startswith("num_") else "bytes")
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two ranks whose measures all differ: one may have held more, the other's device was not sampled."""

    def spans(add: int, num_samples: int) -> list[Row]:
        def one(number: int, path: str, times: tuple[int, int], more: int, **values: Any) -> Row:
            measures = ("allocated", "reserved", "active", "device_used", "host_rss")
            peaks = {name: (0, 0, more + 10 * place) for place, name in enumerate(measures, 1)}
            seconds = times[0] * SECOND, times[1] * SECOND
            return span(number, path, seconds, num_samples=num_samples, **peaks, **values)

        return [
            one(1, "denoise", (0, 2), 100 + add, step=0, num_allocs=3, num_retries=2),
            one(2, "denoise/dit.block", (0, 1), 100 + add, step=0, num_allocs=2, parent_id=1),
            one(3, "denoise", (2, 6 + add), 300 + add, step=1, num_allocs=4, num_retries=5),
            one(4, "denoise", (10, 13), 200 + add, step=2, num_allocs=5, num_retries=1),
        ]

    make_run(tmp_path, {0: {"spans": spans(0, 2)}, 1: {"spans": spans(1, 0)}})
    make_ranks(tmp_path, {"peak_at_least": True}, {})

    return tmp_path


def peaks(add: int, *, is_more: bool, is_between: bool) -> dict[str, Value]:
    return {
        "peak_allocated": (310 + add, is_more),
        "peak_reserved": (320 + add, is_more),
        "peak_active": (330 + add, is_more),
        "peak_device_used": (340 + add, is_between),
        "peak_host_rss": (350 + add, False),
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_values_of_a_rank(run_dir: Path, rank: int) -> None:
    expected = peaks(rank, is_more=rank == 0, is_between=rank == 1)
    whole = values_of(run_dir, None, rank)
    books = {name: whole.pop(name)[0] for name in ("cached", "nccl", "libraries", "others", "unexplained")}
    assert whole == {
        **expected,
        "duration": (13, False),
        "num_allocs": (12, False),
        "num_retries": (8, False),
    }
    assert (books["nccl"], books["libraries"], books["others"]) == (0, 0, 0)
    assert values_of(run_dir, "denoise", rank) == {
        **expected,
        "duration": (2 + 4 + rank + 3, False),
        "step_duration": (3, False),
        "num_spans": (3, False),
        "num_allocs": (12, False),
        "num_retries": (8, False),
    }
    block = values_of(run_dir, "denoise/dit.block", rank)
    assert (block["num_spans"], block["num_allocs"], block["duration"]) == (
        (1, False),
        (2, False),
        (1, False),
    )


def test_values_of_all_ranks_are_those_of_the_worst(run_dir: Path) -> None:
    worst = peaks(1, is_more=True, is_between=True)
    whole = values_of(run_dir, None, None)
    assert {name: whole[name] for name in worst} == worst
    assert (whole["duration"], whole["num_retries"]) == ((13, False), (8, False))
    stage = values_of(run_dir, "denoise", None)
    assert {name: stage[name] for name in worst} == worst
    assert stage["duration"] == (10, False)
    assert values_of(run_dir, "denoise/dit.block", None) == {}


def test_fragmentation_and_what_is_cached_are_told_by_rank(tmp_path: Path) -> None:
    def rank(size: int) -> dict[str, list[Row]]:
        held = {"allocated": (0, 5, 5), "reserved": (0, size, size), "active": (0, 5, 5)}
        spans = [span(1, "denoise", (0, 9), device_used=(0, size + 7, size + 7), **held)]
        return {
            "spans": spans,
            "allocs": [
                event(1, "segment_alloc", size, span_id=1),
                event(2, "alloc", 5, address=1, span_id=1),
            ],
            "ledger": [blank("ledger", t_ns=0, account="context", bytes=4)],
        }

    make_run(tmp_path, {0: rank(20), 1: rank(30)})
    wanted = ("cached", "fragmentation", "unexplained")
    found = {rank: values_of(tmp_path, None, rank) for rank in (0, 1, None)}
    assert {rank: [values[name] for name in wanted] for rank, values in found.items()} == {
        0: [(15, False), (15, False), (3, False)],
        1: [(25, False), (25, False), (3, False)],
        None: [(25, False), (25, False), (3, False)],
    }
    assert not {"active", "context"} & found[0].keys()
