"""A comparison for a pull request: what a comment says in Markdown, and what a list of tests says in JUnit's XML."""

import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest
from run_tables import make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import Comparison, Difference, compare
from ray_memprof.analysis.comparison.pull_request import comparison_junit, comparison_markdown
from ray_memprof.errors import ConfigError

MIB, SECOND = 2**20, 10**9
LIMITS = ("peak_allocated > +50%", "peak_allocated > +2%")


def run_of(folder: Path, peak: int) -> Path:
    spans = [
        span(1, "denoise", (0, SECOND), allocated=(0, 0, peak * MIB)),
        span(2, "decode", (SECOND, 2 * SECOND), allocated=(0, 0, 50 * MIB)),
    ]
    return make_ranks(
        make_run(folder, {0: {"spans": spans}}), {}, run_id=folder.name, status="ok", source="cpu"
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("runs")
    return compare([run_of(folder / "ba_se" / "r1", 100), run_of(folder / "wide" / "r2", 120)], LIMITS)


def test_a_run_against_itself_has_nothing_to_fold_out(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a" / "r1", 100)
    lines = comparison_markdown(compare([run, run]), most=20).splitlines()
    assert lines[0] == "### Memory: a (2) against a (1)"
    assert lines[-1] == "Spans of a (2) that moved: 0."
    assert "| peak\\_allocated | 100 MiB | 100 MiB | = |" in lines
    with pytest.raises(ConfigError, match="--format junit says which limits hold, and there is none"):
        comparison_junit(compare([run, run]))


def test_the_verdict_comes_first_and_what_moved_is_folded(compared: Comparison) -> None:
    text = comparison_markdown(compared, most=20)
    lines = text.splitlines()
    assert lines[:5] == [
        r"### Memory: wide against ba\_se", "", "**1 of 2 limits exceeded**", "",
        r"- limit holds: peak\_allocated \> +50%: 100 MiB -\> 120 MiB (+20.0 MiB, +20.0%) on rank 0 in wide, "
        "bound 150 MiB",
    ]  # fmt: skip
    assert "The whole run, of the worst rank:" in lines
    assert r"| measure | ba\_se | wide | change |" in lines
    assert "| --- | --: | --: | --: |" in lines
    assert "<details><summary>Spans of wide that moved: 1</summary>" in lines
    (moved,) = [line for line in lines if line.startswith("| denoise |")]
    assert moved.split(" | ")[1:3] == ["120 MiB", "+20.0 MiB, +20.0%"]
    assert text.count("<details>") == text.count("</details>") == 1


def test_settings_and_warnings_are_told_and_long_lists_are_cut(compared: Comparison) -> None:
    failed = replace(compared.sides[1], status="oom", reason="rank 0: full")
    keys = tuple(Difference(f"key{number}", ("a|b", None)) for number in range(3))
    odd = replace(compared, sides=(compared.sides[0], failed), differences=keys, checks=())
    text = comparison_markdown(odd, most=2)
    assert "- warning: wide did not end well (oom: rank 0: full): its figures end there" in text
    assert "limit" not in text
    assert r"| key1 | a\|b | - |" in text and "key2" not in text and "1 more keys" in text


def test_all_limits_hold(compared: Comparison) -> None:
    text = comparison_markdown(replace(compared, checks=compared.checks[:1]), most=20)
    assert text.splitlines()[2] == "All limits hold."


def test_each_limit_is_a_test(compared: Comparison) -> None:
    suite = xml.fromstring(comparison_junit(compared))
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    held, exceeded = suite.findall("testcase")
    assert (held.get("name"), exceeded.get("name")) == LIMITS
    assert held.get("classname") == "ray-memprof compare: wide against ba_se"
    assert held.find("failure") is None
    failure = exceeded.find("failure")
    assert failure is not None
    assert str(failure.get("message")).startswith("limit exceeded: peak_allocated > +2%: 100 MiB -> 120 MiB")
    assert "the whole run" in str(suite.findtext("system-out"))


def test_a_name_with_letters_that_xml_cannot_hold_is_written_out(compared: Comparison) -> None:
    hostile = replace(compared.sides[1], label="a\x00<b>\x1b\udc80\uffff&")
    text = comparison_junit(replace(compared, sides=(compared.sides[0], hostile)))
    case = xml.fromstring(text).find("testcase")
    assert case is not None
    assert r"a\x00<b>\x1b\udc80\uffff& against" in str(case.get("classname"))
