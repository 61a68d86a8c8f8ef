"""Pictures of a run against its base run: treemap, flame graph, and the cells of stages and ranks."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, blank, event, make_ranks, make_run, span

from ray_memprof.report import changes, run_page
from ray_memprof.report.flame import Flame, Step, flame_by_span, flame_by_stack, span_tree, stack_tree

GIB = 2**30


@pytest.mark.parametrize(
    ("size", "base", "colour"),
    [
        (100, 100, "same"),
        (102, 100, "same"),
        (98, 100, "same"),
        (103, 100, "more1"),
        (97, 100, "less1"),
        (125, 100, "more2"),
        (75, 100, "less2"),
        (1, 0, "more2"),
        (0, 0, "same"),
    ],
)
def test_colours_say_how_far_a_size_is_from_that_of_the_base_run(size: int, base: int, colour: str) -> None:
    assert changes.colour(size, base) == colour


def told(drawn: Flame) -> dict[str, tuple[int, str, str]]:
    """By the label of a frame: its bytes in the base run, the text of its change, and its colour."""
    (trace,) = drawn.figure["data"]
    colours = [colour.removeprefix("var:") for colour in trace["marker"]["colors"]]
    return {
        label: (base, text, colour)
        for label, (base, text), colour in zip(trace["labels"], trace["customdata"], colours, strict=True)
    }


def row(size: int, stack_id: int) -> Row:
    return {"stack_id": stack_id, "path": None, "bytes": size}


def frames(*places: str) -> list[Step]:
    """Frames of "function file:line", the outermost first."""
    return [Step(*place.split(), "flame0") for place in places]


def test_frames_are_set_against_the_same_frames_of_the_base_run() -> None:
    here = {0: frames("main a.py:1", "f a.py:2"), 1: frames("main a.py:1", "g a.py:3")}
    there = {
        5: frames("main a.py:1", "g a.py:3"),
        6: frames("main a.py:1", "h /env/b.py:9"),
        7: frames("x c.py:1"),
    }
    base = stack_tree(0, [row(2 * GIB, 5), row(GIB, 6), row(5, 7)], there)
    drawn = flame_by_stack(0, [row(GIB, 0), row(2 * GIB, 1)], here, base=base)
    assert drawn.is_compared
    assert told(drawn) == {
        "rank 0, 3.00 GiB": (3 * GIB + 5, "", "same"),
        "main": (3 * GIB, "", "same"),
        "g": (2 * GIB, "", "same"),
        "f": (0, " (+1.00 GiB)", "more2"),
    }
    assert drawn.base_line == "Only in the base run: 1.00 GiB in h (b.py:9); 5 B in x (c.py:1)."
    (trace,) = drawn.figure["data"]
    assert trace["texttemplate"] == "%{label}%{customdata[1]}"
    assert trace["hovertemplate"].endswith("<br>in the base run: %{customdata[0]:,d} bytes<extra></extra>")


def test_a_frame_on_another_line_or_in_another_folder_is_the_same_unless_there_are_two() -> None:
    here = {
        0: frames("main a.py:1"),
        1: frames("f /new/b.py:7"),
        2: frames("g c.py:4"),
        3: frames("g c.py:5"),
    }
    there = {
        0: frames("main a.py:9"),
        1: frames("f /old/b.py:5"),
        2: frames("g c.py:2"),
        3: frames("g c.py:3"),
    }
    rows = [row(4, 0), row(3, 1), row(2, 2), row(2, 3)]
    drawn = flame_by_stack(0, rows, here, base=stack_tree(0, rows, there))
    (trace,) = drawn.figure["data"]
    bases = [pair[0] for pair in trace["customdata"]]
    assert list(zip(trace["text"], bases, strict=True))[1:] == [
        ("a.py:1", 4), ("/new/b.py:7", 3), ("c.py:4", 0), ("c.py:5", 0)
    ]  # fmt: skip
    assert drawn.base_line == "Only in the base run: 2 B in g (c.py:2); 2 B in g (c.py:3)."


def test_a_frame_that_is_too_small_to_be_drawn_is_not_missing() -> None:
    stacks = {0: frames("main a.py:1"), 1: frames("f a.py:2")}
    rows = [row(9, 0), row(1, 1)]
    drawn = flame_by_stack(0, rows, stacks, most=2, base=stack_tree(0, rows, stacks))
    assert (drawn.num_folded, drawn.base_line) == (1, "")


def test_spans_are_set_against_those_of_the_base_run() -> None:
    def alive(path: str, size: int) -> Row:
        return {"path": path, "component": "dit", "category": "weight", "bytes": size}

    base = span_tree(0, [alive("load", 4), alive("decode", 100)])
    drawn = flame_by_span(0, [alive("load", 3)], base=base)
    assert told(drawn)["weight"] == (4, " (-1 B)", "less2")
    assert drawn.base_line == "Only in the base run: 100 B in decode (span)."
    assert not flame_by_span(0, [alive("load", 3)]).is_compared


def test_of_many_things_that_are_gone_the_largest_are_named() -> None:
    gone = [(f"in f{number}", number * 1024) for number in range(8)]
    assert changes.gone_text(gone) == (
        "Only in the base run: 7.00 KiB in f7; 6.00 KiB in f6; 5.00 KiB in f5; 4.00 KiB in f4; 6.00 KiB in 3 more."
    )
    assert changes.gone_text([]) == ""


def peak(rank: int, stage: str, size: int | None) -> Row:
    return {"rank": rank, "stage": stage, "allocated_peak_bytes": size}


def test_the_cells_of_a_change_are_around_zero_and_empty_where_one_run_has_nothing() -> None:
    rows = [peak(0, "encode", GIB), peak(1, "encode", 3 * GIB), peak(0, "new", 1), peak(1, "decode", None)]
    base = [peak(0, "encode", 3 * GIB), peak(1, "encode", 2 * GIB), peak(1, "decode", 5), peak(0, "old", 5)]
    figure = changes.changes_heat(rows, base, "allocated")
    assert figure is not None
    (trace,) = figure["data"]
    assert trace["y"] == ["encode", "new", "decode"]
    assert trace["customdata"] == [[-2 * GIB, GIB], [None, None], [None, None]]
    assert (trace["zmin"], trace["zmax"], trace["meta"]) == (-2.0, 2.0, {"size": "z", "signed": True})
    assert [name for _, name in trace["colorscale"]] == [f"var:{name}" for name in changes.SCALE]
    assert changes.unmatched_text(rows, base) == "Only in this run: new. Only in the base run: old."
    assert changes.unmatched_text(rows, rows) == ""
    assert changes.changes_heat(rows, [peak(5, "encode", 1)], "allocated") is None


def test_runs_without_any_change_have_cells_of_nothing() -> None:
    rows = [peak(0, "encode", GIB)]
    figure = changes.changes_heat(rows, rows, "allocated")
    assert figure is not None
    assert figure["data"][0]["customdata"] == [[0]]
    assert figure["data"][0]["zmax"] > 0


# ---- on the page ----


def make(folder: Path, name: str, *, size: int, is_stack: bool = True, has_events: bool = True) -> Path:
    """A run of two ranks; `size` is what its only stage takes."""
    spans = [span(1, "denoise", (0, 9), allocated=(0, size, size), component="dit")]
    allocs = [event(1, "alloc", size, "weight", span_id=1, stack_id=0 if is_stack else None)]
    rows: dict[str, list[Row]] = {"spans": spans}
    if has_events:
        rows["allocs"] = allocs
    if is_stack:
        rows["stacks"] = [blank("stacks", stack_id=0, frame=0, function=f"f_{name}", file="m.py", line=3)]
    run_dir = make_run(folder / name, dict.fromkeys(range(2), rows))
    make_ranks(run_dir, {}, {}, name=name, run_id="r1", source="cuda", status="ok")
    return run_dir


def figures(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data-([^"]+)">(.*?)</script>', html, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_pictures_of_a_report_show_changes_and_what_only_the_base_has(tmp_path: Path) -> None:
    run_dir, base = make(tmp_path, "here", size=3 * GIB), make(tmp_path, "there", size=GIB)
    html = run_page.render(run_dir, base=base)
    drawn = figures(html)
    treemap = drawn["treemaps-1"]["data"][0]
    assert treemap["customdata"] == [[GIB, ""]] * 3 + [[GIB, "<br>+2.00 GiB"]]
    assert treemap["labels"][1:] == [
        "dit, 3.00 GiB (+2.00 GiB)",
        "weight, 3.00 GiB (+2.00 GiB)",
        "denoise, 3.00 GiB",
    ]
    assert set(treemap["marker"]["colors"]) == {"var:more2"}
    assert drawn["flames-0"]["data"][0]["customdata"] == [[GIB, " (+2.00 GiB)"], [0, " (+3.00 GiB)"]]
    assert drawn["heats-0-change"]["data"][0]["meta"]["signed"]
    assert html.count("Only in the base run: 1.00 GiB in f_there (m.py:3).") == 2
    assert html.count("orange is more and blue is less, strong from 25 % on") == 2
    alone = run_page.render(run_dir)
    assert "base run" not in alone
    assert not any(name.endswith("-change") for name in figures(alone))
    # Pictures with a base are not much larger than those without.
    assert len(html) - len(alone) < 20_000


def test_what_only_the_base_run_has_is_plain_text(tmp_path: Path) -> None:
    run_dir, base = make(tmp_path, "here", size=GIB), make(tmp_path, "<b>there", size=GIB)
    html = run_page.render(run_dir, base=base)
    assert "in f_<b>" not in html
    assert "in f_<b>there (m.py:3)" in unescape(html)


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        ({"has_events": False, "is_stack": False}, {"allocator events of rank 1": 2, "Python stacks": 0}),
        ({"is_stack": False}, {"allocator events of rank 1": 0, "Python stacks of rank 1": 1}),
    ],
)
def test_what_the_base_run_lacks_is_said_in_one_line(
    tmp_path: Path, other: dict[str, bool], lines: dict[str, int]
) -> None:
    run_dir, base = make(tmp_path, "here", size=GIB), make(tmp_path, "there", size=GIB, **other)
    html = run_page.render(run_dir, base=base)
    for what, times in lines.items():
        assert html.count(f"The base run has no {what}") == times, what
    assert "customdata" not in figures(html)["flames-1"]["data"][0]


def test_a_base_run_of_other_stages_has_no_second_cells(tmp_path: Path) -> None:
    run_dir = make(tmp_path, "here", size=GIB)
    spans = [span(1, "script", (0, 9), allocated=(0, 1, 1))]
    base = make_run(tmp_path / "there", {0: {"spans": spans}})
    make_ranks(base, {}, name="there", run_id="r1", source="cuda", status="ok")
    html = run_page.render(run_dir, base=base)
    assert "heats-0-change" not in figures(html)
    assert "The base run has no peaks of these stages and ranks (device used): this picture" in html
