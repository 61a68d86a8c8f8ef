"""Every question has a golden test, and an answer on runs that lack what others have."""

import ast
from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, answer, blank, event, make_ranks, make_run, span, summary_lines

from ray_memprof.formats.memory_events import write_memory_events
from ray_memprof.query import database, questions
from ray_memprof.report import run_page

HERE = Path(__file__).parent


def golden(source: str) -> set[str]:
    """The questions whose whole answer `source` compares with rows in writing: answer(..., "x") == [(...)]."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(
                left=ast.Call(func=ast.Name(id="answer"), args=[_, ast.Constant(value=str(name))]),
                ops=[ast.Eq()],
                comparators=[ast.List(elts=[_, *_])],
            ):
                found.add(name)
    return found


def test_every_question_has_a_golden_test() -> None:
    tested = set[str]().union(*(golden(path.read_text()) for path in HERE.glob("test_sql_*.py")))
    assert sorted(set(questions.QUESTIONS) - tested) == []


def test_empty_answers_and_parts_of_answers_are_no_golden_tests() -> None:
    assert golden('assert answer(run_dir, "books") == [(0, 1)]') == {"books"}
    assert golden('assert answer(run_dir, "books") == []') == set()
    assert golden('assert answer(run_dir, "books")[0] == (0, 1)') == set()
    assert golden('assert columns(run_dir, "books") == ["rank"]') == set()


SPANS = [
    span(1, "encode.text", (0, 20), allocated=(0, 8, 30), component="t5"),
    span(2, "encode.text/load.t5", (1, 5), allocated=(0, 20, 20), parent_id=1, component="t5"),
    span(3, "denoise", (20, 40), allocated=(8, 8, 50), step=0, component="dit"),
    span(4, "denoise/dit.block", (21, 30), allocated=(8, 8, 50), parent_id=3, step=0, block=0),
    span(5, "decode", (40, 60), allocated=(8, 8, 20), component="vae"),
    span(6, "decode/vae.chunk", (41, 50), allocated=(8, 9, 20), parent_id=5, component="vae"),
]
EVENTS = [
    event(1, "segment_alloc", 4096, span_id=1),
    event(2, "alloc", 20, "weight", address=1, span_id=2),
    event(22, "alloc", 42, "activation", address=2, span_id=4, stack_id=0),
    event(23, "free_requested", 42, "activation", address=2, span_id=4),
    event(24, "free_completed", 42, "activation", address=2, span_id=4),
    event(42, "alloc", 1, "activation", address=2, span_id=6),
]
SAMPLES = [
    blank("samples", t_ns=t_ns, device_used_bytes=9 * t_ns, allocated_bytes=t_ns, reserved_bytes=t_ns)
    for t_ns in (5, 25, 55)
]
WHOLE: dict[str, list[Row]] = {
    "spans": SPANS,
    "allocs": EVENTS,
    "samples": SAMPLES,
    "ledger": [blank("ledger", t_ns=3, account="nccl", bytes=5)],
    "collectives": [blank("collectives", op="all_reduce", group="world", group_size=2, bytes=4)],
    "communicators": [blank("communicators", group="world", backend="nccl", group_size=2, bytes=5)],
    "segment_pools": [blank("segment_pools", seq=1, pool="(1, 0)")],
    "stacks": [blank("stacks", function="forward", file="dit.py", line=7)],
}
FAILED = [{**row, "failed": True} for row in SPANS[2:4]]
RUNS: dict[str, dict[int, dict[str, list[Row]]]] = {
    "whole": {0: WHOLE, 1: WHOLE},
    "one rank": {0: WHOLE},
    "without allocs": {rank: {**WHOLE, "allocs": []} for rank in (0, 1)},
    "samples alone": {rank: {"samples": SAMPLES} for rank in (0, 1)},
    "allocs alone": {0: {"allocs": EVENTS}},
    "ledger alone": {0: {"ledger": WHOLE["ledger"]}},
    "collectives alone": {0: {"collectives": WHOLE["collectives"]}},
    "failed": {0: {**WHOLE, "spans": [*SPANS[:2], *FAILED]}, 1: {"samples": SAMPLES}},
    "nothing": {0: {}},
}
ANSWERS = {
    "samples alone": {
        "time_slices": [(5, 1)],
        "timeline": [
            (rank, t_ns - 5, t_ns, t_ns + 1, t_ns, t_ns, 9 * t_ns) for rank in (0, 1) for t_ns in (5, 25, 55)
        ],
        "timeline_spread": [(t_ns - 5, t_ns, 2, 9 * t_ns, 9 * t_ns, 0) for t_ns in (5, 25, 55)],
        "timeline_by_account": [
            (rank, t_ns - 5, t_ns, True, t_ns, *[0] * 11, t_ns, 0, *[0] * 8, 8 * t_ns)
            for rank in (0, 1)
            for t_ns in (5, 25, 55)
        ],
        "peak_by_rank": [
            (rank, 55, 55, False, None, 9 * 55, 3, None, 0, 0, None, None, None) for rank in (0, 1)
        ],
        "books_at_peak": [
            (rank, 55, None, account, size, size / (9 * 55), 9 * 55, None)
            for rank in (0, 1)
            for account, size in (
                *(("active", 55), ("cached", 0), ("context", 0), ("nccl", 0)),
                *(("libraries", 0), ("others", 0), ("unexplained", 8 * 55)),
            )
        ],
    },
    "allocs alone": {
        "time_slices": [(1, 1)],
        "peak_event": [(0, 22, 22, 4, None, None, None, None, None, 62, False, 42, "activation")],
        "device_calls": [],
    },
}
"""Where only a few questions have rows: which ones."""


@pytest.fixture(params=RUNS)
def odd_run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name: str = request.param
    make_run(tmp_path, RUNS[name])
    status = "failed" if name == "failed" else "ok"
    ranks = [{"host": "h", "status": status, "path": "denoise", "step": 0} for _ in RUNS[name]]
    return name, make_ranks(tmp_path, *ranks, run_id="r", status=status, reason="", num_ranks=len(ranks))


def test_every_question_has_an_answer_on_an_odd_run(odd_run: tuple[str, Path]) -> None:
    name, run_dir = odd_run
    answers = everything(run_dir)
    for question, rows in ANSWERS.get(name, {}).items():
        assert answers[question] == rows, question
    if name == "whole":  # whose ranks are equal, and which has no prediction of itself
        assert {question for question, rows in answers.items() if not rows} == {
            "imbalance_by_component",
            "predicted_vs_measured",
        }


def everything(run_dir: Path) -> dict[str, list[Any]]:
    with database.open_run(run_dir) as connection:
        return {
            question: connection.sql(questions.question(question)).fetchall()
            for question in questions.QUESTIONS
        }


def test_a_question_asked_alone_finds_all_that_it_reads(tmp_path: Path) -> None:
    make_ranks(make_run(tmp_path, RUNS["whole"]), {"host": "h"}, {}, run_id="r", start_ns=1)
    assert {question: answer(tmp_path, question) for question in questions.QUESTIONS} == everything(tmp_path)


def test_an_odd_run_has_a_report_a_summary_and_a_database(odd_run: tuple[str, Path]) -> None:
    name, run_dir = odd_run
    html = run_page.render(run_dir)
    is_drawn = name in ("whole", "one rank", "without allocs", "samples alone", "failed")
    assert ("data-timelines-0" in html) == is_drawn
    assert len(summary_lines(run_dir)) > 0
    assert database.build(run_dir).is_file()
    assert write_memory_events(run_dir).is_file()
