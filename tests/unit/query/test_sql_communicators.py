"""What each process group holds, with the table communicators and in older runs: hand-made rows in, rows out."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, answer, blank, columns, make_ranks, make_run, span

MIB = 2**20
RING, PEER = 64 * 12 * MIB, 32 * 12 * MIB


def group(name: str, t_ns: int, size: int | None, **values: Any) -> Row:
    """A row about a group of four ranks of NCCL."""
    about = {"backend": "nccl", "ranks": "0-3", "group_size": 4, "how_known": "growth", **values}
    return blank("communicators", group=name, t_ns=t_ns, bytes=size, **about)


def call(op: str, times: tuple[int, int], grown: int = 0, name: str = "0", size: int = 2) -> Row:
    return blank(
        "collectives",
        op=op, start_ns=times[0], end_ns=times[1], non_torch_growth_bytes=grown, group=name, group_size=size,
    )  # fmt: skip


def entry(t_ns: int, account: str, size: int) -> Row:
    return blank("ledger", t_ns=t_ns, account=account, bytes=size)


def groups(run_dir: Path) -> list[tuple[Any, ...]]:
    return answer(run_dir, "nccl_by_communicator")


def test_without_groups_there_are_no_rows(tmp_path: Path) -> None:
    assert groups(make_run(tmp_path, {0: {}})) == []


def test_nccl_by_communicator(tmp_path: Path) -> None:
    rows = [
        group("0", 1, 0, how_known="none"),
        group("0", 5, 900 * MIB, shared_bytes=7, num_calls=3),
        group("0", 9, 700 * MIB, shared_bytes=7, num_calls=8),
        group("tp", 2, 5 * MIB, how_known="own", num_calls=2, group_size=2, ranks="0,2"),
        group("pp", 3, None, how_known="formula", num_calls=1),
        group("", 4, 11 * MIB, ranks="", group_size=0),
        group("cpu", 4, 0, backend="gloo", how_known="none"),
    ]
    calls = [call("all_to_all_single", (2, 3), name="tp"), call("all_to_all", (3, 4), name="tp")]
    make_run(tmp_path, {0: {"communicators": rows, "collectives": calls}})
    assert columns(tmp_path, "nccl_by_communicator") == [
        *(
            "rank",
            "group_name",
            "backend",
            "ranks",
            "group_size",
            "num_calls",
            "bytes",
            "end_bytes",
            "how_known",
        ),
        *("shared_bytes", "is_in_context", "formula_bytes", "note"),
    ]
    late = "at most: a library may have been loaded meanwhile"
    more = "more than connections take by the formula: kernels and what a first group takes are in it"
    made = "not measured: it was made together with the CUDA context, which has it in the books"
    assert answer(tmp_path, "nccl_by_communicator") == [
        (0, "0", "nccl", "0-3", 4, 8, 900 * MIB, 700 * MIB, "growth", 7, False, RING, f"{late}; {more}"),
        (0, "several groups", None, "", 0, 0, 11 * MIB, 11 * MIB, "growth", 0, False, None, None),
        (0, "tp", "nccl", "0,2", 2, 2, 5 * MIB, 5 * MIB, "own", 0, False, PEER, None),
        (0, "cpu", "gloo", "0-3", 4, 0, 0, 0, "none", 0, False, None, None),
        (0, "pp", "nccl", "0-3", 4, 1, None, None, "formula", 0, True, RING, made),
    ]


def test_groups_of_gloo_that_took_memory_at_once_are_named_or_left_out(tmp_path: Path) -> None:
    named = [group(name, 1, 5, backend="gloo", ranks="0-1", group_size=2) for name in ("0", "tp")]
    # As older recordings have it: nccl, though no group is of it; on rank 1 the groups only gave back.
    nameless = [group("", 2, held, ranks="", group_size=0) for held in (7, 0)]
    tables = {rank: {"communicators": [*named, nameless[rank]]} for rank in (0, 1)}
    found = groups(make_run(tmp_path, tables))
    assert [row[:3] + row[6:7] for row in found] == [
        (0, "several groups", "gloo", 7), (0, "0", "gloo", 5), (0, "tp", "gloo", 5),
        (1, "0", "gloo", 5), (1, "tp", "gloo", 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 64 * 12 + 3 * 32 * 12),
        ({"NCCL_BUFFSIZE": "1048576"}, 64 * 9 + 3 * 32 * 9),
        ({"NCCL_MAX_NCHANNELS": "8"}, 16 * 12 + 3 * 8 * 12),
        ({"NCCL_MAX_CTAS": "8"}, 16 * 12 + 3 * 8 * 12),
        ({"NCCL_MAX_P2P_NCHANNELS": "4"}, 64 * 12 + 3 * 4 * 12),
        ({"NCCL_BUFFSIZE": "much"}, 64 * 12 + 3 * 32 * 12),
    ],
)
def test_the_formula_knows_the_settings_of_nccl(
    tmp_path: Path, environment: dict[str, str], size: int
) -> None:
    rows = [group("0", 1, 5, num_calls=9)]
    make_run(
        tmp_path, {0: {"communicators": rows, "collectives": [call("all_to_all_single", (2, 3), size=4)]}}
    )
    make_ranks(tmp_path, {}, environment=json.dumps(environment))
    assert groups(tmp_path)[0][11] == size * MIB


def test_a_group_of_one_rank_has_no_connections(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"communicators": [group("0", 1, 3, num_calls=2, group_size=1)]}})
    assert groups(tmp_path)[0][11] == 0


@pytest.mark.parametrize("above", [0, 1])
def test_only_more_than_connections_take_needs_a_word(tmp_path: Path, above: int) -> None:
    make_run(tmp_path, {0: {"communicators": [group("0", 1, RING + above, num_calls=3)]}})
    (row,) = groups(tmp_path)
    assert (row[11], row[12] is not None) == (RING, above > 0)


def test_an_older_run_tells_what_grew_across_calls_that_were_heard(tmp_path: Path) -> None:
    calls = [
        call("init_process_group", (1, 2), 40), call("all_reduce", (5, 6), 30), call("all_reduce", (7, 8)),
        call("new_group", (10, 11), name="1", size=4), call("destroy_process_group", (20, 21), -60, "", 0),
    ]  # fmt: skip
    ledger = [entry(0, "context", 9), entry(2, "nccl", 40), entry(6, "nccl", 30), entry(21, "nccl", -60)]
    make_run(tmp_path, {0: {"collectives": calls, "ledger": ledger}})
    lost = "not known: this run was recorded before the calls of C++ were heard"
    assert answer(tmp_path, "nccl_by_communicator") == [
        (0, "0", None, None, 2, 2, 70, None, "growth", None, False, RING, None),
        (0, "1", None, None, 4, 0, None, None, "unknown", None, False, RING, lost),
    ]


def test_groups_of_an_older_run_are_told_apart_by_rank_and_by_what_they_called(tmp_path: Path) -> None:
    """GIVEN two groups on one rank, before and after its context came, and one on another that gave back twice."""
    several = [
        call("init_process_group", (1, 2), size=4),
        call("all_reduce", (60, 61), 40, size=4),  # 10 of it are a library's
        call("new_group", (62, 63), 5, name="tp"),
        call("all_to_all_single", (64, 65), 2, name="tp"),
        call("send", (66, 67), name="tp"),
        call("destroy_process_group", (90, 91), -60, "", 0),  # nobody knows whose
    ]
    booked = [
        entry(50, "context", 9), entry(61, "nccl", 30), entry(61, "libraries", 10),
        entry(63, "nccl", 5), entry(65, "nccl", 2), entry(91, "nccl", -37),
    ]  # fmt: skip
    single = [
        call("all_reduce", (5, 6), 3),
        call("destroy_process_group", (20, 21), -5, "", 0),
        call("destroy_process_group", (22, 23), -3, "", 0),
    ]
    books = [
        entry(1, "context", 9), entry(4, "libraries", 10), entry(6, "nccl", 3), entry(21, "nccl", -5),
        entry(23, "nccl", -3),
    ]  # fmt: skip
    make_run(
        tmp_path, {0: {"collectives": several, "ledger": booked}, 1: {"collectives": single, "ledger": books}}
    )
    note = (
        "at least: given back when it was destroyed. This run was recorded before the calls of C++ were heard"
    )
    assert groups(tmp_path) == [
        (0, "0", None, None, 4, 1, 30, None, "growth", None, False, RING, None),
        (0, "tp", None, None, 2, 2, 7, None, "growth", None, False, RING + PEER, None),
        (1, "0", None, None, 2, 1, 8, None, "returned", None, False, RING, note),
    ]


NANO = {
    "spans": [span(1, "script", (0, 30), device_used=(0, 1100, 1100))],
    "collectives": [
        call("init_process_group", (4, 5)),
        call("destroy_process_group", (40, 41), -470, "", 0),
    ],
    "ledger": [
        entry(4, "context", 500),
        entry(10, "libraries", 400),
        entry(20, "libraries", 200),
        entry(41, "nccl", -470),
        entry(41, "libraries", -2),
    ],
}
"""nanoGPT under DDP as an older recorder saw it: the reducer's calls were not heard."""


def test_what_nccl_gave_back_was_its_own_though_it_was_booked_to_libraries(tmp_path: Path) -> None:
    make_run(tmp_path, {0: NANO})
    note = (
        "at least: given back when it was destroyed. This run was recorded before the calls of C++ were heard"
    )
    assert answer(tmp_path, "nccl_by_communicator") == [
        (0, "0", None, None, 2, 0, 470, None, "returned", None, False, RING, note)
    ]
    books = {row[3]: (row[4], row[7]) for row in answer(tmp_path, "books_at_peak")}
    unsure = "NCCL may be in it: recorded before calls of C++ were heard"
    assert (books["nccl"], books["libraries"]) == ((470, None), (130, unsure))
    assert books["unexplained"] == (0, None)
    assert sum(size for size, _ in books.values()) == 1100


def test_growth_of_libraries_before_it_is_moved_first(tmp_path: Path) -> None:
    boundaries = [span(number, "script", (t_ns, t_ns + 1)) for number, t_ns in enumerate((4, 10, 20, 41), 1)]
    make_run(tmp_path, {0: {"ledger": NANO["ledger"], "spans": boundaries}})
    held = {row[1]: (row[10], row[11]) for row in answer(tmp_path, "books") if row[5] == "start"}
    assert held == {4: (0, 0), 10: (400, 0), 20: (470, 130), 41: (0, 128)}


def test_a_context_that_was_made_inside_a_call_has_nccls_part_and_says_so(tmp_path: Path) -> None:
    """GIVEN init_process_group(device_id=...) in an older run: context and communicator came in one call."""
    ledger = [
        entry(5, "others", 960),
        entry(9, "others", -960),
        entry(9, "context", 960),
        entry(12, "nccl", 470),
    ]
    calls = [call("init_process_group", (4, 5), 960), call("broadcast", (11, 12), 470)]
    spans = [span(1, "script", (9, 20), device_used=(960, 1430, 1430))]
    make_run(tmp_path, {0: {"spans": spans, "collectives": calls, "ledger": ledger}})
    note = "not all: it was made together with the CUDA context, which has it in the books"
    assert answer(tmp_path, "nccl_by_communicator") == [
        (0, "0", None, None, 2, 1, 470, None, "growth", None, True, RING, note)
    ]
    notes = {row[3]: row[7] for row in answer(tmp_path, "books_at_peak") if row[7]}
    assert notes == {"context": "NCCL is in it: see nccl_by_communicator"}


def test_the_books_say_that_a_library_may_be_in_what_nccl_holds(tmp_path: Path) -> None:
    spans = [span(1, "script", (0, 20), device_used=(0, 90, 90))]
    rows = [group("0", 5, 90, shared_bytes=20, num_calls=1)]
    make_run(tmp_path, {0: {"spans": spans, "communicators": rows, "ledger": [entry(5, "nccl", 90)]}})
    notes = {row[3]: row[7] for row in answer(tmp_path, "books_at_peak") if row[7]}
    assert notes == {"nccl": "libraries may be in it: see nccl_by_communicator"}
