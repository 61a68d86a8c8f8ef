"""What diagnosis finds, as sentences and as rows; what is said when it finds nothing."""

from dataclasses import replace
from pathlib import Path

from run_tables import blank, make_ranks, make_run, span

from ray_memprof.analysis.diagnosis.diagnose import RULES, Finding
from ray_memprof.analysis.diagnosis.findings import (
    Diagnosed,
    diagnosed,
    found_markdown,
    found_rows,
    found_text,
)

FINDING = Finding(
    rule="decodes_alone",
    severity="severe",
    is_peak=True,
    ranks=(0,),
    stage="decode",
    component=None,
    bytes=1024,
    sentence="Rank 0 decodes alone.",
    knob="parallel.vae: split",
)


def found(folder: Path, *findings: Finding, ending: str = "", has_events: bool = True) -> Diagnosed:
    return Diagnosed(folder, ending, has_spans=True, has_events=has_events, findings=findings)


def test_a_run_without_a_span_has_nothing_to_say(tmp_path: Path) -> None:
    one = diagnosed(make_ranks(make_run(tmp_path, {0: {}}), status="ok"))
    assert one == Diagnosed(tmp_path, "", has_spans=False, has_events=False, findings=())
    assert found_text([one]) == "nothing to say: no span was recorded\n"
    rows = found_rows([one])
    assert rows.num_rows == 0
    assert rows.column_names == [
        *(
            "run_id",
            "name",
            "rule",
            "severity",
            "is_peak",
            "ranks",
            "stage",
            "component",
            "bytes",
            "peak_at_least",
            "sentence",
        ),
        "knob",
    ]


def test_silence_is_said_in_words(tmp_path: Path) -> None:
    event = blank("allocs", action="alloc", size_bytes=512, span_id=1)
    tables = {"spans": [span(1, "denoise", (0, 5), allocated=(0, 0, 512))], "allocs": [event]}
    one = diagnosed(make_ranks(make_run(tmp_path, {0: tables}), {}, status="ok"))
    assert found_text([one]) == (
        f"nothing to say: none of the {len(RULES)} rules finds anything that makes the peak high\n"
    )


def test_sizes_that_may_be_off_are_told_with_their_bound(tmp_path: Path) -> None:
    spans = {"spans": [span(1, "denoise", (0, 5), allocated=(0, 0, 512))]}
    exact = {"status": "ok", "num_checks": 1}
    # Of a replay that is off by more, or lost events, no bound is known.
    wrong = {**exact, "inexact_bytes": 512, "max_error_bytes": 513}
    lost = {**exact, "inexact_bytes": 512, "num_lost_events": 1}
    make_run(tmp_path, dict.fromkeys(range(4), spans))
    one = diagnosed(make_ranks(tmp_path, exact, {**exact, "inexact_bytes": 1_536}, wrong, lost, status="ok"))
    assert one.bounds == ("rank 1 is right within 1,536 bytes: a rule of the allocator is not known there",)
    assert found_text([one]).startswith(one.bounds[0] + "\n")


def test_what_could_not_be_known_is_said_too(tmp_path: Path) -> None:
    tables = {"spans": [span(1, "denoise", (0, 5), allocated=(0, 0, 512))]}
    one = diagnosed(make_run(tmp_path, {0: tables}))
    assert found_text([one]).splitlines() == [
        "the run did not end well (unknown: its driver ended before the run did); what follows is of the time before",
        f"nothing to say: none of the {len(RULES)} rules finds anything that makes the peak high",
        "no allocator events were recorded: what was alive at the peaks is not known (logging.level: event)",
    ]


def test_a_run_that_has_a_finding_says_it(tmp_path: Path) -> None:
    # GIVEN two ranks of which one decodes
    both = [span(1, "denoise", (0, 5), allocated=(0, 0, 2**20))]
    alone = span(2, "decode", (5, 9), allocated=(0, 0, 2**30))
    inside = span(3, "decode/vae.chunk", (5, 9), allocated=(0, 0, 2**30), component="vae")
    idle = span(2, "decode", (5, 9))
    run = make_run(tmp_path, {0: {"spans": [*both, alone, inside]}, 1: {"spans": [*both, idle]}})
    make_ranks(run, {}, {}, workload="wan", num_ranks=2, config='{"parallel": {"vae": "rank0"}}', status="ok")
    # WHEN it is diagnosed THEN the text and the rows say so
    one = diagnosed(run)
    assert any("decodes alone" in finding.sentence for finding in one.findings)
    assert [row["rule"] for row in found_rows([one]).to_pylist()] == [each.rule for each in one.findings]
    assert "decodes alone" in found_text([one])


def test_several_runs_have_their_names_above_them(tmp_path: Path) -> None:
    runs = [
        found(tmp_path / "base" / "r1", FINDING, FINDING),
        found(tmp_path / "wide" / "r2", FINDING, ending="oom: full", has_events=False),
    ]
    first, second = found_text(runs, is_named=True).split("\n\n")
    assert first.splitlines()[0] == "base/r1" and first.count("Rank 0 decodes alone.") == 2
    assert second.splitlines()[:2] == [
        "wide/r2",
        "  the run did not end well (oom: full); what follows is of the time before",
    ]
    assert second.endswith("  no allocator events were recorded: what was alive at the peaks is not known "
                           "(logging.level: event)\n")  # fmt: skip


def test_findings_as_rows(tmp_path: Path) -> None:
    assert found_rows([found(tmp_path / "base" / "r1", FINDING)]).to_pylist() == [
        {
            "run_id": "r1", "name": "base", "rule": "decodes_alone", "severity": "severe", "is_peak": True,
            "ranks": [0], "stage": "decode", "component": None, "bytes": 1024,
            "peak_at_least": False,
            "sentence": "Rank 0 decodes alone.", "knob": "parallel.vae: split",
        }
    ]  # fmt: skip


def test_findings_are_written_in_markdown(tmp_path: Path) -> None:
    below = replace(FINDING, is_peak=False, severity="minor", sentence="A <b> of a_b.", knob="`x`")
    runs = [found(tmp_path / "a_b" / "r1", FINDING, below), found(tmp_path / "c" / "r2", ending="oom: full")]
    assert found_markdown(runs) == (
        r"""### a\_b/r1

- **severe**: Rank 0 decodes alone.
  Knob: parallel.vae: split
- **minor, below the peak**: A \<b\> of a\_b.
  Knob: \`x\`

### c/r2

the run did not end well (oom: full); what follows is of the time before

"""
        f"nothing to say: none of the {len(RULES)} rules finds anything that makes the peak high\n"
    )
    assert found_markdown([]) == "\n"
