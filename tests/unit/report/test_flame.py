"""The tree of a flame graph: which frames are drawn, and where the bytes of the others are."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.report import flame
from ray_memprof.report.flame import Flame, Step, flame_by_span, flame_by_stack, frame_step

GIB = 2**30

Row = dict[str, Any]


def row(size: int, stack_id: int | None = None, path: str | None = None) -> Row:
    return {"stack_id": stack_id, "path": path, "bytes": size}


def frames(*names: str) -> list[Step]:
    """A stack, the outermost frame first."""
    return [Step(name, f"{name}.py:1", "flame0") for name in names]


def paths(drawn: Flame) -> dict[str, int]:
    """Bytes of each frame that is drawn, by the names of the frames from the root to it."""
    (trace,) = drawn.figure["data"]
    found: list[str] = []
    for parent, label in zip(trace["parents"], trace["labels"], strict=True):
        found.append(f"{found[int(parent)]}/{label}" if parent else label.partition(",")[0])
    assert len(found) == len(set(found))
    return dict(zip(found, trace["values"], strict=True))


def test_a_rank_without_rows_is_a_root_of_nothing() -> None:
    drawn = flame_by_stack(3, [], {})
    assert paths(drawn) == {"rank 3": 0}
    assert (drawn.num_folded, drawn.folded_bytes, drawn.num_left_out) == (0, 0, 0)


def test_frames_are_drawn_from_the_outermost_inwards_and_add_up() -> None:
    stacks = {0: frames("main", "f", "g"), 1: frames("main", "f"), 2: frames("main", "main", "h")}
    rows = [row(8, 0), row(4, 1), row(2, 0, "decode"), row(1, 2), row(GIB, None, "load/dit"), row(16)]
    drawn = flame_by_stack(0, rows, stacks)
    assert paths(drawn) == {
        "rank 0": GIB + 31,
        "rank 0/no Python stack": GIB + 16,
        "rank 0/no Python stack/load": GIB,
        "rank 0/no Python stack/load/dit": GIB,
        "rank 0/no Python stack/no span": 16,
        "rank 0/main": 15,
        "rank 0/main/f": 14,
        "rank 0/main/f/g": 10,
        "rank 0/main/main": 1,
        "rank 0/main/main/h": 1,
    }
    assert drawn.has_stacks
    assert drawn.figure["data"][0]["labels"][0] == "rank 0, 1.00 GiB"


def test_a_stack_whose_frames_were_lost_keeps_its_bytes() -> None:
    assert paths(flame_by_stack(0, [row(8, 0, "decode")], {})) == {
        "rank 0": 8, "rank 0/no Python stack": 8, "rank 0/no Python stack/decode": 8
    }  # fmt: skip


def test_frames_that_differ_only_in_the_line_are_two() -> None:
    stacks = {0: [Step("f", "a.py:1", "flame0")], 1: [Step("f", "a.py:2", "flame0")]}
    (trace,) = flame_by_stack(0, [row(2, 0), row(1, 1)], stacks).figure["data"]
    assert list(zip(trace["labels"], trace["text"], trace["values"], strict=True))[1:] == [
        ("f", "a.py:1", 2), ("f", "a.py:2", 1)
    ]  # fmt: skip


def test_without_stacks_spans_components_and_categories_are_drawn() -> None:
    rows = [
        {"path": "denoise/dit.block", "component": "dit", "category": "activation", "bytes": 8},
        {"path": "denoise", "component": None, "category": None, "bytes": 2},
        {"path": None, "component": None, "category": "weight", "bytes": 1},
    ]
    drawn = flame_by_span(1, rows)
    assert paths(drawn) == {
        "rank 1": 11,
        "rank 1/denoise": 10,
        "rank 1/denoise/dit.block": 8,
        "rank 1/denoise/dit.block/dit": 8,
        "rank 1/denoise/dit.block/dit/activation": 8,
        "rank 1/denoise/uncategorised": 2,
        "rank 1/no span": 1,
        "rank 1/no span/weight": 1,
    }
    assert not drawn.has_stacks


def test_what_is_too_small_is_counted_in_the_frame_that_calls_it() -> None:
    stacks = {number: frames("main", f"f{number}", "leaf") for number in range(10)}
    rows = [row(100 - number, number) for number in range(10)]
    drawn = flame_by_stack(0, rows, stacks, most=6)
    assert paths(drawn) == {
        "rank 0": 955,
        "rank 0/main": 955,
        "rank 0/main/f0": 100,
        "rank 0/main/f0/leaf": 100,
        "rank 0/main/f1": 99,
        "rank 0/main/f1/leaf": 99,
    }
    # Eight functions, each with a leaf.
    assert (drawn.num_folded, drawn.folded_bytes) == (16, 955 - 199)


def test_a_very_deep_stack_keeps_both_ends() -> None:
    deep = frames(*(f"f{number}" for number in range(10_000)))
    drawn = flame_by_stack(0, [row(5, 0)], {0: deep})
    (trace,) = drawn.figure["data"]
    left_out = 10_000 - flame.OUTER_LEVELS - flame.INNER_LEVELS
    assert trace["labels"][1 : flame.OUTER_LEVELS + 1] == [
        f"f{number}" for number in range(flame.OUTER_LEVELS)
    ]
    assert trace["labels"][flame.OUTER_LEVELS + 1] == f"{left_out:,} frames"
    assert trace["labels"][-1] == "f9999"
    assert len(trace["labels"]) == 1 + flame.MOST_LEVELS
    assert (drawn.num_left_out, drawn.num_folded) == (left_out, 0)
    assert drawn.figure["height"] < 1000


def test_of_very_many_stacks_the_largest_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flame, "MOST_STACKS", 2)
    stacks = {number: frames(f"f{number}") for number in range(4)}
    drawn = flame_by_stack(0, [row(9, 0), row(8, 1), row(7, 2), row(6, 3)], stacks)
    assert paths(drawn) == {"rank 0": 30, "rank 0/f0": 9, "rank 0/f1": 8}
    assert (drawn.num_folded, drawn.folded_bytes) == (2, 13)


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "m" * 5000
    stacks = {number: [Step("f", f"{long}{number}", "flame0")] for number in range(2)}
    (trace,) = flame_by_stack(0, [row(1, 0), row(1, 1)], stacks).figure["data"]
    assert [len(text) for text in trace["text"][1:]] == [199, 199]
    assert trace["text"][1].endswith("mm0") and trace["text"][2].endswith("mm1")


@pytest.mark.parametrize(("order", "is_grey"), [(0, False), (1, True), (2, True)])
def test_only_code_of_the_program_has_the_colour_of_its_file(order: int, is_grey: bool) -> None:
    one = frame_step("f", "a.py", 3, order)
    assert (one.name, one.where) == ("f", "a.py:3")
    assert (one.colour == "shade2") == is_grey
    assert one.colour == frame_step("g", "a.py", 9, order).colour


STACKS = st.lists(st.sampled_from("abc"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(stacks=st.lists(st.tuples(STACKS, st.integers(1, 50)), max_size=12), most=st.integers(1, 20))
def test_every_byte_is_drawn_or_told_once(stacks: list[tuple[list[str], int]], most: int) -> None:
    rows = sorted(
        (row(size, number) for number, (_, size) in enumerate(stacks)), key=lambda one: -one["bytes"]
    )
    known = {number: frames(*names) for number, (names, _) in enumerate(stacks)}
    whole, drawn = (flame_by_stack(0, rows, known, most=limit) for limit in (1000, most))
    all_paths, few_paths = paths(whole), paths(drawn)
    total = sum(size for _, size in stacks)
    assert whole.num_folded == whole.folded_bytes == 0
    # Nothing that is left out is larger than what is drawn, and what is drawn is right.
    assert len(few_paths) == min(most, len(all_paths))
    assert few_paths.items() <= all_paths.items()
    assert drawn.num_folded == len(all_paths) - len(few_paths)
    ends = {path: size for path, size in all_paths.items() if path not in few_paths}
    outermost = [size for path, size in ends.items() if path.rpartition("/")[0] in few_paths]
    assert drawn.folded_bytes == sum(outermost) <= total == few_paths["rank 0"]
    assert max(ends.values(), default=0) <= min(few_paths.values(), default=0) or not ends
