"""How a run is brought to its end: watched, settled, written down, and summed up in a few lines.

with ending(record, live, interrupts):       # whatever goes wrong in here becomes the verdict of the run
    ...
    settle(record, supervise(cluster, record, live, interrupts), live)
write(record, live)                          # tables of the driver, run.duckdb, memory_events.json, report.html

Takes the Record of the run; leaves everything in its folder that is not written by a rank.
"""

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ray_memprof.errors import DiskFull, RunError
from ray_memprof.interrupts import Abandoned, Interrupted, Interrupts
from ray_memprof.live import Live
from ray_memprof.record import Record, verdict_of, verdict_of_bug
from ray_memprof.recorder_status import Beat
from ray_memprof.standing import NOTE_EVERY_S, progress_facts
from ray_memprof.store import LOGS_DIR, REPORT_FILE
from ray_memprof.supervise import Limits, interruption, watch
from ray_memprof.troubles import Troubles
from ray_memprof.verdict import Verdict
from wan.errors import WanError

if TYPE_CHECKING:
    from ray_memprof.cluster import Cluster

_DRIVER_LOG = "driver.log"


def supervise(cluster: "Cluster", record: Record, live: Live, interrupts: Interrupts) -> Verdict:
    """Watch the ranks to their end, under the live table."""
    timeouts = record.config.ray.timeouts
    began, is_first = time.monotonic(), True
    troubles = Troubles(record, live.say)
    noted_s = float("-inf")
    # Only wan's steps are known to be of a denoise loop.
    first_step = "first denoise step" if record.config.workload == "wan" else "first step"

    def show(beats: Mapping[int, Beat]) -> None:
        nonlocal is_first, noted_s
        live.update(beats.values())
        troubles.look(beats.values())
        if time.monotonic() - noted_s >= NOTE_EVERY_S:
            noted_s = time.monotonic()
            _note_progress(record, beats)
        if is_first and any(beat.step >= 0 for beat in beats.values()):
            is_first = False
            from_launch_s = (record.clock.now_ns() - record.folder.facts["start_ns"]) / 1e9
            live.reached(first_step, time.monotonic() - began, from_launch_s=from_launch_s)

    verdict = watch(
        cluster.crew,
        nodes=cluster.nodes,
        home=cluster.home,
        limits=Limits(
            init_s=timeouts.init_s,
            stall_s=timeouts.stall_s,
            grace_s=timeouts.grace_s,
            node_grace_s=timeouts.node_grace_s,
        ),
        clock=time.monotonic,
        interrupted=lambda: interrupts.signal,
        show=show,
    )
    # The last beat is older than the last line: what explains the verdict stands above it.
    cluster.crew.last_words()
    return verdict


def _note_progress(record: Record, beats: Mapping[int, Beat]) -> None:
    """Write into run.json where the lowest rank is that has sent a beat; what writes rows reports a full disk."""
    first = beats[min(beats)] if beats else None
    progress = (
        progress_facts(first.stage, first.step, first.num_steps) if first else progress_facts("", -1, -1)
    )
    with suppress(DiskFull):
        record.folder.note(progress=progress)


def settle(record: Record, verdict: Verdict, live: Live) -> None:
    """Write the verdict to the console and into run.json before anything else is done."""
    _tell(verdict, live)
    try:
        record.settle(verdict)
    except DiskFull as error:
        if verdict.status == "ok":
            verdict = verdict_of(error, record)
            _tell(verdict, live)
        else:
            record.problems.append(str(error))
        record.verdict = verdict


def _tell(verdict: Verdict, live: Live) -> None:
    if verdict.status != "ok":
        live.say(f"error: {verdict.reason}")
        if verdict.hint:
            live.say(f"hint: {verdict.hint}")


@contextmanager
def ending(record: Record, live: Live, interrupts: Interrupts) -> Iterator[None]:
    """An exception that leaves the block becomes the verdict of the run, unless the run has failed already."""
    try:
        yield
        return
    except Abandoned as error:
        record.is_abandoned = True
        verdict = interruption(error.number)
    except Interrupted as error:
        verdict = interruption(error.number)
    except (RunError, WanError) as error:
        verdict = verdict_of(error, record)
    except Exception as error:
        if interrupts.last_signal:  # out of Ray's compiled code Abandoned comes as a SystemError
            record.is_abandoned = True
            verdict = interruption(interrupts.last_signal)
        else:
            verdict = _bug(error, record)
    if record.verdict is None or record.verdict.status == "ok":
        settle(record, verdict, live)
    else:  # the run's own failure stays the verdict; this one came on top
        record.problems.append(verdict.reason)


def _bug(error: Exception, record: Record) -> Verdict:
    """Told in a line, with everything about it in a file; called where `error` is handled."""
    log = record.folder.write(traceback.format_exc(), LOGS_DIR, _DRIVER_LOG)
    return verdict_of_bug(error, log)


def write(record: Record, live: Live) -> None:
    """All that is derived from what the ranks recorded."""
    from ray_memprof.collect import write_driver_tables

    run_dir = record.folder.path
    with live.stage("report"):
        record.note()
        write_driver_tables(run_dir, record.run_row(), record.rank_rows())
        for line in derived(run_dir, record.problems):
            # Kept one by one: these lines are printed even where the report cannot be written.
            record.figures.append(line)
    record.note()  # the seconds of this stage too


def derived(run_dir: Path, problems: list[str]) -> Iterator[str]:
    """Write run.duckdb, memory_events.json and report.html from the tables of a run; yields what was measured.

    Args:
        run_dir: of the run.
        problems: what is missing of it; what its folder's place rules out is added.
    """
    from ray_memprof import db, report
    from ray_memprof.diagnosis import findings
    from ray_memprof.exporters import memory_events
    from ray_memprof.query import opened
    from ray_memprof.summary import figure_lines

    db.build(run_dir)
    problems += db.limits(run_dir)
    # Opened and diagnosed once: of a thousand ranks each takes ten seconds.
    with opened([run_dir], is_apart=True) as connection:
        found = findings(connection)
        yield from figure_lines(connection, found)
        memory_events.write(run_dir)
        report.write(run_dir, problems, known=report.Known(connection, found))


def summary(record: Record) -> list[str]:
    """The last lines: how it ended, what is missing, where everything is."""
    assert record.verdict is not None
    lines = [f"{record.config.name}: {record.verdict.status}, exit {record.exit_code}"]
    lines += [f"warning: {line}" for line in record.problems]
    path = record.folder.path
    report = path / REPORT_FILE
    return [*lines, *record.figures, f"report: {report}" if report.exists() else f"run folder: {path}"]
