"""The findings of the diagnosis in several runs, as sentences for people or as rows for programs.

    found = [diagnosed(run_dir) for run_dir in run_dirs]
    sys.stdout.write(found_text(found))

Takes the tables of runs, finished or failed; leaves nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ray_memprof.analysis.diagnosis.diagnose import RULES, Finding, findings, lines
from ray_memprof.query.bounds import caveats
from ray_memprof.query.database import open_run
from ray_memprof.store.standing import DRIVER_GONE, LEFT, RUNNING
from ray_memprof.wording import escaped

_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("rule", pa.string()),
        ("severity", pa.string()),
        ("is_peak", pa.bool_()),
        ("ranks", pa.list_(pa.int64())),
        ("stage", pa.string()),
        ("component", pa.string()),
        ("bytes", pa.int64()),
        ("peak_at_least", pa.bool_()),
        ("sentence", pa.string()),
        ("knob", pa.string()),
    ]
)
"""The run of a finding, then the columns of diagnose.Finding; peak_at_least: a peak of its ranks may have been higher,
before the first event."""


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """One run and what was found in it, the most important finding first."""

    run_dir: Path
    ending: str
    """How the run ended, if it did not end well; how far it is, if it has not ended; else empty."""
    has_spans: bool
    has_events: bool
    """Whether allocator events were recorded: without them, rules that ask what was alive find nothing."""
    findings: tuple[Finding, ...]
    is_running: bool = False
    """Whether the run is still going on."""
    late: frozenset[int] = frozenset()
    """Ranks whose peak may lie before their first event."""
    bounds: tuple[str, ...] = ()
    """Lines that say which of its peaks are lower bounds and why, and how far the replay of a rank may be wrong."""


def diagnosed(run_dir: Path) -> Diagnosed:
    """Ask every rule about a run.

    Raises:
        ConfigError: `run_dir` is no run, or cannot be read.
    """
    with open_run(run_dir) as connection:
        ended = connection.execute("SELECT status, reason FROM runs").fetchall()
        # A driver that was killed wrote no row.
        status, reason = ended[0] if ended else (LEFT, DRIVER_GONE)
        ((has_spans, has_events),) = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM spans), EXISTS (SELECT 1 FROM allocs)"
        ).fetchall()
        joint = ", " if status == RUNNING else ": "
        ending = "" if status == "ok" else f"{status}{joint}{reason}"
        found = tuple(findings(connection))
        known = tuple(caveats(connection))
        late = connection.execute("SELECT rank FROM rank_peaks() WHERE peak_at_least").fetchall()
        return Diagnosed(
            run_dir=run_dir,
            ending=ending,
            has_spans=has_spans,
            has_events=has_events,
            findings=found,
            is_running=status == RUNNING,
            late=frozenset(rank for (rank,) in late),
            bounds=known,
        )


def found_text(found: Sequence[Diagnosed], *, is_named: bool = False) -> str:
    """Sentences, two lines for each finding; if `is_named`, a line with the name of the run is above them."""
    parts = []
    for one in found:
        listed = list(_lines(one))
        if is_named:
            listed = [f"{one.run_dir.parent.name}/{one.run_dir.name}", *(f"  {line}" for line in listed)]
        parts.append("".join(f"{line}\n" for line in listed))
    return "\n".join(parts)


def found_markdown(found: Sequence[Diagnosed]) -> str:
    """The same for a comment or a page in Markdown: a heading for each run, an item for each finding."""
    parts = []
    for one in found:
        notes = [*_ending(one), *(one.bounds if one.has_spans else ()), *_nothing(one)]
        items = []
        for finding in one.findings:
            below = "" if finding.is_peak else ", below the peak"
            items.append(f"- **{finding.severity}{below}**: {escaped(finding.sentence)}")
            items.append(f"  Knob: {escaped(finding.knob)}")
        blocks = [f"### {escaped(f'{one.run_dir.parent.name}/{one.run_dir.name}')}", *map(escaped, notes)]
        parts += [*blocks, *(["\n".join(items)] if items else [])]
    return "\n\n".join(parts) + "\n"


def _lines(one: Diagnosed) -> Iterator[str]:
    yield from _ending(one)
    if one.has_spans:
        yield from one.bounds
        yield from lines(one.findings)
    yield from _nothing(one)


def _ending(one: Diagnosed) -> Iterator[str]:
    """That the run goes on, or did not end well."""
    if one.is_running:
        yield f"the run is still going on ({one.ending}); what follows is of the time until now"
    elif one.ending:
        yield f"the run did not end well ({one.ending}); what follows is of the time before"


def _nothing(one: Diagnosed) -> Iterator[str]:
    """Why nothing, or not everything, could be found."""
    if not one.has_spans:
        yield "nothing to say: no span was recorded"
        return
    if not one.findings:
        yield f"nothing to say: none of the {len(RULES)} rules finds anything that makes the peak high"
    if not one.has_events:
        yield "no allocator events were recorded: what was alive at the peaks is not known (logging.level: event)"


def found_rows(found: Sequence[Diagnosed]) -> pa.Table:
    """A row for each finding, in the same order."""
    own = _SCHEMA.names[2:]
    rows = [
        {
            "run_id": one.run_dir.name,
            "name": one.run_dir.parent.name,
            **{name: getattr(finding, name) for name in own if name != "peak_at_least"},
            "peak_at_least": not one.late.isdisjoint(finding.ranks),
        }
        for one in found
        for finding in one.findings
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
