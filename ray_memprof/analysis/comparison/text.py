"""A comparison of runs as text: what was set differently, the whole run, ranks, and spans, largest changes first.

    sys.stdout.write(comparison_text(compared, most=20))

Takes what compare.py found. This text leaves some of it out; the other formats have all of it. Writes no file.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray_memprof.analysis.comparison.compare import Comparison, Moved, Row, moved_of
from ray_memprof.analysis.comparison.limits import check_line
from ray_memprof.query.answers import Shown, columns_text
from ray_memprof.store.standing import ending_text
from ray_memprof.wording import at_least, change_text, number_text, rank_text, shortened

SHOWN = ("peak_allocated", "peak_reserved", "peak_device_used", "duration")
"""Measures that are shown for ranks and spans; --format csv has more."""
LEAST_FRACTION = 0.001
"""A share of the figure of the whole base run: spans that change by less are only counted, not listed."""
MOST_LETTERS = 40
"""The most characters of a setting."""


def comparison_text(compared: Comparison, most: int, width: int | None = None) -> str:
    """The whole comparison, in sections with a line above each.

    Args:
        compared: what compare() found.
        most: list at most so many settings, ranks and spans.
        width: of the terminal; None: lines are as wide as they need to be.
    """
    rows = compared.moves.to_pylist()
    parts = [columns_text(_runs(compared), width), *_settings(compared, most, width)]
    if not rows:
        parts.append("no run has a figure to compare\n")
    else:
        whose = "the worst rank" if compared.rank is None else f"rank {compared.rank}"
        parts.append(f"the whole run, of {whose}\n" + columns_text(whole_columns(compared, rows), width))
    for number, side in enumerate(compared.sides[1:], 1):
        against = f"{side.label} against {compared.sides[0].label}"
        mine = [row for row in rows if row["run"] == number]
        parts += _ranks(moved_of(mine, "rank"), against, most, width)
        parts += _spans(moved_of(mine, "span"), against, most, width)
    return "\n".join(parts)


def warnings(compared: Comparison) -> Iterator[str]:
    """What a reader must know before trusting the figures, one line each."""
    for side in compared.sides:
        if side.status != "ok":
            ended = f"{side.label} {ending_text(side.status)} ({side.status}: {side.reason})"
            yield f"warning: {ended}: its figures end there"
        for line in side.lacking:
            yield f"warning: {side.label} is not whole: {line}"
        for line in side.bounds:
            yield f"warning: {side.label}: {line}"


def check_lines(compared: Comparison) -> Iterator[str]:
    """Every limit with the values of both runs, one line each."""
    for one in compared.checks:
        yield check_line(one, compared.sides[one.run].label)


def _runs(compared: Comparison) -> list[Shown]:
    sides = compared.sides
    values: dict[str, Callable[[Any], object]] = {
        "run": lambda side: side.label,
        "status": lambda side: side.status,
        "source": lambda side: side.source,
        "ranks": lambda side: side.num_ranks,
        "gpu": lambda side: side.gpu_name,
        "folder": lambda side: side.folder,
    }
    columns = [
        Shown(name, [str(of(side)) or "-" for side in sides], is_number=name == "ranks")
        for name, of in values.items()
    ]
    return [Shown("", ["base", *("other" for _ in sides[1:])], is_number=False), *columns]


def _settings(compared: Comparison, most: int, width: int | None) -> list[str]:
    listed = compared.differences[:most]
    if not listed:
        return ["configuration, environment and versions are the same\n"]
    columns = [Shown("key", [one.key for one in listed], is_number=False)]
    for number, side in enumerate(compared.sides):
        columns.append(Shown(side.label, [_short(one.values[number]) for one in listed], is_number=False))
    text = columns_text(columns, width) + _more(compared.differences, most, "settings")
    return [f"set differently, or of another version\n{text}"]


def _short(value: str | None) -> str:
    text = "-" if value is None else " ".join(value.split())
    return shortened(text, MOST_LETTERS)


def whole_columns(compared: Comparison, rows: Sequence[Row]) -> list[Shown]:
    """A line for each measure, and one for its mean if there are several ranks; a column for each run."""
    is_wide = compared.rank is None and any(side.num_ranks > 1 for side in compared.sides)
    lines: dict[tuple[str, bool], dict[int, Row]] = {}
    whole = [row for row in rows if row["level"] == "run"]
    measured = {row["measure"] for row in whole if row["base_value"] or row["value"]}
    for row in whole:
        if row["measure"] in measured:
            lines.setdefault((row["measure"], False), {})[row["run"]] = row
            if is_wide and row["measure"] in SHOWN:
                lines.setdefault((row["measure"], True), {})[row["run"]] = row
    names = [("  mean over ranks" if is_mean else measure) for measure, is_mean in lines]
    base = [_base_cell(of_run, is_mean) for (_, is_mean), of_run in lines.items()]
    columns = [Shown("measure", names, is_number=False), Shown(compared.sides[0].label, base)]
    for number, side in enumerate(compared.sides[1:], 1):
        cells = [_cells(of_run.get(number), is_mean) for (_, is_mean), of_run in lines.items()]
        columns += [
            Shown(side.label, [value for value, _ in cells]),
            Shown("change", [change for _, change in cells]),
        ]
    return columns


def _base_cell(of_run: dict[int, Row], is_mean: bool) -> str:
    row = next(iter(of_run.values()))
    return _sized(row, "base_mean" if is_mean else "base_value")


def _sized(row: Row, column: str) -> str:
    """A figure of the base or of the other run, with "at least" if it may have been larger."""
    value, flag = row[column], "base_is_at_least" if column.startswith("base") else "is_at_least"
    return at_least(number_text(value, row["unit"]), value is not None and row[flag])


def _cells(row: Row | None, is_mean: bool) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    names = ("base_mean", "mean_value", "mean_change") if is_mean else ("base_value", "value", "change")
    base, value, change = names
    return _sized(row, value), change_text(row[change], row[base], row["unit"])


def _ranks(ranks: Sequence[Moved], against: str, most: int, width: int | None) -> Iterator[str]:
    if len(ranks) < 2:
        return
    both = [one for one in ranks if one.only_in is None]
    text = _pivot("rank", both[:most], width) + _more(both, most, "ranks")
    for which, words in (("base", "only the base has"), ("other", "the base lacks")):
        alone = sorted(one.rank for one in ranks if one.only_in == which and one.rank is not None)
        if alone:
            text += f"{words} {rank_text(alone)}\n"
    yield f"ranks, {against}\n{text}"


def _spans(spans: Sequence[Moved], against: str, most: int, width: int | None) -> Iterator[str]:
    both = [one for one in spans if one.only_in is None]
    moved = [one for one in both if one.share >= LEAST_FRACTION]
    still = len(both) - len(moved)
    note = f"moved by less than {LEAST_FRACTION:.1%} of the whole run: {still}\n" if still else ""
    if moved:
        text = _pivot("path", moved[:most], width) + _more(moved, most, "spans")
        yield f"spans that moved, {against}\n{text}{note}"
    elif both:
        yield f"no span moved by {LEAST_FRACTION:.1%} of the whole run, {against}\n"
    for which, words in (("base", "spans that only the base has"), ("other", "spans that the base lacks")):
        alone = [one for one in spans if one.only_in == which]
        if alone:
            key = "base_value" if which == "base" else "value"
            text = _alone(alone[:most], key, width) + _more(alone, most, "spans")
            yield f"{words}, {against}\n{text}"


def _pivot(what: str, listed: Sequence[Moved], width: int | None) -> str:
    return columns_text(pivot_columns(what, listed), width)


def pivot_columns(what: str, listed: Sequence[Moved]) -> list[Shown]:
    """A line for each rank or path (`what`), with the value and the change of each measure."""
    columns = [Shown(what, [str(getattr(one, what)) for one in listed], is_number=what == "rank")]
    for measure in SHOWN:
        cells = [_cells(one.measures.get(measure), is_mean=False) for one in listed]
        columns += [
            Shown(measure, [value for value, _ in cells]),
            Shown("change", [change for _, change in cells]),
        ]
    return columns


def _alone(spans: Sequence[Moved], key: str, width: int | None) -> str:
    columns = [Shown("path", [str(one.path) for one in spans], is_number=False)]
    for measure in ("num_spans", *SHOWN):
        rows = [one.measures.get(measure) for one in spans]
        cells = ["-" if row is None else _sized(row, key) for row in rows]
        columns.append(Shown(measure, cells))
    return columns_text(columns, width)


def _more(listed: Sequence[object], most: int, what: str) -> str:
    hidden = len(listed) - most
    return f"{what} not listed: {hidden}; --most {len(listed)}, or another --format\n" if hidden > 0 else ""
