"""Rules that choose: of several ranks, components, stages and accounts, without ties, each with a different figure."""

from pathlib import Path
from typing import Any

import pytest
from empty_run import GIB, MIB, SECOND, EmptyRun, diagnose, events
from run_tables import Row, blank, span

from ray_memprof.analysis.diagnosis.diagnose import Finding, findings


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with EmptyRun(Path(tmp_path_factory.mktemp("run"))) as run:
        yield run


def told(found: list[Finding], rule: str) -> list[Finding]:
    return [one for one in found if one.rule == rule]


def shifted(rows: list[Row], t_ns: int) -> list[Row]:
    return [{**row, "t_ns": row["t_ns"] + t_ns} for row in rows]


def full_rank(stage: str, t_ns: int, asked: int = 2 * GIB, free: int = GIB) -> dict[str, list[Row]]:
    """Three components are alive, of which two hold more in one tensor than the third, which holds the most in two."""
    spans = [
        span(1, "load.t5", (0, 9), component="t5", allocated=(0, 12 * GIB, 12 * GIB)),
        span(2, stage, (10, 90), component="dit", step=1, allocated=(12 * GIB, 0, 40 * GIB)),
        span(3, f"{stage}/vae", (20, 30), component="vae", parent_id=2, allocated=(0, 0, 30 * GIB)),
    ]
    made = [
        ("segment_alloc", 45 * GIB, 1, 1),
        ("alloc", 12 * GIB, 1, 1),
        ("alloc", 8 * GIB, 2, 2),
        ("alloc", 3 * GIB, 3, 3),
        ("alloc", 9 * GIB, 4, 2),
        ("alloc", 11 * GIB, 5, 3),
        ("free_requested", 11 * GIB, 5, 3),
        ("oom", asked, free, 2),
        ("free_requested", 9 * GIB, 4, 2),
    ]
    return {"spans": spans, "allocs": shifted(events(*made), t_ns)}


def test_the_first_rank_that_ran_out_and_the_largest_part_are_told_for_each_stage(empty: EmptyRun) -> None:
    """GIVEN ranks 1 and 2 that are full in denoise, the second one first, and rank 3 in decode; rank 0 is well."""
    ranks = [
        {"spans": [span(1, "denoise", (0, 9))]},
        full_rank("denoise", 500),
        full_rank("denoise", 100, asked=5 * GIB, free=4 * GIB),
        full_rank("decode", 0, asked=7 * GIB, free=6 * GIB),
    ]
    ends = [{"status": "interrupted"}, *({"status": "oom", "path": "denoise", "step": 1} for _ in range(2))]
    ends.append({"status": "oom", "path": "decode", "step": -1})
    found = told(diagnose(empty, *ranks, rank_rows=ends, workload="script"), "out_of_memory")
    first, second = found
    part = "held 32.0 GiB in tensors and 13.0 GiB unused; the largest part is 17.0 GiB of dit (activation)."
    assert (first.ranks, first.bytes, first.component) == ((1, 2), 32 * GIB, "dit")
    assert first.sentence == (
        "Ranks 1 and 2 ran out of device memory in denoise step 1: rank 2, the first, asked for 5.00 GiB where "
        f"4.00 GiB were free, and {part}"
    )
    assert (second.ranks, second.bytes) == ((3,), 32 * GIB)
    assert second.sentence == (
        "Rank 3 ran out of device memory in decode: it asked for 7.00 GiB where 6.00 GiB were free, and "
        + part
    )


def test_an_imported_rank_ran_out_where_its_request_failed(empty: EmptyRun) -> None:
    """GIVEN a rank that no launcher watched: its row says oom, and nothing of where."""
    rank = full_rank("train", 0)
    ends = [{"status": "oom", "path": "", "step": -1, "reason": "out of memory"}]
    run = {"workload": "script", "config": {"imported": [{"rank": 0}]}, "status": "oom"}
    (finding,) = told(diagnose(empty, rank, rank_rows=ends, **run), "out_of_memory")
    assert (finding.severity, finding.stage, finding.component) == ("severe", "train", "dit")
    assert finding.sentence == (
        "Rank 0 ran out of device memory in train step 1: it asked for 2.00 GiB where 1.00 GiB were free, and held "
        "32.0 GiB in tensors and 13.0 GiB unused; the largest part is 17.0 GiB of dit (activation)."
    )
    assert finding.knob == "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"


def test_a_request_that_failed_outside_of_any_span(empty: EmptyRun) -> None:
    rank = {"allocs": events(("segment_alloc", GIB, 1, 0), ("alloc", GIB, 1, 0), ("oom", GIB, MIB, 0))}
    ends = [{"status": "oom", "path": "", "step": -1}]
    (finding,) = told(diagnose(empty, rank, rank_rows=ends, workload="script"), "out_of_memory")
    assert finding.sentence == (
        "Rank 0 ran out of device memory in no span: it asked for 1.00 GiB where 1.00 MiB were free, and held 1.00 GiB "
        "in tensors and 0 B unused; the largest part is 1.00 GiB of no component (activation)."
    )


def gaps(stage: str, reserved: int, active: int, streams: int) -> dict[str, list[Row]]:
    """A rank whose reserved memory peaks in `stage`, with as much of it on each of some streams."""
    spans = [
        span(
            1,
            stage,
            (0, 9),
            reserved=(0, reserved, reserved),
            active=(0, 0, active),
            allocated=(0, 0, active),
        )
    ]
    rows = []
    for stream in range(streams):
        rows += [("segment_alloc", reserved // streams, 2 * stream, stream)]
        rows += [("alloc", active // streams, 2 * stream + 1, stream)]
    return {
        "spans": spans,
        "allocs": [{**row, "stream": one[3]} for row, one in zip(events(*rows), rows, strict=True)],
    }


def test_the_rank_with_the_largest_gaps_names_their_stage_and_streams(empty: EmptyRun) -> None:
    ranks = [
        gaps("decode", 20 * GIB, 18 * GIB, 1),
        gaps("denoise", 20 * GIB, 14 * GIB, 2),
        gaps("save", 20 * GIB, 16 * GIB, 4),
        gaps("save", 20 * GIB, 20 * GIB, 1),
    ]
    (finding,) = told(diagnose(empty, *ranks, workload="script"), "fragments")
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "denoise", 6 * GIB)
    assert finding.sentence == (
        "Reserved memory of ranks 0 to 2 peaks in denoise, 6.00 GiB above the most in use at once on each of 2 "
        "streams: expandable segments would give back at most that."
    )


def flushes(*stages: tuple[str, int, int, int]) -> dict[str, list[Row]]:
    """A rank that flushed its cache so often in (stage, retries, cached at its end, length in s); each runs twice."""
    spans = []
    for number, (stage, retries, cached, length_s) in enumerate(stages):
        begin = 1000 * SECOND * number
        reserved = (cached + GIB, cached + GIB, cached + GIB)
        held = {"reserved": reserved, "active": (cached + GIB, GIB, cached + GIB)}
        quiet = span(2 * number + 1, stage, (begin, begin + SECOND))
        slow = (begin + 2 * SECOND, begin + (2 + length_s) * SECOND)
        spans += [quiet, span(2 * number + 2, stage, slow, num_retries=retries, num_segments=1, **held)]
    return {"spans": spans}


def test_retries_are_told_of_the_rank_with_the_most(empty: EmptyRun) -> None:
    ranks = [
        flushes(("denoise", 2, 3 * GIB, 4), ("decode", 0, 9 * GIB, 9)),
        flushes(("denoise", 5, GIB, 3), ("decode", 1, 2 * GIB, 2)),
        flushes(("denoise", 0, 8 * GIB, 9)),
    ]
    found = told(diagnose(empty, *ranks, workload="script"), "retries")
    assert [(one.ranks, one.stage, one.bytes, one.sentence) for one in found] == [
        (
            (0, 1),
            "denoise",
            3 * GIB,
            "The device was full: the allocator of ranks 0 and 1 flushed its cache 5 times in denoise, which took "
            "at most 3.00 s, with up to 3.00 GiB held and not in use.",
        ),
        (
            (1,),
            "decode",
            2 * GIB,
            "The device was full: the allocator of rank 1 flushed its cache once in decode, which took at most "
            "1.00 s, with up to 2.00 GiB held and not in use.",
        ),
    ]


def growing(libraries: tuple[int, ...], unknown: tuple[int, ...]) -> dict[str, list[Row]]:
    """A rank that has so much of both accounts at the end of each step, besides a GiB of tensors."""
    tables: dict[str, list[Row]] = {"spans": [], "ledger": []}
    before = (0, 0)
    for step, now in enumerate(zip(libraries, unknown, strict=True)):
        ends = (100 * step, 100 * step + 90)
        measured: dict[str, Any] = dict.fromkeys(("reserved", "active", "allocated"), (GIB, GIB, GIB))
        measured["device_used"] = (GIB + sum(before), GIB + sum(now), GIB + sum(now))
        tables["spans"].append(span(step + 1, "denoise", ends, step=step, **measured))
        tables["ledger"].append(blank("ledger", t_ns=ends[1], account="libraries", bytes=now[0] - before[0]))
        before = now
    return tables


def test_of_two_accounts_that_grow_the_one_that_grows_more_is_told(empty: EmptyRun) -> None:
    more = growing((GIB, GIB + 50 * MIB, GIB + 90 * MIB), (0, 10 * MIB, 30 * MIB))
    (finding,) = told(diagnose(empty, more), "outside_grows")
    assert finding.sentence == (
        "Memory outside the allocator grows by 120 MiB over 3 visits of denoise on rank 0; it belongs to libraries."
    )


def test_whose_memory_grows_is_told_of_the_rank_where_it_grows_most(empty: EmptyRun) -> None:
    """GIVEN a rank whose libraries grow more than the other's, which grows more all in all, in fewer visits."""
    libraries = growing((0, 40 * MIB, 60 * MIB, 80 * MIB), (0, 0, 0, 0))
    unknown = growing((0, 10 * MIB, 20 * MIB), (0, 50 * MIB, 70 * MIB))
    (finding,) = told(diagnose(empty, libraries, unknown), "outside_grows")
    assert finding.sentence == (
        "Memory outside the allocator grows by 90.0 MiB over 3 visits of denoise on ranks 0 and 1; its owner "
        "is not known."
    )


def clocked(ahead_ns: tuple[int, ...], hosts: tuple[str, ...] | None, empty: EmptyRun) -> list[Finding]:
    """Ranks that work at the same time, by clocks that are ahead by so much."""
    ranks = [{"spans": [span(1, "denoise", (100 * SECOND + ns, 160 * SECOND + ns))]} for ns in ahead_ns]
    rows = [{"status": "ok", "host": host} for host in hosts or ("",) * len(ahead_ns)]
    diagnose(empty, *ranks, rank_rows=rows)
    if hosts is None:  # a driver that was killed wrote no row
        empty.connection.execute("DELETE FROM ranks")
    return told(findings(empty.connection), "starts_late")


@pytest.mark.parametrize("hosts", [("a", "a", "b", "b"), None])
@pytest.mark.parametrize("ahead_ns", [(3 * SECOND,) * 2 + (0, 0), (0, 0, 7 * SECOND, 7 * SECOND + 4_000_000)])
def test_no_rank_is_late_by_its_clock_alone(
    empty: EmptyRun, ahead_ns: tuple[int, ...], hosts: tuple[str, ...] | None
) -> None:
    assert clocked(ahead_ns, hosts, empty) == []


def test_ranks_of_one_host_have_one_clock(empty: EmptyRun) -> None:
    (finding,) = clocked((0, 0, 3 * SECOND), ("a", "a", "a"), empty)
    assert finding.ranks == (2,)
    assert finding.sentence.startswith("Rank 2 begins 3.0 s after the median rank")


def test_a_late_rank_of_another_host_is_told_by_what_its_clock_leaves(empty: EmptyRun) -> None:
    """GIVEN a clock that is 4 ms ahead, and a rank that begins 5 s after the others and ends with them."""
    begin, end = (105 * SECOND + 4_000_000, 160 * SECOND + 4_000_000)
    ranks = [{"spans": [span(1, "denoise", (100 * SECOND, 160 * SECOND))]}] * 2
    late = {"spans": [span(1, "denoise", (begin, end))]}
    rows = [{"status": "ok", "host": host} for host in ("a", "a", "b")]
    (finding,) = told(diagnose(empty, *ranks, late, rank_rows=rows, workload="script"), "starts_late")
    assert finding.sentence == "Rank 2 begins 5.0 s after the median rank."
    assert finding.knob == (
        "what its node does before: see the logs of that rank in logs/, its disk, and what the script reads first"
    )


def test_a_configuration_that_says_something_else_than_a_lever_is_no_lever(empty: EmptyRun) -> None:
    config = {"parallel": {"t5_fsdp": "maybe"}, "optimization": {"ffn_chunks": "auto", "vae_slabs": None}}
    assert diagnose(empty, {"spans": [span(1, "denoise", (0, 1))]}, config=config) == []
