"""The table with which a matrix ends: whole rows, changes against the first run, and runs that recorded nothing."""

from typing import Any

from ray_memprof.report.matrix_table import Line, matrix_text

GIB = 2**30


def measures(allocated: int, step_s: float | None = None) -> dict[str, dict[str, Any]]:
    """Peaks of a run; reserved is a GiB above allocated, and device used three."""
    sizes = {
        "peak_allocated": allocated,
        "peak_reserved": allocated + GIB,
        "peak_device_used": allocated + 3 * GIB,
    }
    rows: dict[str, dict[str, Any]] = {
        name: {"value": float(size), "unit": "bytes"} for name, size in sizes.items()
    }
    return rows if step_s is None else rows | {"step_duration": {"value": step_s, "unit": "s"}}


def test_a_matrix_that_recorded_nothing_has_a_status_for_each_run() -> None:
    rows = [line.split() for line in matrix_text([Line("a", "failed", "", {})]).splitlines()]
    assert (rows[0], rows[2]) == (["run", "status"], ["a", "failed"])


def test_a_row_for_each_run_with_its_changes_against_the_first() -> None:
    text = matrix_text(
        [
            Line("base", "ok", "predicted", measures(4 * GIB, 2.0)),
            Line("none", "failed", "", {}),
            Line("wide", "oom", "predicted", measures(5 * GIB, 2.0)),
        ]
    )
    head, _, *rows = [[cell for cell in line.strip().split("   ") if cell] for line in text.splitlines()]
    assert [cell.strip() for cell in head] == [
        *("run", "status", "allocated, peak", "change", "reserved, peak", "change"),
        *("device used, peak", "change", "a step", "change"),
    ]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["base", "ok", "4.00 GiB", "5.00 GiB", "7.00 GiB", "2.000 s"],
        ["none", "failed", *8 * ["-"]],
        [
            *("wide", "oom", "5.00 GiB", "+1.00 GiB, +25.0%", "6.00 GiB", "+1.00 GiB, +20.0%"),
            *("8.00 GiB", "+1.00 GiB, +14.3%", "2.000 s", "="),
        ],
    ]


def test_on_a_narrow_terminal_each_run_is_a_block() -> None:
    text = matrix_text(
        [Line("base", "ok", "cpu", measures(GIB)), Line("more", "ok", "cpu", measures(GIB))], 30
    )
    assert text == (
        " run                    base\n"
        " status                 ok\n"
        " tensors, peak          1.00 GiB\n"
        " change\n"
        " process memory, peak   4.00 GiB\n"
        " change\n"
        "\n"
        " run                    more\n"
        " status                 ok\n"
        " tensors, peak          1.00 GiB\n"
        " change                 =\n"
        " process memory, peak   4.00 GiB\n"
        " change                 =\n"
    )
