"""Runs side by side: hand-made rows in, exact rows out; ranks and spans that only one has; failed runs; limits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from run_tables import answer, event, make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import (
    SQL_DIR,
    Comparison,
    Difference,
    Side,
    as_facts,
    compare,
)
from ray_memprof.analysis.comparison.limits import Check
from ray_memprof.analysis.comparison.text import comparison_text
from ray_memprof.errors import ConfigError

SECOND = 10**9
Ledger = dict[str, Any]


def steps(peak: int, seconds: float, *, retries: int = 0) -> list[dict[str, Any]]:
    """A stage `denoise` of two steps, each with a block; the second step has the peak, a sixth of it outside."""
    made = []
    for step in (0, 1):
        times = int(step * seconds * SECOND), int((step + 1) * seconds * SECOND)
        most = peak if step else peak // 2
        measured = {
            "allocated": (0, 0, most),
            "reserved": (0, 0, 2 * most),
            "device_used": (0, 0, 3 * most),
        }
        made += [
            span(2 * step + 1, "denoise", times, step=step, num_allocs=10, num_retries=retries, **measured),
            span(2 * step + 2, "denoise/dit.block", times, step=step, allocated=(0, 0, most), num_allocs=4),
        ]
    return made


def run_of(folder: Path, *spans: list[dict[str, Any]], status: str = "ok", **run: Any) -> Path:
    """A run with these spans on its ranks."""
    tables = {rank: {"spans": rows} for rank, rows in enumerate(spans)}
    run = {"run_id": folder.name, "status": status, "source": "cpu", **run}
    return make_ranks(make_run(folder, tables), *({} for _ in spans), **run)


def pair(tmp_path: Path) -> list[Path]:
    """One rank against two, the first of which takes more; `save` is gone, `decode` is new."""
    save = span(9, "save", (4 * SECOND, 5 * SECOND), allocated=(0, 0, 6))
    decode = span(9, "decode", (6 * SECOND, 8 * SECOND), allocated=(0, 0, 10))
    before = run_of(tmp_path / "before" / "r1", [*steps(1200, 2.0), save])
    after = run_of(tmp_path / "after" / "r2", [*steps(1800, 3.0, retries=1), decode], steps(600, 2.5))
    return [before, after]


def moves(found: Comparison, *columns: str) -> list[tuple[Any, ...]]:
    """Rows as tuples of these columns, rows of measures that are 0 on both sides left out."""
    return [
        tuple(row[name] for name in columns)
        for row in found.moves.to_pylist()
        if row["base_value"] or row["value"]
    ]


def test_runs_without_rows_have_nothing_to_compare(tmp_path: Path) -> None:
    empty = [make_run(tmp_path / "n" / name, {0: {}}) for name in "ab"]
    found = compare(empty)
    assert (found.moves.num_rows, found.differences, found.checks, found.rank) == (0, (), (), None)
    assert [(side.label, side.status, side.num_ranks) for side in found.sides] == [
        ("a", "unknown", 0),
        ("b", "unknown", 0),
    ]


def test_the_whole_run_is_compared_over_the_worst_rank_and_the_mean(tmp_path: Path) -> None:
    found = compare(pair(tmp_path))
    rows = moves(
        found,
        "level",
        "measure",
        "unit",
        "base_value",
        "value",
        "change",
        "base_mean",
        "mean_value",
        "max_rank",
    )
    assert [row[1:] for row in rows if row[0] == "run"] == [
        ("peak_allocated", "bytes", 1200.0, 1800.0, 600.0, 1200.0, 1200.0, 0),
        ("peak_device_used", "bytes", 3600.0, 5400.0, 1800.0, 3600.0, 3600.0, 0),
        ("peak_reserved", "bytes", 2400.0, 3600.0, 1200.0, 2400.0, 2400.0, 0),
        ("duration", "s", 5.0, 8.0, 3.0, 5.0, 6.5, 0),
        ("imbalance", "", 1.0, 1.5, 0.5, None, None, None),
        ("num_allocs", "", 20.0, 20.0, 0.0, 20.0, 20.0, 0),
        ("num_retries", "", 0.0, 2.0, 2.0, 0.0, 1.0, 0),
    ]


def test_a_change_from_nothing_is_no_share_of_it(tmp_path: Path) -> None:
    """Runs, ranks and spans: retries where there were none; a peak that went down."""
    found = compare(pair(tmp_path)[::-1] + pair(tmp_path / "again")[:1])
    rows = moves(found, "level", "measure", "base_value", "value", "change_fraction")
    fractions = {(level, measure): (base, value, share) for level, measure, base, value, share in rows}
    assert fractions["run", "num_retries"] == (2.0, 0.0, -1.0)
    assert fractions["run", "peak_allocated"] == (1800.0, 1200.0, pytest.approx(-1 / 3))
    found = compare(pair(tmp_path / "other"))
    rows = moves(found, "level", "measure", "base_value", "value", "change_fraction")
    from_nothing = [row for row in rows if row[2] == 0]
    assert {row[0] for row in from_nothing} >= {"run", "span"}
    assert [row for row in from_nothing if row[4] is not None] == []


def test_ranks_come_with_the_largest_moves_first(tmp_path: Path) -> None:
    spans = [steps(1000, 1.0), steps(1000, 1.0), steps(1000, 1.0)]
    before = run_of(tmp_path / "a" / "r", *spans)
    after = run_of(tmp_path / "b" / "r", spans[0], steps(1500, 1.0), steps(900, 1.0), spans[0])
    found = compare([before, after])
    rows = moves(found, "level", "rank", "measure", "base_value", "value", "change", "only_in")
    ranked = [row[1:] for row in rows if row[0] == "rank" and row[2] in ("peak_allocated", "duration")]
    assert ranked == [
        # A rank that only one run has counts with its time.
        (3, "peak_allocated", None, 1000.0, None, "other"),
        (3, "duration", None, 2.0, None, "other"),
        (1, "peak_allocated", 1000.0, 1500.0, 500.0, None),
        (1, "duration", 2.0, 2.0, 0.0, None),
        (2, "peak_allocated", 1000.0, 900.0, -100.0, None),
        (2, "duration", 2.0, 2.0, 0.0, None),
        (0, "peak_allocated", 1000.0, 1000.0, 0.0, None),
        (0, "duration", 2.0, 2.0, 0.0, None),
    ]


def test_of_ranks_that_moved_as_much_the_lowest_comes_first_and_each_has_its_own_gaps(tmp_path: Path) -> None:
    def run(folder: Path, *gaps: int) -> Path:
        tables = {}
        for rank, gap in enumerate(gaps):
            whole = span(1, "denoise", (0, SECOND), allocated=(0, 0, 50), reserved=(0, 50 + gap, 50 + gap))
            taken = [event(1, "segment_alloc", 50 + gap, span_id=1), event(2, "alloc", 50, span_id=1)]
            tables[rank] = {"spans": [whole], "allocs": taken}
        return make_ranks(make_run(folder, tables), *({} for _ in gaps), run_id="r", status="ok")

    found = compare([run(tmp_path / "a" / "r", 3, 4, 5), run(tmp_path / "b" / "r", 8, 9, 10)])
    rows = moves(found, "level", "rank", "measure", "base_value", "value")
    assert [row for row in rows if row[0] == "rank" and row[2] == "fragmentation"] == [
        ("rank", rank, "fragmentation", 3.0 + rank, 8.0 + rank) for rank in range(3)
    ]


def test_spans_are_compared_over_their_visits_with_the_largest_moves_first(tmp_path: Path) -> None:
    found = compare(pair(tmp_path))
    columns = (
        "path",
        "measure",
        "base_value",
        "value",
        "change",
        "change_fraction",
        "base_mean",
        "mean_value",
    )
    rows = moves(found, "level", *columns, "only_in", "share_fraction")
    assert [row[1:] for row in rows if row[0] == "span" and row[1].startswith("denoise/")] == [
        ("denoise/dit.block", "peak_allocated", 1200.0, 1800.0, 600.0, 0.5, 1200.0, 1200.0, None, 0.5),
        ("denoise/dit.block", "duration", 4.0, 6.0, 2.0, 0.5, 4.0, 5.5, None, 0.4),
        ("denoise/dit.block", "num_allocs", 8.0, 8.0, 0.0, 0.0, 8.0, 8.0, None, None),
        ("denoise/dit.block", "num_spans", 2.0, 2.0, 0.0, 0.0, 2.0, 2.0, None, None),
    ]
    order = dict.fromkeys(row[1] for row in rows if row[0] == "span")
    assert list(order) == ["denoise", "denoise/dit.block", "decode", "save"]
    alone = [row[1:5] + row[9:] for row in rows if row[1] in ("decode", "save") and row[2] == "duration"]
    assert alone == [
        ("decode", "duration", None, 2.0, "other", 0.4),
        ("save", "duration", 1.0, None, "base", 0.2),
    ]


def test_a_step_has_its_median_duration(tmp_path: Path) -> None:
    found = compare(pair(tmp_path))
    rows = moves(found, "path", "measure", "base_value", "value", "base_mean", "mean_value")
    assert [row for row in rows if row[1] == "step_duration"] == [
        ("denoise", "step_duration", 2.0, 2.75, 2.0, 2.75)
    ]


def test_what_is_compared_is_what_measures_says(tmp_path: Path) -> None:
    runs = pair(tmp_path)
    rows = compare(runs).moves.to_pylist()
    for column, run in (("base_value", runs[0]), ("value", runs[1])):
        compared = {
            (row["measure"], row["path"], row["unit"]): row[column]
            for row in rows
            if row["level"] != "rank" and row[column] is not None
        }
        told = {(measure, stage, unit): value for measure, stage, unit, value, _ in answer(run, "measures")}
        assert told and told.items() <= compared.items()


def test_a_value_of_no_single_rank_is_of_none(tmp_path: Path) -> None:
    late = [span(1, "denoise", (SECOND, 3 * SECOND), allocated=(0, 0, 7))]
    runs = [run_of(tmp_path / name / "r", steps(5, 1.0), late) for name in "ab"]
    rows = moves(compare(runs), "level", "measure", "value", "mean_value", "max_rank")
    whole = {row[1]: row[2:] for row in rows if row[0] == "run"}
    # From the first start of a rank to the last end of another.
    assert (whole["duration"], whole["peak_allocated"]) == ((3.0, 2.0, None), (7.0, 6.0, 1))


def test_one_rank_alone(tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    found = compare([after, before], rank=0)
    rows = moves(found, "level", "rank", "measure", "base_value", "value")
    whole = [row for row in rows if row[0] != "span"]
    assert ("run", None, "peak_allocated", 1800.0, 1200.0) in whole
    assert ("run", None, "duration", 8.0, 5.0) in whole
    assert {row[1] for row in whole} == {None, 0} and found.rank == 0
    # It is of all ranks together.
    assert "imbalance" not in {row[2] for row in rows}
    with pytest.raises(ConfigError) as caught:
        compare([after, before], rank=1)
    assert (str(caught.value), caught.value.hint) == ("before has no rank 1", "it has rank 0")


def test_several_runs_are_each_compared_with_the_first(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "n" / f"r{number}", steps(peak, 1.0)) for number, peak in enumerate((100, 200, 50))
    ]
    found = compare(runs, ["peak_allocated > +10%"])
    rows = moves(found, "run", "name", "run_id", "level", "measure", "base_value", "value")
    assert [row for row in rows if row[3:5] == ("run", "peak_allocated")] == [
        (1, "n", "r1", "run", "peak_allocated", 100.0, 200.0),
        (2, "n", "r2", "run", "peak_allocated", 100.0, 50.0),
    ]
    assert [(one.run, one.is_exceeded) for one in found.checks] == [(1, True), (2, False)]


def test_modules_of_a_script_are_compared_by_their_paths(tmp_path: Path) -> None:
    def script(peak: int) -> list[dict[str, Any]]:
        outer = span(1, "script", (0, SECOND), num_allocs=10)
        inner = span(2, "script/unet", (0, SECOND), allocated=(0, 0, peak), num_allocs=9, depth=1)
        return [outer, {**inner, "stage": "unet"}]

    found = compare([run_of(tmp_path / name / "r", script(peak)) for name, peak in (("a", 5), ("b", 7))])
    rows = moves(found, "path", "measure", "base_value", "value")
    assert [row for row in rows if row[1] == "peak_allocated" and row[0]] == [
        ("script/unet", "peak_allocated", 5.0, 7.0)
    ]
    # A span counts what is inside it: a module's allocations are its script's, and counted once.
    assert [row for row in rows if row[1] == "num_allocs"] == [
        (None, "num_allocs", 10.0, 10.0),
        (None, "num_allocs", 10.0, 10.0),
        ("script/unet", "num_allocs", 9.0, 9.0),
        ("script", "num_allocs", 10.0, 10.0),
    ]


def test_a_run_without_spans_beside_one_with_them(tmp_path: Path) -> None:
    whole, empty = run_of(tmp_path / "a" / "r", steps(1, 1.0)), run_of(tmp_path / "b" / "r", [])
    assert {row["only_in"] for row in compare([whole, empty]).moves.to_pylist()} == {"base"}
    assert {row["only_in"] for row in compare([empty, whole]).moves.to_pylist()} == {"other"}


def test_sides_have_the_shortest_label_that_tells_them_apart(tmp_path: Path) -> None:
    def labels(*folders: str) -> list[str]:
        runs = [run_of(tmp_path / folder, steps(1, 1.0)) for folder in folders]
        return [side.label for side in compare(runs).sides]

    assert labels("a/r", "b/r") == ["a", "b"]
    assert labels("c/r1", "c/r2") == ["r1", "r2"]
    assert labels("d/e/r", "f/e/r") == [str(tmp_path / "d/e/r"), str(tmp_path / "f/e/r")]


def test_a_side_says_how_its_run_ended_and_on_what(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "r1"
    make_run(folder, {0: {"spans": steps(1, 1.0)}})
    make_ranks(folder, {"gpu_name": "H200"}, run_id="r1", status="oom", reason="rank 0: full", source="cuda")
    other = run_of(tmp_path / "other" / "r2", steps(1, 1.0))
    assert compare([folder, other]).sides[0] == Side(
        label="base", name="base", run_id="r1", folder=str(folder), status="oom", reason="rank 0: full",
        source="cuda", num_ranks=1, gpu_name="H200",
    )  # fmt: skip


@pytest.mark.parametrize(("source", "listed"), [("cuda", 1), ("predicted", 0)])
def test_a_seed_that_was_drawn_is_no_change_of_a_prediction(tmp_path: Path, source: str, listed: int) -> None:
    paths = []
    for name, seed in (("before", 7), ("after", 8)):
        paths.append(tmp_path / name / "r1")
        make_run(paths[-1], {0: {"spans": steps(1, 1.0)}})
        config = json.dumps({"name": name, "generation": {"base_seed": seed}})
        make_ranks(paths[-1], {}, run_id="r1", status="ok", source=source, config=config)
    assert [one.key for one in compare(paths).differences] == ["generation.base_seed"][:listed]


def test_what_was_set_differently_is_listed(tmp_path: Path) -> None:
    def run(name: str, level: str, slabs: int | None, **environment: str) -> Path:
        config: dict[str, Any] = {
            "name": name,
            "description": f"about {name}",
            "logging": {"level": level, "output_dir": name},
            "optimization": {"ffn_chunks": 1} if slabs is None else {"vae_slabs": slabs, "ffn_chunks": 1},
        }
        return run_of(
            tmp_path / name / f"run-{name}",
            steps(1, 1.0),
            config=json.dumps(config),
            environment=json.dumps(environment),
            versions=json.dumps({"torch": f"2.{len(name)}", "cuda": "13"}),
            git_commit=name,
        )

    first = run("a", "event", 4, RANK="0", MASTER_PORT="1", NCCL_BUFFSIZE="1048576", DUMP="/logs/run-a/x")
    second = run("bb", "event", None, RANK="0", MASTER_PORT="2", DUMP="/logs/run-bb/x", WORLD_SIZE="2")
    assert compare([first, second]).differences == (
        Difference("optimization.vae_slabs", ("4", None)),
        Difference("environment.NCCL_BUFFSIZE", ("1048576", None)),
        Difference("versions.torch", ("2.1", "2.2")),
        Difference("git_commit", ("a", "bb")),
    )


def test_a_comparison_needs_two_runs(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a" / "r", steps(1, 1.0))
    for folders in ([], [run]):
        with pytest.raises(ConfigError, match="^a comparison needs two runs$") as caught:
            compare(folders)
        assert caught.value.hint == "ray-memprof compare BASE OTHER [OTHER ...]"


def test_a_run_compared_with_itself_moves_nowhere(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a" / "r", steps(1, 1.0))
    (tmp_path / "a" / "latest").symlink_to("r")
    compared = compare([run, tmp_path / "a" / "latest", run], ["peak_allocated > +0%"])
    assert [side.label for side in compared.sides] == ["a (1)", "a (2)", "a (3)"]
    assert compared.differences == ()
    rows = compared.moves.to_pylist()
    assert {(row["change"], row["only_in"]) for row in rows if row["base_value"] is not None} == {(0.0, None)}
    assert [(one.run, one.is_exceeded) for one in compared.checks] == [(1, False), (2, False)]


def test_a_failed_run_is_compared_but_no_limit_is_held_against_it(tmp_path: Path) -> None:
    good = run_of(tmp_path / "good" / "r", steps(100, 1.0))
    bad = run_of(tmp_path / "bad" / "r", steps(50, 1.0), status="oom")
    assert moves(compare([good, bad]), "change")[0] == (-50.0,)
    for runs in ([good, bad], [bad, good]):
        with pytest.raises(ConfigError) as caught:
            compare(runs, ["peak_allocated > +2%"])
        assert (
            str(caught.value) == "bad did not end well (oom): its figures cannot be checked against a limit"
        )
        assert caught.value.hint == "--allow-failed checks them anyway"
    (check,) = compare([good, bad], ["peak_allocated > +2%"], allow_failed=True).checks
    assert not check.is_exceeded


def test_a_limit_is_refused_before_any_run_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'peak' is no limit"):
        compare([tmp_path / "a", tmp_path / "b"], ["peak"])


def test_limits_by_rank_and_place(tmp_path: Path) -> None:
    runs = pair(tmp_path)
    limits = (
        "rank0.peak_allocated > +49%",
        "denoise/dit.block.peak_allocated > +50%",
        "mean.peak_reserved > +0%",
        "rank0.denoise.duration > 5 s",
        "rank1.peak_allocated > 700 B",
    )
    checks = compare(runs, limits).checks
    assert [(one.base_value, one.value, one.is_exceeded, one.rank) for one in checks] == [
        (1200.0, 1800.0, True, 0),
        (1200.0, 1800.0, False, 0),
        (2400.0, 2400.0, False, None),
        (4.0, 6.0, True, 0),
        # Not a change: the base needs no rank 1.
        (None, 600.0, False, 1),
    ]


def test_a_limit_within_the_error_of_a_replay_is_not_known(tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    make_ranks(after, {}, {"inexact_bytes": 200, "num_checks": 1}, run_id="r2", status="ok", source="cpu")
    limits = ("peak_allocated > 1700 B", "rank0.peak_allocated > 1900 B", "rank1.peak_allocated > 700 B")
    checks = compare([before, after], limits).checks
    assert [(one.is_exceeded, one.is_unknown) for one in checks] == [
        (True, True),
        (False, False),
        (True, True),
    ]
    assert checks[2].why_unknown == "it may be off by 200 bytes: the replay is right only within them"
    # Of rank 0 alone everything is known.
    (alone,) = compare([before, after], limits[:1], rank=0).checks
    assert (alone.is_exceeded, alone.is_unknown) == (True, False)


def test_peaks_that_may_have_been_more_say_so(tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    make_ranks(after, {}, {"peak_at_least": True}, run_id="r2", status="ok", source="cpu")
    found = compare([before, after])
    rows = [row for row in found.moves.to_pylist() if row["measure"] == "peak_reserved"]
    flags = {(row["level"], row["path"], row["rank"]): row["is_at_least"] for row in rows}
    assert flags[("run", None, None)] and flags[("rank", None, 1)] and not flags[("rank", None, 0)]
    assert flags[("span", "denoise", None)] and not flags[("span", "decode", None)]
    assert not any(row["base_is_at_least"] for row in rows)
    text = comparison_text(found, most=20)
    assert "at least 3.52 KiB" in text


def test_all_of_it_as_json(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(as_facts(compare(pair(tmp_path), ["peak_allocated > 1 KiB"]))))
    assert list(facts) == ["runs", "differences", "moves", "limits"]
    assert [run["label"] for run in facts["runs"]] == ["before", "after"]
    assert facts["limits"] == [
        {
            "limit": "peak_allocated > 1 KiB", "run": 1, "is_exceeded": True, "unit": "bytes",
            "base_value": 1200, "value": 1800, "bound": 1024, "rank": 0, "is_unknown": False,
            "why_unknown": "",
        }
    ]  # fmt: skip
    (row,) = [row for row in facts["moves"] if row["measure"] == "peak_allocated" and row["level"] == "run"]
    assert row == {
        "run": 1, "name": "after", "run_id": "r2", "level": "run", "path": None, "rank": None,
        "measure": "peak_allocated", "unit": "bytes", "base_value": 1200, "value": 1800,
        "base_is_at_least": False, "is_at_least": False, "change": 600,
        "change_fraction": 0.5, "base_mean": 1200, "mean_value": 1200, "mean_change": 0, "max_rank": 0,
        "only_in": None, "share_fraction": 0.5,
    }  # fmt: skip
    assert isinstance(row["value"], int)
    assert Check(**facts["limits"][0]).run == 1


def test_the_questions_of_compare_have_headers(tmp_path: Path) -> None:
    paths = sorted(SQL_DIR.glob("*.sql"))
    assert [path.stem for path in paths] == [
        "against_base",
        "compared",
        "moves",
        "run_values",
        "stage_peaks",
        "value",
    ]
    for path in paths:
        text = path.read_text()
        assert re.match(r"-- [A-Z][^\n]*\n(-- [^\n]*\n)*-- One row = [a-z]", text), path
        assert not re.search(r"SELECT\s+\*", text), path
        assert [line for line in text.splitlines() if len(line) > 80] == [], path
    header = (SQL_DIR / "moves.sql").read_text()
    missing = [
        name
        for name in compare(pair(tmp_path)).moves.column_names
        if not re.search(rf"^--.*\b{name}\b", header, re.MULTILINE)
    ]
    assert missing == []
