"""A comparison for a pull request: Markdown for a comment, JUnit's XML for the list of tests.

    sys.stdout.write(comparison_markdown(compared, most=20))
    sys.stdout.write(comparison_junit(compared))        # a test for each limit and run

Takes what compare.py found. Writes no file.
"""

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as xml

from ray_memprof.analysis.comparison.compare import Comparison, moved_of
from ray_memprof.analysis.comparison.limits import check_line, verdict_text
from ray_memprof.analysis.comparison.text import (
    LEAST_FRACTION,
    check_lines,
    comparison_text,
    pivot_columns,
    warnings,
    whole_columns,
)
from ray_memprof.errors import ConfigError
from ray_memprof.query.answers import Shown
from ray_memprof.wording import escaped, visible

_SUITE = "ray-memprof compare"


def comparison_markdown(compared: Comparison, most: int) -> str:
    """The verdict on the limits first, then the whole run, then what moved, folded.

    Args:
        compared: what compare() found.
        most: list at most so many settings and spans.
    """
    rows = compared.moves.to_pylist()
    base, *others = (side.label for side in compared.sides)
    parts = [f"### Memory: {', '.join(map(escaped, others))} against {escaped(base)}"]
    if compared.checks:
        told = verdict_text(compared.checks)
        verdict = f"**{told}**" if told else "All limits hold."
        parts += [verdict, "\n".join(f"- {escaped(line)}" for line in check_lines(compared))]
    if noted := [f"- {escaped(line)}" for line in warnings(compared)]:
        parts.append("\n".join(noted))
    whose = "the worst rank" if compared.rank is None else f"rank {compared.rank}"
    parts += [f"The whole run, of {whose}:", _table(whole_columns(compared, rows))] if rows else []
    if compared.differences:
        parts.append(_folded("Set differently, or of another version", _settings(compared, most)))
    for number, side in enumerate(compared.sides[1:], 1):
        spans = moved_of([row for row in rows if row["run"] == number], "span")
        moved = [one for one in spans if one.only_in is None and one.share >= LEAST_FRACTION]
        title = f"Spans of {escaped(side.label)} that moved: {len(moved)}"
        more = f"\n\n{len(moved) - most} more spans" if len(moved) > most else ""
        parts.append(
            _folded(title, _table(pivot_columns("path", moved[:most])) + more) if moved else f"{title}."
        )
    return "\n\n".join(parts) + "\n"


def _settings(compared: Comparison, most: int) -> str:
    listed = compared.differences[:most]
    columns = [Shown("key", [one.key for one in listed], is_number=False)]
    for number, side in enumerate(compared.sides):
        columns.append(Shown(side.label, [one.values[number] or "-" for one in listed], is_number=False))
    more = len(compared.differences) - most
    return _table(columns) + (f"\n\n{more} more keys" if more > 0 else "")


def _table(columns: Sequence[Shown]) -> str:
    lines = [
        [escaped(column.name) for column in columns],
        ["--:" if one.is_number else "---" for one in columns],
    ]
    lines += [list(map(escaped, cells)) for cells in zip(*(column.cells for column in columns), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _folded(title: str, body: str) -> str:
    # Without the empty lines, Markdown inside of HTML is not read as such.
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def comparison_junit(compared: Comparison) -> str:
    """A test for each limit and each run that it is held against; one that is exceeded has failed.

    Raises:
        ConfigError: there is no limit.
    """
    if not compared.checks:
        raise ConfigError(
            "--format junit says which limits hold, and there is none",
            hint="--fail-if 'peak_device_used > +2%'",
        )
    failed = sum(one.is_exceeded for one in compared.checks)
    suite = xml.Element(
        "testsuite",
        name=_SUITE,
        tests=str(len(compared.checks)),
        failures=str(failed),
        errors="0",
        skipped="0",
    )
    for one in compared.checks:
        label = compared.sides[one.run].label
        against = f"{label} against {compared.sides[0].label}"
        case = xml.SubElement(
            suite, "testcase", classname=_text(f"{_SUITE}: {against}"), name=_text(one.limit)
        )
        line = _text(check_line(one, label))
        if one.is_exceeded:
            xml.SubElement(case, "failure", message=line, type="limit").text = line
        else:
            xml.SubElement(case, "system-out").text = line
    xml.SubElement(suite, "system-out").text = "".join(map(_text, _report(compared)))
    xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


def _report(compared: Comparison) -> Iterator[str]:
    yield from (f"{line}\n" for line in warnings(compared))
    yield comparison_text(compared, most=20)


def _text(text: str) -> str:
    """`text` with the characters written out that XML cannot hold: controls, halves of letters, and two more."""
    plain = visible(text).encode("utf-8", "backslashreplace").decode()
    return plain.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
