"""Questions about Python stacks: hand-made rows in, exact rows out."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tables import Row, answer, blank, columns, event, make_run, span

from ray_memprof.query.database import query

NAMES = ("alive_at_peak_by_stack", "alive_at_peak_by_frame", "alive_at_peak_by_file")
TORCH = "/env/lib/python3.11/site-packages/torch/nn/functional.py"
CPP = "/pytorch/aten/src/ATen/native/Linear.cpp"

Frame = tuple[str, str, int]


def stack(stack_id: int, *frames: Frame) -> list[Row]:
    """Rows of a stack, the innermost frame first."""
    return [
        blank("stacks", stack_id=stack_id, frame=number, function=function, file=file, line=line)
        for number, (function, file, line) in enumerate(frames)
    ]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Rank 0 has four stacks and a tensor without one, rank 1 a stack of its own, rank 2 no stack at all."""
    spans = [
        span(1, "denoise", (0, 90), allocated=(0, 0, 111)),
        span(2, "denoise/block", (5, 80), parent_id=1),
    ]
    stacks = [
        *stack(
            0, ("linear", CPP, 0), ("linear", TORCH, 9), ("forward", "model.py", 3), ("main", "run.py", 1)
        ),
        # The same function on another line.
        *stack(1, ("forward", "model.py", 4), ("main", "run.py", 1)),
        # A function that calls itself.
        *stack(
            2, ("walk", "tree.py", 7), ("walk", "tree.py", 7), ("walk", "tree.py", 8), ("main", "run.py", 1)
        ),
        # Nothing but torch: its innermost Python frame counts.
        *stack(3, ("", "??", 0), ("backward", TORCH, 5), ("apply", TORCH, 6)),
        *stack(4, ("later", "after_the_peak.py", 1)),
    ]
    events = [
        event(1, "alloc", 50, address=1, span_id=1, stack_id=0),
        event(2, "alloc", 10, address=2, span_id=1, stack_id=0),
        event(3, "alloc", 20, address=3, span_id=2, stack_id=1),
        event(4, "alloc", 20, address=4, span_id=2, stack_id=2),
        event(5, "alloc", 8, address=5, span_id=2, stack_id=3),
        event(6, "alloc", 3, address=6, span_id=1),
        event(7, "free_requested", 8, address=5, span_id=2),
        event(8, "free_completed", 8, address=5, span_id=2),
        event(9, "alloc", 4, address=7, span_id=1, stack_id=4),
    ]
    other = {
        "allocs": [event(1, "alloc", 7, address=1, stack_id=0)],
        "stacks": stack(0, ("main", "run.py", 1)),
    }
    return make_run(
        tmp_path,
        {
            0: {"spans": spans, "allocs": events, "stacks": stacks},
            1: other,
            2: {"allocs": [event(1, "alloc", 9, address=1)]},
        },
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def test_alive_at_peak_by_stack(run_dir: Path) -> None:
    assert columns(run_dir, "alive_at_peak_by_stack") == [
        *("rank", "stack_id", "function", "file", "line", "frame", "path", "bytes", "num_tensors")
    ]
    assert answer(run_dir, "alive_at_peak_by_stack") == [
        (0, 0, "forward", "model.py", 3, 2, "denoise", 60, 2),
        (0, 1, "forward", "model.py", 4, 0, "denoise/block", 20, 1),
        (0, 2, "walk", "tree.py", 7, 0, "denoise/block", 20, 1),
        (0, 3, "backward", TORCH, 5, 1, "denoise/block", 8, 1),
        (0, None, None, None, None, None, "denoise", 3, 1),
        (1, 0, "main", "run.py", 1, 0, None, 7, 1),
        (2, None, None, None, None, None, None, 9, 1),
    ]


def test_alive_at_peak_by_frame(run_dir: Path) -> None:
    assert columns(run_dir, "alive_at_peak_by_frame") == [
        *("rank", "function", "file", "line", "total_bytes", "self_bytes", "num_tensors", "num_self_tensors")
    ]
    assert answer(run_dir, "alive_at_peak_by_frame") == [
        (0, "main", "run.py", 1, 100, 0, 4, 0),
        (0, "forward", "model.py", 3, 60, 60, 2, 2),
        (0, "linear", TORCH, 9, 60, 0, 2, 0),
        (0, "forward", "model.py", 4, 20, 20, 1, 1),
        (0, "walk", "tree.py", 7, 20, 20, 1, 1),
        (0, "walk", "tree.py", 8, 20, 0, 1, 0),
        (0, "backward", TORCH, 5, 8, 8, 1, 1),
        (0, "apply", TORCH, 6, 8, 0, 1, 0),
        (1, "main", "run.py", 1, 7, 7, 1, 1),
    ]


def test_alive_at_peak_by_file(run_dir: Path) -> None:
    assert columns(run_dir, "alive_at_peak_by_file") == [
        *("rank", "file", "total_bytes", "self_bytes", "num_tensors", "num_self_tensors")
    ]
    assert answer(run_dir, "alive_at_peak_by_file") == [
        (0, "run.py", 100, 0, 4, 0),
        (0, "model.py", 80, 80, 3, 3),
        (0, TORCH, 68, 8, 3, 1),
        (0, "tree.py", 20, 20, 1, 1),
        (1, "run.py", 7, 7, 1, 1),
    ]


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_run_without_stacks_has_no_frames_and_its_bytes_by_span(tmp_path: Path, name: str) -> None:
    make_run(tmp_path, {0: {"allocs": [event(1, "alloc", 9, address=1)]}})
    assert answer(tmp_path, name) == []
    assert [row[-2] for row in answer(tmp_path, NAMES[0])] == [9]


def test_a_tensor_whose_stack_was_lost_keeps_its_bytes(tmp_path: Path) -> None:
    """GIVEN an event that names a stack whose frames never reached the disk."""
    make_run(tmp_path, {0: {"allocs": [event(1, "alloc", 9, address=1, stack_id=5)]}})
    assert answer(tmp_path, "alive_at_peak_by_stack") == [(0, 5, None, None, None, None, None, 9, 1)]
    assert answer(tmp_path, "alive_at_peak_by_frame") == []


def test_frames_of_cpp_count_in_stacks_that_have_no_others(tmp_path: Path) -> None:
    """GIVEN a backward pass on a thread of C++, and Python frames that torch puts behind the end of the C++ ones."""
    stacks = [
        *stack(0, ("malloc", "??", 0), ("call", CPP, 5), ("_start", "??", 0)),
        *stack(1, ("malloc", "??", 0), ("to", TORCH, 1), ("_start", "??", 0), ("main", "run.py", 2)),
    ]
    events = [event(number, "alloc", 4 + number, address=number, stack_id=number) for number in (0, 1)]
    make_run(tmp_path, {0: {"allocs": events, "stacks": stacks}})
    assert answer(tmp_path, "alive_at_peak_by_frame") == [
        (0, "main", "run.py", 2, 5, 5, 1, 1),
        (0, "to", TORCH, 1, 5, 0, 1, 0),
        (0, "malloc", "??", 0, 4, 4, 1, 1),
        (0, "call", CPP, 5, 4, 0, 1, 0),
        (0, "_start", "??", 0, 4, 0, 1, 0),
    ]
    assert [row[1:4] for row in answer(tmp_path, "alive_at_peak_by_file")] == [
        ("run.py", 5, 5), (TORCH, 5, 0), ("??", 4, 4), (CPP, 4, 0)
    ]  # fmt: skip


def test_an_address_that_is_used_again_counts_for_its_last_stack(tmp_path: Path) -> None:
    events = [
        event(1, "alloc", 9, address=1, stack_id=0),
        event(2, "free_requested", 9, address=1),
        event(3, "free_completed", 9, address=1),
        event(4, "alloc", 12, address=1),
    ]
    make_run(tmp_path, {0: {"allocs": events, "stacks": stack(0, ("f", "a.py", 1))}})
    assert answer(tmp_path, "alive_at_peak_by_stack") == [(0, None, None, None, None, None, None, 12, 1)]


WHOSE = {
    "program": [
        *("train.py", "/home/me/torch/train.py", "/w/site-packages/torchvision/ops.py", "<frozen runpy>"),
        *("/usr/bin/train", "/tmp/torchinductor_me/ab/cab.py"),
    ],
    "torch": [
        *(TORCH, "/usr/lib/python3/dist-packages/torch/_ops.py", "/opt/pytorch/torch/nn/modules/linear.py"),
        "C:\\env\\Lib\\site-packages\\torch\\_ops.py",
    ],
    "C++": [CPP, "/env/site-packages/torch/lib/libc10.so", "/lib/libc.so.6", "??", ""],
}


def test_whose_frame_it_is(tmp_path: Path) -> None:
    """GIVEN a frame inside one of torch and, in half of the ranks, one of the program, WHEN asked who allocated."""
    files = [(file, owner) for owner, names in WHOSE.items() for file in names]
    ranks: dict[int, dict[str, list[Row]]] = {}
    for rank, (file, _) in enumerate(files):
        frames = [("it", file, 1), ("torch", TORCH, 2), ("own", "own.py", 3)]
        alloc = [event(1, "alloc", 1, address=1, stack_id=0)]
        ranks[2 * rank] = {"allocs": alloc, "stacks": stack(0, *frames)}
        ranks[2 * rank + 1] = {"allocs": alloc, "stacks": stack(0, *frames[:2])}
    make_run(tmp_path, ranks)
    found = [row[2] for row in answer(tmp_path, "alive_at_peak_by_stack")]
    told = {"program": ("it", "it"), "torch": ("own", "it"), "C++": ("own", "torch")}
    assert list(zip(found[::2], found[1::2], strict=True)) == [told[owner] for _, owner in files]


FRAMES: tuple[Frame, ...] = (
    *(("f", "a.py", 1), ("f", "a.py", 2), ("g", "a.py", 1), ("h", "b.py", 1)),
    *(("t", TORCH, 1), ("c", "x.cpp", 0)),
)


def random_rank(chance: random.Random) -> dict[str, list[Row]]:
    """Tensors that come and go, half of them with one of a few stacks."""
    stacks = [chance.choices(FRAMES, k=chance.randint(1, 6)) for _ in range(5)]
    events: list[Row] = []
    held: list[tuple[int, int]] = []
    for seq in range(60):
        if held and chance.random() < 0.4:
            size, address = held.pop(chance.randrange(len(held)))
            events.append(event(seq, "free_requested", size, address=address))
        else:
            held.append((chance.choice((1, 2, 30)), seq))
            number = chance.choice((None, *range(5)))
            events.append(event(seq, "alloc", held[-1][0], address=seq, stack_id=number))
    return {
        "allocs": events,
        "stacks": [row for number, one in enumerate(stacks) for row in stack(number, *one)],
    }


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_self_bytes_add_up_to_what_was_alive_with_a_stack(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    chance = random.Random(seed)
    run_dir = tmp_path_factory.mktemp("run")
    make_run(run_dir, {rank: random_rank(chance) for rank in range(chance.randint(1, 3))})
    by_stack, by_frame, by_file, all_alive = (
        query(run_dir, name).to_pylist() for name in (*NAMES, "alive_at_peak")
    )
    peaks = {row["rank"]: row["allocated_bytes"] for row in query(run_dir, "peak_event").to_pylist()}
    with_stack: dict[int, int] = defaultdict(int)
    for row in by_stack:
        with_stack[row["rank"]] += row["bytes"] * (row["stack_id"] is not None)
    assert summed(by_stack, "bytes") == summed(all_alive, "bytes") == peaks
    for rows in (by_frame, by_file):
        found = summed(rows, "self_bytes")
        assert {rank: found.get(rank, 0) for rank in with_stack} == with_stack
        assert all(0 <= row["self_bytes"] <= row["total_bytes"] <= with_stack[row["rank"]] for row in rows)
    files = {(row["rank"], row["file"]): row for row in by_file}
    for row in by_frame:
        assert row["total_bytes"] <= files[row["rank"], row["file"]]["total_bytes"]


def summed(rows: list[Any], column: str) -> dict[int, int]:
    """Sum of a column by rank."""
    sums: dict[int, int] = defaultdict(int)
    for row in rows:
        sums[row["rank"]] += row[column]
    return dict(sums)
