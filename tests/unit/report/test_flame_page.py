"""flame.html and the report's flame graph: with and without stacks, many ranks, strange names, bounded size."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, event, make_ranks, make_run, span
from test_run_page import Outline, drawn, outline

from ray_memprof.errors import ConfigError
from ray_memprof.report import flame, flame_page, run_page
from ray_memprof.report.flame_page import write_flame_page

WITHOUT = "Python stacks were not recorded."


def rank_rows(*stacks: list[tuple[str, str, int]]) -> dict[str, list[Row]]:
    """A tensor of 5 bytes for each stack (the innermost frame first), and a last one of 3 bytes without a stack."""
    events = [
        event(number, "alloc", 5, "activation", address=number, span_id=1, stack_id=number)
        for number in range(len(stacks))
    ]
    events.append(event(len(stacks), "alloc", 3, "weight", address=len(stacks), span_id=1))
    rows = [
        {"stack_id": number, "frame": index, "function": function, "file": file, "line": line}
        for number, frames in enumerate(stacks)
        for index, (function, file, line) in enumerate(frames)
    ]
    return {"spans": [span(1, "denoise", (0, 9), component="dit")], "allocs": events, "stacks": rows}


TWO = rank_rows([("f", "a.py", 2), ("main", "run.py", 1)], [("g", "a.py", 7), ("main", "run.py", 1)])
NONE = rank_rows()


def labels(found: Outline, name: str = "flames-0") -> list[str]:
    (trace,) = drawn(found)[name]["data"]
    return list(trace["labels"])


def test_a_run_without_events_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {0: {"spans": [span(1, "denoise", (0, 9))]}})
    with pytest.raises(ConfigError, match="has no allocator events$") as caught:
        write_flame_page(tmp_path / "run", tmp_path / "flame.html")
    assert caught.value.hint == "logging.level event or stack records them"
    assert not (tmp_path / "flame.html").exists()


def test_a_rank_that_is_not_there_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, {0: TWO, 2: NONE})
    with pytest.raises(ConfigError, match="has no allocator events of rank 1$") as caught:
        flame_page.render(tmp_path, rank=1)
    assert (
        caught.value.hint == "logging.level event or stack records them; this run has them of ranks 0 and 2"
    )


def test_every_rank_has_a_graph_and_a_search(tmp_path: Path) -> None:
    make_ranks(make_run(tmp_path, {0: TWO, 1: NONE}), {}, {}, run_id="r1", name="base <b>")
    html = write_flame_page(tmp_path, tmp_path / "flame.html").read_text()
    found = outline(html)
    assert found.headings == ["base <b>"]
    assert sorted(found.scripts) == ["code", "data-flames-0", "data-flames-1", "plotly", "sql"]
    assert labels(found) == ["rank 0, 13 B", "main", "f", "g", "no Python stack", "denoise"]
    assert labels(found, "flames-1") == ["rank 1, 3 B", "denoise", "dit", "weight"]
    # Rank 1 says what is missing and how to get it, rank 0 does not.
    first, second = html.split('id="panel-flames-1"')
    assert WITHOUT not in first
    assert WITHOUT in second and "--set logging.level=stack" in second
    assert html.count('type="search"') == 2
    for text in ("too small to be drawn", "are left out", "ranks. Any other rank"):
        assert text not in html


def test_against_a_base_run_a_frame_says_how_much_it_has_grown(tmp_path: Path) -> None:
    now = {**TWO, "allocs": [{**one, "size_bytes": 4 * one["size_bytes"]} for one in TWO["allocs"]]}
    make_ranks(make_run(tmp_path / "now", {0: now, 1: NONE}), {}, {}, run_id="r2", name="now")
    make_ranks(make_run(tmp_path / "before", {0: TWO}), {}, run_id="r1", name="before & after")
    html = write_flame_page(tmp_path / "now", tmp_path / "flame.html", base=tmp_path / "before").read_text()
    (trace,) = drawn(outline(html))["flames-0"]["data"]
    main = trace["labels"].index("main")
    assert trace["customdata"][main] == [10, " (+30 B)"]
    assert "The base run is before &amp; after, r1." in html
    # A rank that the base run does not have says so.
    _, second = html.split('id="panel-flames-1"')
    assert "The base run has no allocator events of rank 1" in second
    assert "Against the base run: orange is more" in html
    assert "base run" not in flame_page.render(tmp_path / "now")


@pytest.mark.parametrize(
    ("rank", "message"), [(None, "has no allocator events$"), (0, "has no allocator events$")]
)
def test_a_base_run_without_events_is_refused(tmp_path: Path, rank: int | None, message: str) -> None:
    make_run(tmp_path / "now", {0: TWO})
    make_run(tmp_path / "before", {0: {"spans": [span(1, "denoise", (0, 9))]}})
    with pytest.raises(ConfigError, match=message) as caught:
        flame_page.render(tmp_path / "now", rank, tmp_path / "before")
    assert str(tmp_path / "before") in str(caught.value)


def test_frames_of_cpp_are_drawn_where_there_are_no_others(tmp_path: Path) -> None:
    mixed = [("malloc", "??", 0), ("f", "a.py", 2), ("_start", "??", 0), ("main", "run.py", 1)]
    make_run(tmp_path, {0: rank_rows(mixed, [("malloc", "??", 0), ("run", "thread.cpp", 4)])})
    found = outline(flame_page.render(tmp_path))
    assert labels(found) == ["rank 0, 13 B", "main", "run", "f", "malloc", "no Python stack", "denoise"]


def test_one_rank_can_be_shown_alone(tmp_path: Path) -> None:
    make_run(tmp_path, {0: TWO, 1: NONE})
    found = outline(flame_page.render(tmp_path, rank=1))
    assert sorted(found.scripts) == ["code", "data-flames-0", "plotly", "sql"]
    assert labels(found)[0] == "rank 1, 3 B"


def test_the_report_has_the_same_graphs_near_what_was_alive(tmp_path: Path) -> None:
    make_ranks(make_run(tmp_path, {0: TWO, 1: NONE}), {}, {})
    html = run_page.render(tmp_path)
    found = outline(html)
    at = found.headings.index("Flame graph")
    assert found.headings[at - 1 : at + 2] == ["Alive at the peak", "Flame graph", "Peak by stage and rank"]
    assert {"flames-0", "flames-1"} <= drawn(found).keys()
    alone = outline(flame_page.render(tmp_path))
    assert found.scripts["data-flames-0"] == alone.scripts["data-flames-0"]
    assert '<td class="text">f</td><td class="text">a.py</td><td>2</td>' in html


def test_a_report_without_events_has_no_flame_graph_and_no_search(tmp_path: Path) -> None:
    make_ranks(make_run(tmp_path, {0: {"spans": [span(1, "denoise", (0, 9))]}}), {})
    html = run_page.render(tmp_path)
    assert "Flame graph" not in html
    assert "data-search]" not in html


@pytest.mark.parametrize(
    "evil", ['<a href="javascript:alert(1)">x<b>', "</script><script>alert(1)</script>", "var:bad", "\x1b[2J"]
)
def test_texts_of_a_run_are_letters(tmp_path: Path, evil: str) -> None:
    rows = rank_rows([(evil, evil, 2), ("main", "run.py", 1)])
    make_ranks(make_run(tmp_path, {0: rows}), {})
    for html in (flame_page.render(tmp_path), run_page.render(tmp_path)):
        found = outline(html)
        assert evil not in found.scripts["data-flames-0"]
        assert "<" not in evil or evil not in html
        (trace,) = drawn(found)["flames-0"]["data"]
        texts = {one for one in trace["labels"] if not one.startswith("rank 0, ")}
        (label,) = texts - {"main", "no Python stack", "denoise"}
        assert not set("<>") & set(label + "".join(trace["text"]))
        assert not label.startswith("var:")


def test_of_many_ranks_some_are_drawn_and_any_other_can_be_asked_for(tmp_path: Path) -> None:
    made = {rank: {"allocs": [event(1, "alloc", 100 + rank, address=1)]} for rank in range(20)}
    failed: list[dict[str, Any]] = [{"status": "ok"}] * 20
    failed[5] = {"status": "oom"}
    make_ranks(make_run(tmp_path, made), *failed)
    html = flame_page.render(tmp_path)
    assert "Shown: 16 of 20 ranks." in html
    found = outline(html)
    shown = [labels(found, f"flames-{number}")[0].split(",")[0] for number in range(16)]
    assert shown == [f"rank {rank}" for rank in (0, 5, *range(6, 20))]
    assert labels(outline(flame_page.render(tmp_path, rank=3)))[0] == "rank 3, 103 B"


def test_a_deep_and_wide_run_makes_a_page_of_bounded_size(tmp_path: Path) -> None:
    """GIVEN a stack of 10,000 frames and 5,000 stacks of 20 frames each that share only the outermost."""
    long = "/a/very/long/path/" + "x" * 1000
    deep = [("walk", "tree.py", number) for number in range(10_000)]
    wide = [
        [(f"f{number}", f"{long}/{number}.py", level) for level in range(19)] + [("main", "run.py", 1)]
        for number in range(5_000)
    ]
    make_run(tmp_path, {0: rank_rows(deep, *wide)})
    html = flame_page.render(tmp_path)
    found = outline(html)
    assert len(found.scripts["data-flames-0"]) < 10**6
    (trace,) = drawn(found)["flames-0"]["data"]
    assert len(trace["ids"]) == flame.MOST_FRAMES
    total = 5 * 5_001 + 3
    assert trace["values"][0] == total
    # Each of the others is in a frame that is drawn: the bytes inside of a frame are at most its own.
    inside = [0] * len(trace["ids"])
    for parent, size in zip(trace["parents"], trace["values"], strict=True):
        if parent:
            inside[int(parent)] += size
    assert all(held <= size for held, size in zip(inside, trace["values"], strict=True))
    num_frames = 1 + flame.MOST_LEVELS + 1 + 19 * 5_000 + 2
    assert f"{num_frames - flame.MOST_FRAMES:,} frames are too small to be drawn." in html
    left_out = 10_000 - flame.OUTER_LEVELS - flame.INNER_LEVELS
    assert f"{left_out:,} frames in the middle of very deep stacks are left out." in html


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    make_run(tmp_path, {0: TWO})
    one, other = (flame_page.render(tmp_path) for _ in range(2))
    assert one == other
    assert json.loads(outline(one).scripts["data-flames-0"])["layout"]["uirevision"] == "zoom"
