"""Evidence of the diagnosis on programs: which rows it has, to the byte."""

from typing import Any

from empty_run import GIB, MIB, EmptyRun, diagnose, events, held
from program_runs import Program, public_wan, trained
from run_tables import Row, event, span


def rows(empty: EmptyRun, table: str, columns: str) -> list[tuple[Any, ...]]:
    return empty.connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def test_only_stages_that_a_rule_asks_for_are_looked_into(empty: EmptyRun) -> None:
    """GIVEN a rank that holds more in encode, and another that is the fullest in the loop, which holds more later."""

    def tables(encode: int, loop: int) -> dict[str, Any]:
        spans = [
            span(1, "encode", (0, 9), component="t5", **held(0, 0, encode + 2 * GIB)),
            span(2, "denoise", (10, 19), component="dit", **held(0, 0, loop)),
        ]
        rows = [
            ("alloc", encode, 1, 1),
            ("alloc", GIB, 2, 1),
            ("free_requested", GIB, 2, 1),
            ("alloc", 2 * GIB, 3, 1),
            ("free_requested", 2 * GIB, 3, 1),
            ("free_requested", encode, 1, 1),
            ("alloc", loop - GIB, 4, 2),
            ("alloc", GIB, 5, 2),
            ("free_requested", GIB, 5, 2),
        ]
        return {"spans": spans, "allocs": events(*rows)}

    diagnose(empty, tables(8 * GIB, 20 * GIB), tables(8 * GIB, 20 * GIB + MIB), tables(12 * GIB, 20 * GIB))
    assert rows(empty, "alive", "rank, stage, component, requested_bytes, bytes, num_tensors") == [
        (0, "encode", "t5", 2 * GIB, 2 * GIB, 1),
        (0, "encode", "t5", 8 * GIB, 8 * GIB, 1),
        (1, "denoise", "dit", GIB, GIB, 1),
        (1, "denoise", "dit", 19 * GIB + MIB, 19 * GIB + MIB, 1),
        (2, "encode", "t5", 2 * GIB, 2 * GIB, 1),
        (2, "encode", "t5", 12 * GIB, 12 * GIB, 1),
    ]


def test_of_equal_other_stages_the_earliest_is_named(empty: EmptyRun) -> None:
    sizes = {"load": 3, "encode": 5, "denoise": 9, "decode": 5}
    spans = [
        span(number, stage, (number, number + 1), component=f"of {stage}", **held(0, 0, size))
        for number, (stage, size) in enumerate(sizes.items(), 1)
    ]
    diagnose(empty, {"spans": spans}, {"spans": spans[:1]})
    wanted = (
        "rank, first_span_id, stage, run_peak_bytes, is_run_peak, other_stage, above_other_bytes, component"
    )
    assert rows(empty, "stage_peaks", wanted) == [
        (0, 1, "load", 9, False, "denoise", -6, "of load"),
        (0, 2, "encode", 9, False, "denoise", -4, "of encode"),
        (0, 3, "denoise", 9, True, "encode", 4, "of denoise"),
        (0, 4, "decode", 9, False, "denoise", -4, "of decode"),
        (1, 1, "load", 3, True, None, None, "of load"),
    ]


def test_without_events_each_span_gains_what_came_while_it_was_innermost(empty: EmptyRun) -> None:
    """GIVEN spans that follow each other at once, one of them shorter than a tick of the clock."""

    def tables(clip: int, t5: int) -> dict[str, Any]:
        first, second, third = 4 * GIB + clip, 4 * GIB + clip + t5, 5 * GIB + clip + t5
        inside = {"parent_id": 2}
        spans = [
            span(1, "load.dit", (0, 10), component="dit", **held(0, 4 * GIB, 4 * GIB)),
            span(2, "denoise", (10, 100), **held(4 * GIB, 4 * GIB, third + 3 * GIB)),
            span(3, "denoise/a", (10, 20), component="clip", **inside, **held(4 * GIB, first, first)),
            span(4, "denoise/b", (20, 30), component="t5", **inside, **held(first, second, second)),
            span(5, "denoise/c", (30, 30), component="vae", **inside, **held(second, third, third)),
            span(6, "denoise/d", (30, 40), component="dit", **inside, **held(third, third, third + 3 * GIB)),
            span(
                7, "denoise/e", (40, 50), component="late", **inside, **held(third, third + GIB, third + GIB)
            ),
        ]
        return {"spans": spans}

    diagnose(empty, tables(GIB, GIB), tables(7 * GIB, 2 * GIB), tables(GIB, GIB))
    grown = {"clip": (1, 7), "dit": (7, 7), "t5": (1, 2), "vae": (1, 1), None: (0, 0)}
    assert rows(empty, "grown", "rank, stage, component, bytes") == [
        (rank, "denoise", component, sizes[rank] * GIB)
        for rank in (0, 1)
        for component, sizes in grown.items()
    ]


def test_the_span_of_a_script_is_no_other_stage(empty: EmptyRun) -> None:
    diagnose(empty, public_wan(loop=2 * GIB, dtype="bfloat16").tables(), workload="script")
    found = rows(empty, "stage_peaks", "stage, is_run_peak, other_stage, above_other_bytes, component")
    assert [row for row in found if not row[0].startswith("load.")] == [
        ("decode", True, "denoise", 6 * GIB, "vae"),
        ("denoise", False, "decode", -6 * GIB, "dit"),
        ("encode.text", False, "decode", -15 * GIB // 2, "t5"),
        ("script", False, "decode", 0, None),
    ]


def test_a_peak_outside_of_the_stages_is_that_of_the_script(empty: EmptyRun) -> None:
    program = Program()
    with program.span("GPT", component="GPT"):
        kept = program.alloc(GIB)
    program.free(program.alloc(2 * GIB), kept)
    diagnose(empty, program.tables(), workload="script")
    assert rows(empty, "stage_peaks", "stage, allocated_peak_bytes, is_run_peak, other_stage") == [
        ("GPT", GIB, False, None),
        ("script", 3 * GIB, True, "GPT"),
    ]


def test_a_script_counts_in_skews_where_its_own_peak_is_above_its_stages(empty: EmptyRun) -> None:
    def tables(own: int, inside: int) -> dict[str, Any]:
        spans = [
            span(1, "script", (0, 9), **held(0, 0, max(own, inside))),
            span(2, "script/GPT", (1, 8), parent_id=1, stage="GPT", **held(0, 0, inside)),
        ]
        return {"spans": spans}

    sizes = (3 * GIB, 4 * GIB, GIB, GIB)  # the last two are those of the stage in it
    diagnose(empty, *(tables(own, GIB) for own in sizes), workload="script")
    assert rows(empty, "skews", "rank, stage, typical_rank, excess_bytes") == [(1, "script", 0, GIB)]


def test_a_script_without_stages_counts_in_skews(empty: EmptyRun) -> None:
    sizes = (3 * GIB, 4 * GIB, 3 * GIB)
    diagnose(
        empty,
        *({"spans": [span(1, "script", (0, 9), **held(0, 0, size))]} for size in sizes),
        workload="script",
    )
    assert rows(empty, "skews", "rank, stage, typical_rank, excess_bytes") == [(1, "script", 0, GIB)]


def test_what_was_alive_at_the_peak_of_a_training(empty: EmptyRun) -> None:
    program = trained(state=2 * GIB, gradients=GIB, head=8 * GIB, is_kept=True)
    diagnose(empty, program.tables(), workload="script")
    wanted = "category, bytes, peak_stage, peak_bytes, made_stage, owner, component, dtype"
    peak = ("backward", 12 * GIB + GIB // 16)
    assert rows(empty, "peak_tensors", wanted) == [
        ("activation", 8 * GIB, *peak, "forward", None, "GPT", None),
        ("gradient", GIB, *peak, "backward", "GPT.w", "GPT", "float32"),
        ("optimizer", 2 * GIB, *peak, "optimizer", "GPT.w exp_avg", "GPT", "float32"),
        ("temporary", 64 * MIB, *peak, "backward", None, "GPT", None),
        ("weight", GIB, *peak, "load.GPT", "GPT.w", "GPT", "float32"),
    ]


def test_without_owners_nobody_asks_what_was_alive(empty: EmptyRun) -> None:
    diagnose(empty, {**trained().tables(), "owners": []}, workload="script")
    assert rows(empty, "peak_tensors", "seq") == []


def test_ranks_with_larger_batches(empty: EmptyRun) -> None:
    ranks = [trained(head=size * GIB).tables() for size in (20, 25, 20, 23)]
    diagnose(empty, *ranks, workload="script")
    wanted = "rank, stage, component, bytes, typical_rank, typical_bytes, excess_bytes"
    assert rows(empty, "larger_batches", wanted) == [
        (1, "backward", "GPT", 25 * GIB, 0, 20 * GIB, 5 * GIB),
        (3, "backward", "GPT", 23 * GIB, 0, 20 * GIB, 3 * GIB),
    ]


def test_a_larger_batch_is_told_by_the_names_of_weights_alone(empty: EmptyRun) -> None:
    """GIVEN a rank with state of an optimizer, which the ranks with smaller batches do not have."""
    ranks = [trained(head=20 * GIB), trained(head=25 * GIB, state=GIB // 2), trained(head=20 * GIB)]
    diagnose(empty, *(rank.tables() for rank in ranks), workload="script")
    assert rows(empty, "larger_batches", "rank, component, bytes, typical_rank, excess_bytes") == [
        (1, "GPT", 25 * GIB, 0, 5 * GIB)
    ]


def test_what_was_there_when_the_device_was_full(empty: EmptyRun) -> None:
    """GIVEN a request of the allocator that failed, one of a library, and a rank without events."""
    recorded: list[Row] = [
        event(1, "segment_alloc", 300, span_id=1),
        event(2, "segment_map", 50, span_id=1),
        event(3, "alloc", 200, address=1, span_id=1),
        event(4, "alloc", 70, address=2, span_id=1),
        event(5, "oom", 800, address=11, span_id=1),  # the program went on
        event(6, "free_requested", 70, address=2, span_id=1),
        event(7, "free_completed", 70, address=2, span_id=1),
        event(8, "segment_free", 40, span_id=2),
        event(9, "segment_unmap", 10, span_id=2),
        event(10, "oom", 900, address=22, span_id=2),
        event(50, "alloc", 30, address=3, span_id=2),  # as the span ends: the error has freed nothing yet
        event(60, "free_requested", 200, address=1),
        event(61, "segment_free", 300),
    ]
    spans = [
        span(1, "encode", (0, 7), **held(0, 270, 270)),
        span(2, "denoise", (8, 50), step=0, failed=True, allocated=(200, 200, 210), reserved=(300, 300, 310)),
    ]
    tables = {"spans": spans, "allocs": recorded}
    of_library = {"path": "denoise", "step": 0, "oom_by": "NCCL", "oom_free_bytes": 5}
    diagnose(
        empty,
        *(tables, tables, tables, {"spans": spans}),
        rank_rows=[
            {"status": "oom", "path": "", "step": -1},
            {"status": "oom", **of_library},
            {"status": "ok"},
            {"status": "oom", "path": "denoise", "step": 0, "oom_free_bytes": None},
        ],
    )
    wanted = "rank, stage, path, step, oom_by, seq, asked_bytes, free_bytes, allocated_bytes, reserved_bytes"
    assert rows(empty, "ooms", wanted) == [
        (0, "denoise", "denoise", 0, None, 10, 900, 22, 200, 300),
        (1, "denoise", "denoise", 0, "NCCL", 50, None, 5, 230, 300),
        (3, "denoise", "denoise", 0, None, None, None, None, 210, 310),
    ]


def test_imported_ranks_ran_out_each_in_the_span_of_its_own_request(empty: EmptyRun) -> None:
    """GIVEN three ranks that nobody watched; the first one went on after a request in another span was refused."""
    spans = [span(1, "encode", (0, 7)), span(2, "denoise", (8, 50), step=4), span(3, "save", (51, 60))]

    def tables(*refused: int) -> dict[str, Any]:
        return {"spans": spans, "allocs": [event(at, "oom", 9, address=at, span_id=at) for at in refused]}

    ends = [{"status": "oom", "path": "", "step": -1}] * 3
    run = {"workload": "script", "config": {"imported": [{"rank": 0}]}, "status": "oom"}
    diagnose(empty, tables(1, 2), tables(3), tables(1), rank_rows=ends, **run)
    assert rows(empty, "ooms", "rank, stage, path, step, seq") == [
        (0, "denoise", "denoise", 4, 2),
        (1, "save", "save", -1, 3),
        (2, "encode", "encode", -1, 1),
    ]
