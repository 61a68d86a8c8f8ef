"""What the pictures of a report are drawn from, and the questions that only it asks."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_tables import answer, blank, make_ranks, make_run, span, summary_lines

from ray_memprof.report import comparison_plots, over_time, plots, run_page, step_plots
from ray_memprof.store.schema import TABLES

GIB = 2**30


# ---- figures ----


def moment(second: int, **held: int) -> dict[str, Any]:
    sizes = {f"{account}_bytes": held.get(account, 0) for account in plots.ACCOUNTS}
    return {"rank": 0, "t_ns": second * 10**9, **sizes}


def slices(*sizes: int | None) -> list[dict[str, Any]]:
    return [
        {"rank": 0, "start_ns": second * 10**9, "end_ns": (second + 1) * 10**9, "device_used_bytes": size}
        for second, size in enumerate(sizes)
    ]


def test_areas_stack_what_was_held_and_say_in_which_stage() -> None:
    bands = [{"stage": "denoise", "start_ns": 10**9, "end_ns": 2 * 10**9}]
    rows = [moment(0, context=5), moment(1, context=5, weight=7, cached=1)]
    frame = over_time.frame(slices(5, None, 13), [{"device_total_bytes": 100}])
    assert (frame.top_bytes, frame.length_s, frame.full_bytes) == (13, 3.0, None)
    figure = over_time.area(over_time.OfRank(rows, slices(5, None, 13), bands), frame)
    where, *layers, outline_ = figure["data"]
    assert (where["x"], where["text"]) == ([0.0, 1.0], ["before the first stage", "denoise"])
    assert [(layer["name"], layer["customdata"]) for layer in layers] == [
        ("weight", [0, 7]),
        ("cached", [0, 1]),
        ("context", [5, 5]),
    ]
    assert (outline_["x"], outline_["customdata"]) == ([0.0, 2.0], [5, 13])
    assert [note["name"] for note in figure["layout"]["annotations"]] == ["band 0.3333"]


def test_the_peak_is_marked_with_rank_size_and_time_and_what_was_alive() -> None:
    frame = over_time.frame(slices(5, 9, 13), [])
    peak = {"rank": 3, "t_ns": 2_500_000_000, "allocated_bytes": 12, "peak_at_least": True}
    kinds = [("dit", "weight", 9), (None, "workspace", 2), ("dit", None, 1)]
    alive = [{"component": of, "category": what, "bytes": size} for of, what, size in kinds]
    figure = over_time.area(over_time.OfRank([], slices(5, 9, 13), [], peak, alive), frame)
    marker = figure["data"][-1]
    assert (marker["x"], marker["customdata"], marker["mode"]) == ([2.5], [12], "markers")
    assert marker["text"] == ["\n9 B weight of dit\n2 B workspace\n1 B tensors, category not recorded of dit"]
    (note,) = figure["layout"]["annotations"]
    assert note["text"] == "peak of rank 3\nat least 12 B at 2.50 s"
    # Inwards and downwards: it lies in the right half, and is high.
    assert (note["x"], note["y"], note["xanchor"], note["ay"]) == (2.5, 12.0, "right", 40)


def test_a_base_run_is_a_line_that_begins_at_zero_too() -> None:
    late = [
        {**row, "start_ns": row["start_ns"] + 10**12, "end_ns": row["end_ns"] + 10**12}
        for row in slices(7, 20, 3, 1)
    ]
    frame = over_time.frame(slices(5, 9), [], late)
    assert (frame.first_ns, frame.length_s, frame.top_bytes) == (0, 4.0, 20)
    line = over_time.area(over_time.OfRank([], slices(5, 9), []), frame, base=late)["data"][-1]
    assert (line["name"], line["x"], line["customdata"]) == (
        "device used, base run", [0.0, 1.0, 2.0, 3.0], [7, 20, 3, 1]
    )  # fmt: skip


def activation_rows(*rows: tuple[str, int | None, int]) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": step, "activation_bytes": size} for stage, step, size in rows]


def test_activation_has_a_line_for_each_stage_and_a_level_for_those_outside_the_loop() -> None:
    rows = activation_rows(
        ("init", None, 1),
        ("encode", None, 500),
        ("denoise", 0, 4000),
        ("denoise", 1, 5000),
        ("encode", None, 700),
    )
    base = activation_rows(("denoise", 0, 6000), ("denoise", 1, 1), ("denoise", 2, 2))
    # What is less than a thousandth of the largest has no line.
    stages = step_plots.largest_stages(rows)
    assert stages == ["encode", "denoise"]
    figure = step_plots.activation(rows, stages, base)
    assert [(one["name"], one["x"], one["customdata"], one["line"]["dash"]) for one in figure["data"]] == [
        ("encode", [0, 2], [700, 700], "dot"),
        ("denoise", [0, 1], [4000, 5000], "solid"),
        ("denoise, base run", [0, 1, 2], [6000, 1, 2], "dash"),
    ]


def test_of_many_stages_the_largest_have_a_line_in_the_order_in_which_they_began() -> None:
    sizes = [5, 90, 30, 40, 50, 60, 70, 80, 20, 10]
    rows = activation_rows(*((f"s{number}", 0, size) for number, size in enumerate(sizes)))
    assert step_plots.largest_stages(rows) == [f"s{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8)]


def test_a_device_nearly_full_has_its_size_drawn() -> None:
    frame = over_time.frame(slices(8 * GIB), [{"device_total_bytes": 10 * GIB}])
    (line,) = over_time.ranks_over_time(slices(8 * GIB), [], [0], frame)["layout"]["shapes"]
    assert (line["y0"], line["y1"]) == (10.0, 10.0)


def test_what_was_alive_adds_up_at_every_level() -> None:
    def row(component: str | None, category: str, path: str | None, size: int) -> dict[str, Any]:
        return {"component": component, "category": category, "path": path, "bytes": size}

    rows = [
        row("dit", "weight", "load.dit", 6),
        row("dit", "activation", "a/b", 2),
        row(None, "weight", None, 1),
    ]
    (trace,) = plots.alive(plots.alive_nodes(rows))["data"]
    assert dict(zip(trace["ids"], trace["values"], strict=True)) == {
        "all": 9,
        "all|dit": 8,
        "all|dit|weight": 6,
        "all|dit|weight|load.dit": 6,
        "all|dit|activation": 2,
        "all|dit|activation|a/b": 2,
        "all|no component": 1,
        "all|no component|weight": 1,
        "all|no component|weight|no span": 1,
    }
    assert trace["labels"][5] == "b, 2 B"


def test_the_books_of_a_rank_are_one_bar_and_empty_accounts_take_no_place_in_the_legend() -> None:
    accounts = {"active": 12, "cached": 0, "context": 3, "unexplained": -1}
    rows = [{"rank": 0, "account": account, "bytes": size} for account, size in accounts.items()]
    bars = [(bar["name"], bar["customdata"], bar["y"]) for bar in plots.books(rows)["data"]]
    assert bars == [
        ("tensors", [12], ["rank 0"]),
        ("context", [3], ["rank 0"]),
        ("unexplained", [-1], ["rank 0"]),
    ]


def test_the_bar_of_a_base_run_is_under_that_of_the_same_rank() -> None:
    rows = [{"rank": rank, "account": "context", "bytes": 5 + rank} for rank in (0, 1)]
    base = [{"rank": rank, "account": "nccl", "bytes": 3} for rank in (0, 7)]
    figure = plots.books(rows, base=base)
    assert [(bar["name"], bar["y"], bar["customdata"]) for bar in figure["data"]] == [
        ("context", ["rank 0", "rank 1"], [5, 6]),
        ("NCCL", ["rank 0, base"], [3]),
    ]
    assert figure["layout"]["yaxis"]["categoryarray"] == ["rank 0", "rank 0, base", "rank 1"]


def test_a_stage_that_a_rank_did_not_run_is_a_gap_in_the_heat() -> None:
    rows = [{"rank": rank, "stage": "denoise", "allocated_peak_bytes": 5} for rank in (0, 1)]
    rows.append({"rank": 0, "stage": "decode", "allocated_peak_bytes": 9})
    (trace,) = plots.heat(rows, "allocated")["data"]
    assert (trace["y"], trace["customdata"]) == (["denoise", "decode"], [[5, 5], [9, None]])


def test_imbalance_has_the_least_the_mean_and_the_most_of_every_stage() -> None:
    rows = [
        {"stage": None, "min_bytes": 2 * GIB, "mean_bytes": 3 * GIB, "max_bytes": 5 * GIB},
        {"stage": "decode", "min_bytes": 0, "mean_bytes": GIB, "max_bytes": 4 * GIB},
    ]
    figure = plots.imbalance(rows)
    assert [(one["name"], one["customdata"], one["y"]) for one in figure["data"]] == [
        ("least", [2 * GIB, 0], ["whole run", "decode"]),
        ("mean of the ranks", [3 * GIB, GIB], ["whole run", "decode"]),
        ("most", [5 * GIB, 4 * GIB], ["whole run", "decode"]),
    ]
    assert [(one["x0"], one["x1"], one["y0"]) for one in figure["layout"]["shapes"]] == [
        (2.0, 5.0, "whole run"), (0.0, 4.0, "decode"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["ink", "paper", "line", *plots.ACCOUNTS, "active", "spread", "heat4", "rank7"]
)
def test_every_colour_is_set_for_light(name: str) -> None:
    css = (Path(run_page.__file__).parent / "templates" / "report.css").read_text()
    light = css.partition("@media")[0]
    assert re.search(rf"--{name}: #[0-9a-f]{{6}};", light)


# ---- questions that only the report asks ----


def event(seq: int, t_ns: int, action: str, size: int, category: str | None = None) -> dict[str, Any]:
    assert "seq" in TABLES["allocs"].schema.names
    return blank("allocs", seq=seq, t_ns=t_ns, action=action, size_bytes=size, category=category, address=seq)


def test_the_spread_takes_a_silent_rank_as_it_was_seen_last(tmp_path: Path) -> None:
    ranks = {
        0: {"spans": [span(1, "denoise", (0, 399), device_used=(5, 6, 6))]},
        1: {"spans": [span(1, "denoise", (0, 100), device_used=(1, 9, 9))]},
    }
    make_run(tmp_path, ranks)
    assert answer(tmp_path, "timeline_spread") == [
        (0, 0, 2, 1, 5, 0),
        (100, 100, 2, 5, 9, 1),
        (399, 399, 2, 6, 9, 1),
    ]


def test_steps_are_the_outermost_spans_with_a_step(tmp_path: Path) -> None:
    spans = [
        span(1, "encode", (0, 1)),
        span(2, "denoise", (1, 4), step=0, allocated=(0, 0, 5), reserved=(0, 0, 6), device_used=(0, 0, 7)),
        span(3, "denoise/dit", (2, 3), step=0, parent_id=2),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert answer(tmp_path, "steps") == [(0, "denoise", 0, 1, 3, None, 5, 6, False, 7, 1, 0)]


def test_each_module_of_a_script_has_a_line_of_its_own_over_its_calls() -> None:
    rows: list[dict[str, Any]] = [
        {"rank": 0, "stage": stage, "step": step, "allocated_peak_bytes": size, "duration_ns": 10**9}
        for stage, step, size in (("DiT", 0, 1), ("DiT", 1, 2), ("Decoder", 0, 3))
    ]
    script = [one for one in step_plots.steps(rows, [0])["data"] if "meta" in one]
    assert [(one["name"], one["x"], one["customdata"]) for one in script] == [
        ("rank 0, DiT", [0, 1], [1, 2]),
        ("rank 0, Decoder", [0], [3]),
    ]
    assert [one["name"] for one in step_plots.steps(rows[:2], [0])["data"]] == ["rank 0", "rank 0"]


def test_a_peak_outside_of_any_span_counts_and_has_no_place(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"spans": [span(1, "module", (0, 1), allocated=(0, 0, 5), reserved=(0, 0, 6))]}})
    make_ranks(tmp_path, {"allocated_peak_bytes": 50, "reserved_peak_bytes": 60})
    assert summary_lines(tmp_path)[0].endswith("device used 0 B, in no span")
    (row,) = answer(tmp_path, "peak_by_rank")
    assert row[1:3] == (50, 60)


def test_a_line_of_many_steps_keeps_its_peaks() -> None:
    rows = [
        {"rank": rank, "stage": "denoise", "step": step, "allocated_peak_bytes": 5, "duration_ns": 10**9}
        for rank in (0, 1)
        for step in range(10_000)
    ]
    rows[7_777] |= {"allocated_peak_bytes": 9}
    rows[7_778] |= {"duration_ns": 3 * 10**9}
    sizes, times, *_ = step_plots.steps(rows, [0, 1])["data"]
    assert len(sizes["x"]) == len(sizes["customdata"]) == len(times["x"]) == step_plots.MOST_POINTS
    assert dict(zip(sizes["x"], sizes["customdata"], strict=True))[7_777] == max(sizes["customdata"]) == 9
    assert dict(zip(times["x"], times["y"], strict=True))[7_778] == max(times["y"]) == 3.0
    assert sizes["x"] == sorted(sizes["x"])


def test_of_many_stages_the_longest_are_drawn_behind_an_area() -> None:
    bands = [
        {"stage": f"s{number}", "start_ns": 10 * number, "end_ns": 10 * number + 1} for number in range(3_000)
    ]
    bands[2_500] |= {"end_ns": 25_009}
    frame = over_time.frame(slices(5), [])
    layout = over_time.area(over_time.OfRank([], slices(5), bands), frame)["layout"]
    assert len(layout["shapes"]) == len(layout["annotations"]) == over_time.MOST_BANDS
    assert "s2500" in {note["text"] for note in layout["annotations"]}


def test_of_a_long_table_the_ends_and_the_largest_of_each_figure_are_listed() -> None:
    rows = [
        {"rank": rank, "step": step, "a_bytes": step % 7, "duration_ns": None}
        for rank in (0, 1)
        for step in range(50)
    ]
    rows[30] |= {"a_bytes": 99}
    rows[60] |= {"duration_ns": 5}
    assert run_page.telling(rows, 6)[0] == rows[0]
    picked = [rows.index(row) for row in run_page.telling(rows, 6)]
    assert picked == [0, 30, 49, 50, 60, 99]
    assert run_page.telling(rows, 1000) == rows


def test_figures_grow_with_what_they_list() -> None:
    names = ["a", "b", "c"]
    assert [comparison_plots.peaks_of_runs(names[:num], {})["height"] for num in (1, 3)] == [156, 248]
    assert [comparison_plots.stages_of_runs(names[:num], [], [])["height"] for num in (1, 3)] == [144, 212]
    books = [{"rank": rank, "account": "active", "bytes": 5} for rank in range(3)]
    assert [plots.books(books[:num])["height"] for num in (1, 3)] == [180, 240]
