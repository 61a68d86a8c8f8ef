"""The question of how far a run is from its prediction: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import Row, answer, blank, columns, make_run, span

from ray_memprof.store.run_files import part_name, table_dir
from ray_memprof.store.run_tables import write_predicted

MIB = 2**20


def told(stage: str | None, account: str, size: int) -> Row:
    return {"stage": stage, "account": account, "bytes": size}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two stages; another process holds 100 MiB while the second one runs."""
    spans = [
        span(1, "load", (0, 10), allocated=(0, 50 * MIB, 50 * MIB), reserved=(0, 60 * MIB, 60 * MIB),
             device_used=(500 * MIB, 560 * MIB, 560 * MIB)),
        span(2, "denoise", (20, 30), allocated=(50 * MIB, 50 * MIB, 1000 * MIB),
             reserved=(60 * MIB, 1100 * MIB, 1100 * MIB), device_used=(660 * MIB, 1700 * MIB, 1700 * MIB)),
    ]  # fmt: skip
    ledger = [
        blank("ledger", t_ns=0, account="context", bytes=500 * MIB),
        blank("ledger", t_ns=15, account="others", bytes=100 * MIB),
    ]
    return make_run(tmp_path, {0: {"spans": spans, "ledger": ledger}, 1: {"spans": spans[:1]}})


def test_account_peaks_of_stages_and_of_the_whole_run(run_dir: Path) -> None:
    assert columns(run_dir, "account_peaks") == ["rank", "stage", "place", "account", "bytes", "most_bytes"]
    names = ("allocated", "reserved", "device_used", "context", "nccl", "libraries")
    whole, load, denoise = (
        (1000, 1100, 1600, 500, 0, 0),
        (50, 60, 560, 500, 0, 0),
        (1000, 1100, 1600, 500, 0, 0),
    )
    assert answer(run_dir, "account_peaks") == [
        *((0, None, 0, name, size * MIB, size * MIB) for name, size in zip(names, whole, strict=True)),
        *((0, "load", 1, name, size * MIB, size * MIB) for name, size in zip(names, load, strict=True)),
        *((0, "denoise", 2, name, size * MIB, size * MIB) for name, size in zip(names, denoise, strict=True)),
        # Nothing is booked on this rank.
        *(
            (1, None, 0, name, size * MIB, size * MIB)
            for name, size in zip(names, (50, 60, 560, 0, 0, 0), strict=True)
        ),
        *(
            (1, "load", 1, name, size * MIB, size * MIB)
            for name, size in zip(names, (50, 60, 560, 0, 0, 0), strict=True)
        ),
    ]


def test_a_stage_that_comes_again_stands_where_it_began_and_has_the_most_of_its_spans(tmp_path: Path) -> None:
    """GIVEN a stage whose second span follows another stage; each account has its most in another span."""
    spans = [
        span(1, "denoise", (0, 10), allocated=(0, 0, 8), reserved=(0, 9, 12), device_used=(20, 40, 41)),
        span(2, "decode", (20, 30), allocated=(0, 0, 5), reserved=(9, 9, 10), device_used=(50, 52, 55)),
        span(3, "denoise", (40, 50), allocated=(0, 0, 7), reserved=(9, 9, 15), device_used=(60, 30, 61)),
    ]
    spans[2]["device_used_bound_bytes"] = 70
    changes: dict[str, list[tuple[int, int]]] = {
        "context": [(0, 9), (15, 4), (35, -1)],
        "nccl": [(5, 7), (25, 1), (35, -4)],
        "libraries": [(15, 2), (45, 3)],
        "others": [(15, 3), (45, -2)],
        "heap": [(0, 1), (8, 5), (15, -2)],
        "files": [(0, 2), (22, 1), (42, 3)],
        "shared": [(0, 5), (5, -1), (41, -2)],
    }
    ledger = [
        blank("ledger", t_ns=t_ns, account=account, bytes=size)
        for account, rows in changes.items()
        for t_ns, size in rows
    ]
    make_run(tmp_path, {0: {"spans": spans, "ledger": ledger}})
    names = (
        "allocated",
        "reserved",
        "device_used",
        "context",
        "nccl",
        "libraries",
        "heap",
        "files",
        "shared",
    )
    # Of the device, 61 and 70 with at least one byte of others, 55 with three.
    told = {
        None: (8, 15, 60, 13, 8, 5, 6, 6, 5),
        "denoise": (8, 15, 60, 12, 7, 5, 6, 6, 5),
        "decode": (5, 10, 52, 13, 8, 2, 4, 3, 4),
    }
    assert answer(tmp_path, "account_peaks") == [
        (0, stage, place, name, size, 69 if (name, size) == ("device_used", 60) else size)
        for place, (stage, sizes) in enumerate(told.items())
        for name, size in zip(names, sizes, strict=True)
    ]


def test_a_run_without_a_prediction_of_itself_has_no_answer(run_dir: Path) -> None:
    assert answer(run_dir, "predicted_vs_measured") == []


def test_what_was_measured_beside_what_was_predicted(run_dir: Path) -> None:
    rows = [
        told(None, "allocated", 1000 * MIB),
        told(None, "reserved", 1090 * MIB),
        told("denoise", "allocated", 970 * MIB),
        told("denoise", "reserved", 1000 * MIB),
        told("denoise", "device_used", 1610 * MIB),
        told("decode", "allocated", 7),
        told("denoise", "nccl", 3),
        told("load", "allocated", 49 * MIB),
    ]
    write_predicted(run_dir, {0: rows})
    assert columns(run_dir, "predicted_vs_measured") == [
        *("rank", "stage", "account", "predicted_bytes", "measured_bytes", "difference_bytes"),
        *("error_fraction", "stated_fraction", "is_beyond"),
    ]
    assert answer(run_dir, "predicted_vs_measured") == [
        (0, None, "allocated", 1000 * MIB, 1000 * MIB, 0, 0.0, 0.005, False),
        # Within 1.5 %.
        (0, None, "reserved", 1090 * MIB, 1100 * MIB, 10 * MIB, pytest.approx(-1 / 110), 0.015, False),
        # Less the other process; the prediction says nothing.
        (0, None, "device_used", None, 1600 * MIB, None, None, 0.015, False),
        (0, None, "context", None, 500 * MIB, None, None, None, False),
        (0, None, "nccl", None, 0, None, None, None, False),
        (0, None, "libraries", None, 0, None, None, None, False),
        # 2 % in 49, which is less than a block of small tensors.
        (0, "load", "allocated", 49 * MIB, 50 * MIB, MIB, pytest.approx(-0.02), 0.03, False),
        (0, "load", "reserved", None, 60 * MIB, None, None, 0.03, False),
        (0, "load", "device_used", None, 560 * MIB, None, None, 0.03, False),
        (0, "load", "context", None, 500 * MIB, None, None, None, False),
        (0, "load", "nccl", None, 0, None, None, None, False),
        (0, "load", "libraries", None, 0, None, None, None, False),
        # Exactly as much as is stated, then more.
        (0, "denoise", "allocated", 970 * MIB, 1000 * MIB, 30 * MIB, pytest.approx(-0.03), 0.03, False),
        (0, "denoise", "reserved", 1000 * MIB, 1100 * MIB, 100 * MIB, pytest.approx(-1 / 11), 0.03, True),
        (0, "denoise", "device_used", 1610 * MIB, 1600 * MIB, -10 * MIB, pytest.approx(1 / 160), 0.03, False),
        (0, "denoise", "context", None, 500 * MIB, None, None, None, False),
        (0, "denoise", "nccl", 3, 0, -3, None, None, False),
        (0, "denoise", "libraries", None, 0, None, None, None, False),
        # A failed run may have no such stage.
        (0, "decode", "allocated", 7, None, None, None, 0.03, False),
    ]


def test_what_no_sample_has_seen_may_have_been_as_predicted(tmp_path: Path) -> None:
    seen = span(1, "load", (0, 9), device_used=(0, 0, 500 * MIB), device_used_bound_bytes=900 * MIB)
    make_run(tmp_path, {0: {"spans": [seen]}})
    sizes = (480, 470, 900, 930, 921)
    found = []
    for size in sizes:
        write_predicted(tmp_path, {0: [told("load", "device_used", size * MIB)]})
        found += [row[-1] for row in answer(tmp_path, "predicted_vs_measured") if row[3] is not None]
    assert found == [False, True, False, True, True]


def test_a_second_prediction_takes_the_place_of_the_first(run_dir: Path) -> None:
    for size in (5, 6):
        write_predicted(run_dir, {1: [told(None, "nccl", size)]})
    assert [row[3] for row in answer(run_dir, "predicted_vs_measured") if row[3]] == [6]
    assert [path.name for path in table_dir(run_dir, "predicted", 1).iterdir()] == [part_name(0)]
