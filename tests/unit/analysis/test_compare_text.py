"""A comparison as people read it: hand-made runs in, whole text out."""

from pathlib import Path
from typing import Any

from run_tables import make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.analysis.comparison.text import check_lines, comparison_text, warnings

MIB, SECOND = 2**20, 10**9


def stage(name: str, peak: int, seconds: float) -> dict[str, Any]:
    held = (0, 0, peak * MIB)
    return span(1, name, (0, int(seconds * SECOND)), allocated=held, reserved=held, device_used=held)


def run_of(folder: Path, *spans: list[dict[str, Any]], status: str = "ok", **run: Any) -> Path:
    tables = {
        rank: {"spans": [{**row, "span_id": number} for number, row in enumerate(rows, 1)]}
        for rank, rows in enumerate(spans)
    }
    make_run(folder, tables)
    return make_ranks(folder, *({} for _ in spans), run_id="r", source="cpu", status=status, **run)


def sections(text: str) -> dict[str, list[list[str]]]:
    """Lines of each section as words, by the line above it; the runs themselves have none."""
    found = {}
    for part in ("runs\n" + text).split("\n\n"):
        title, *lines = part.splitlines()
        found[title] = [line.split() for line in lines if not line.strip().startswith(chr(0x2500))]
    return found


def test_runs_without_rows(tmp_path: Path) -> None:
    text = comparison_text(compare([make_run(tmp_path / name / "r", {0: {}}) for name in "ab"]), most=5)
    assert text.splitlines()[-3:] == [
        "configuration, environment and versions are the same",
        "",
        "no run has a figure to compare",
    ]


def test_two_runs_of_one_rank(tmp_path: Path) -> None:
    before = [stage("load.t5", 100, 1.0), stage("denoise", 400, 4.0), stage("save", 1, 0.25)]
    after = [stage("load.t5", 100, 1.0), stage("denoise", 300, 5.0), stage("decode", 200, 1.0)]
    runs = [
        run_of(tmp_path / "before" / "r", before, config='{"slabs": 1}'),
        run_of(tmp_path / "after" / "r", after, config='{"slabs": 8}'),
    ]
    assert sections(comparison_text(compare(runs), most=5)) == {
        "runs": [
            ["run", "status", "source", "ranks", "gpu", "folder"],
            ["base", "before", "ok", "cpu", "1", "-", str(runs[0])],
            ["other", "after", "ok", "cpu", "1", "-", str(runs[1])],
        ],
        "set differently, or of another version": [["key", "before", "after"], ["slabs", "1", "8"]],
        "the whole run, of the worst rank": [
            ["measure", "before", "after", "change"],
            ["peak_allocated", "400", "MiB", "300", "MiB", "-100", "MiB,", "-25.0%"],
            ["peak_device_used", "400", "MiB", "300", "MiB", "-100", "MiB,", "-25.0%"],
            ["peak_reserved", "400", "MiB", "300", "MiB", "-100", "MiB,", "-25.0%"],
            # Device memory that no span boundary saw.
            ["duration", "4.000", "s", "5.000", "s", "+1.000", "s,", "+25.0%"],
            ["imbalance", "1", "1", "="],
        ],
        "spans that moved, after against before": [
            ["path", *(word for name in ("peak_allocated", "peak_reserved", "peak_device_used", "duration")
                       for word in (name, "change"))],
            ["denoise", *3 * ["300", "MiB", "-100", "MiB,", "-25.0%"], "5.000", "s", "+1.000", "s,", "+25.0%"],
            ["moved", "by", "less", "than", "0.1%", "of", "the", "whole", "run:", "1"],
        ],
        "spans that only the base has, after against before": [
            ["path", "num_spans", "peak_allocated", "peak_reserved", "peak_device_used", "duration"],
            ["save", "1", *3 * ["1.00", "MiB"], "0.250", "s"],
        ],
        "spans that the base lacks, after against before": [
            ["path", "num_spans", "peak_allocated", "peak_reserved", "peak_device_used", "duration"],
            ["decode", "1", *3 * ["200", "MiB"], "1.000", "s"],
        ],
    }  # fmt: skip


def test_ranks_have_means_and_a_table_of_their_own(tmp_path: Path) -> None:
    before = run_of(tmp_path / "two" / "r", [stage("denoise", 100, 1.0)], [stage("denoise", 100, 1.0)])
    after = run_of(tmp_path / "four" / "r", *([stage("denoise", peak, 1.0)] for peak in (100, 100, 40, 40)))
    found = sections(comparison_text(compare([before, after]), most=5))
    whole = found["the whole run, of the worst rank"]
    assert whole[1:3] == [
        ["peak_allocated", "100", "MiB", "100", "MiB", "="],
        ["mean", "over", "ranks", "100", "MiB", "70.0", "MiB", "-30.0", "MiB,", "-30.0%"],
    ]
    ranks = found["ranks, four against two"]
    assert [line[0] for line in ranks] == ["rank", "0", "1", "the"]
    assert ranks[1] == ["0", *3 * ["100", "MiB", "="], "1.000", "s", "="]
    assert ranks[-1] == ["the", "base", "lacks", "ranks", "2", "and", "3"]
    assert "no span moved by 0.1% of the whole run, four against two" in found


def test_a_rank_alone_has_no_mean(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name / "r", [stage("denoise", 9, 1.0)], [stage("denoise", peak, 1.0)])
        for name, peak in (("a", 5), ("b", 7))
    ]
    found = sections(comparison_text(compare(runs, rank=1), most=5))
    assert found["the whole run, of rank 1"][1][:5] == ["peak_allocated", "5.00", "MiB", "7.00", "MiB"]
    assert not any("mean" in line for line in found["the whole run, of rank 1"])
    assert not any(title.startswith("ranks") for title in found)


def test_a_long_list_says_how_much_it_leaves_out(tmp_path: Path) -> None:
    def many(factor: int) -> list[dict[str, Any]]:
        return [stage(f"stage{number}", factor * number, 1.0) for number in range(1, 8)]

    def config(offset: int) -> str:
        keys = ", ".join(f'"key{number}": {number + offset}' for number in range(4))
        return f'{{{keys}, "long": "{"x" * 50}{offset}"}}'

    runs = [
        run_of(tmp_path / name / "r", *3 * [many(factor)], config=config(factor))
        for name, factor in (("a", 1), ("b", 2))
    ]
    found = sections(comparison_text(compare(runs), most=2))
    assert [line[0] for line in found["spans that moved, b against a"]] == [
        "path",
        "stage7",
        "stage6",
        "spans",
    ]
    notes = {title: " ".join(lines[-1]) for title, lines in found.items()}
    assert notes["spans that moved, b against a"] == "spans not listed: 5; --most 7, or another --format"
    assert notes["ranks, b against a"] == "ranks not listed: 1; --most 3, or another --format"
    settings = "set differently, or of another version"
    assert notes[settings] == "settings not listed: 3; --most 5, or another --format"
    assert sections(comparison_text(compare(runs), most=9))[settings][-1] == ["long", *2 * [37 * "x" + "..."]]


def test_more_than_two_runs_are_columns_of_one_table(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name / "r", [stage("denoise", peak, 1.0)])
        for name, peak in (("a", 100), ("b", 200), ("c", 50))
    ]
    found = sections(comparison_text(compare(runs), most=5))
    assert found["the whole run, of the worst rank"][:2] == [
        ["measure", "a", "b", "change", "c", "change"],
        ["peak_allocated", "100", "MiB", "200", "MiB", "+100", "MiB,", "+100.0%",
         "50.0", "MiB", "-50.0", "MiB,", "-50.0%"],
    ]  # fmt: skip
    assert {"spans that moved, b against a", "spans that moved, c against a"} <= found.keys()


def test_failed_runs_and_limits_are_told_in_lines(tmp_path: Path) -> None:
    good = run_of(tmp_path / "good" / "r", [stage("denoise", 100, 1.0)])
    bad = run_of(tmp_path / "bad" / "r", [stage("denoise", 90, 1.0)], status="oom", reason="rank 0: full")
    killed = make_run(tmp_path / "killed" / "r", {0: {"spans": [stage("denoise", 80, 1.0)]}})
    found = compare([good, bad, killed], ["peak_allocated > +2%"], allow_failed=True)
    assert list(warnings(found)) == [
        "warning: bad did not end well (oom: rank 0: full): its figures end there",
        "warning: killed did not end well (unknown: its driver ended before the run did): its figures end there",
    ]
    assert list(check_lines(found)) == [
        "limit holds: peak_allocated > +2%: 100 MiB -> 90.0 MiB (-10.0 MiB, -10.0%) on rank 0 in bad, "
        "bound 102 MiB",
        "limit holds: peak_allocated > +2%: 100 MiB -> 80.0 MiB (-20.0 MiB, -20.0%) on rank 0 in killed, "
        "bound 102 MiB",
    ]
