"""The weightiest findings at the end of the summary; test_run_page.py has its other lines."""

from pathlib import Path

import pytest
from run_tables import make_run, span, summary_lines

from ray_memprof.analysis.diagnosis import diagnose
from ray_memprof.analysis.diagnosis.diagnose import Finding


def findings(number: int) -> list[Finding]:
    return [
        Finding("rule", "minor", True, (0,), "decode", None, 9, f"Sentence {at}.", f"key{at}: true")
        for at in range(number)
    ]


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7])
def test_the_first_two_findings_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = make_run(tmp_path, {0: {"spans": [span(1, "denoise", (0, 5))]}})
    before = summary_lines(run)
    monkeypatch.setattr(diagnose, "findings", lambda connection: findings(number))
    told = summary_lines(run)
    more = [f"more findings: {number - 2}, see ray-memprof diagnose"] if number > 2 else []
    assert told == [*before, *diagnose.lines(findings(number)[:2]), *more]
    assert len(told) == len(before) + 2 * min(number, 2) + (number > 2)
