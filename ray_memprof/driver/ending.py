"""How a run is brought to its end: its ranks are watched, its verdict settled, its tables written, a summary printed.

with ending(state, live, interrupts):       # an error in this block becomes the verdict of the run
    ...
    settle(state, supervise(cluster, state, live, interrupts), live)
write_results(state, live, interrupts)      # tables of the driver, run.duckdb, memory_events.json, report.html

Takes the RunState of the run; leaves in its folder all files that the ranks do not write.
"""

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ray_memprof.driver.interrupts import Abandoned, Interrupted, Interrupts
from ray_memprof.driver.live import Live
from ray_memprof.driver.run_state import RunState
from ray_memprof.driver.troubles import Troubles
from ray_memprof.errors import EXIT_OK, DiskFull, RunError
from ray_memprof.recorder.status import Beat
from ray_memprof.report.last_lines import ended_lines
from ray_memprof.store.live_file import LiveFile
from ray_memprof.store.run_files import LOGS_DIR
from ray_memprof.store.standing import NOTE_EVERY_S, progress_facts
from ray_memprof.supervision.verdict import Verdict, interruption, verdict_of, verdict_of_bug
from ray_memprof.supervision.watch import Timeouts, watch

if TYPE_CHECKING:
    from ray_memprof.config import keys
    from ray_memprof.driver.cluster import Cluster
    from ray_memprof.driver.ray_metrics import RankGauges

_DRIVER_LOG = "driver.log"


def supervise(cluster: "Cluster", state: RunState, live: Live, interrupts: Interrupts) -> Verdict:
    """Watch the ranks to their end, under the live table."""
    began, is_first = time.monotonic(), True
    troubles = Troubles(state, live.say)
    noted_s = float("-inf")
    # Only wan's steps are known to be of a denoise loop.
    first_step = "first denoise step" if state.config.workload == "wan" else "first step"

    gauges = _gauges(state)

    def show(beats: Mapping[int, Beat]) -> None:
        nonlocal is_first, noted_s
        live.update(beats.values())
        if gauges is not None:
            gauges.show(beats.values())
        troubles.look(beats.values())
        elsewhere.note(
            lambda: {
                "device": state.config.model.device,
                "pace": live.pace(),
                "beats": list(map(asdict, beats.values())),
            }
        )
        if time.monotonic() - noted_s >= NOTE_EVERY_S:
            noted_s = time.monotonic()
            _note_progress(state, beats)
        if is_first and any(beat.step >= 0 for beat in beats.values()):
            is_first = False
            from_launch_s = (state.clock.now_ns() - state.folder.facts["start_ns"]) / 1e9
            live.reached(first_step, time.monotonic() - began, from_launch_s=from_launch_s)

    with LiveFile(state.folder.path) as elsewhere:
        verdict = watch(
            cluster.crew,
            nodes=cluster.nodes,
            home=cluster.home,
            timeouts=_timeouts(state.config.ray.timeouts),
            clock=time.monotonic,
            interrupted=lambda: interrupts.signal,
            show=show,
        )
    # Rank 0 may have written more lines since its last beat. They often explain the verdict, so they come before it.
    cluster.crew.last_words()
    return verdict


def _gauges(state: RunState) -> "RankGauges | None":
    """The gauges of Ray's metrics, where logging.ray_metrics asks for them."""
    if not state.config.logging.ray_metrics:
        return None
    from ray_memprof.driver.ray_metrics import RankGauges  # imports Ray

    return RankGauges(state.config.name, state.folder.run_id)


def _timeouts(given: "keys.Timeouts") -> Timeouts:
    return Timeouts(
        init_s=given.init_s,
        stall_s=given.stall_s,
        grace_s=given.grace_s,
        node_grace_s=given.node_grace_s,
    )


def _note_progress(state: RunState, beats: Mapping[int, Beat]) -> None:
    """Write into run.json where the lowest rank is that has sent a beat.

    A full disk is ignored here: the code that writes rows reports it.
    """
    first = beats[min(beats)] if beats else None
    progress = (
        progress_facts(first.stage, first.step, first.num_steps) if first else progress_facts("", -1, -1)
    )
    with suppress(DiskFull):
        state.folder.note(progress=progress)


def settle(state: RunState, verdict: Verdict, live: Live) -> None:
    """Write the verdict to the console and into run.json before anything else is done."""
    _say_verdict(verdict, live)
    try:
        state.settle(verdict)
    except DiskFull as error:
        if verdict.status == "ok":
            verdict = verdict_of(error, has_started=state.verdict is not None)
            _say_verdict(verdict, live)
        else:
            state.problems.append(str(error))
        state.verdict = verdict


def _say_verdict(verdict: Verdict, live: Live) -> None:
    if verdict.exit_code != EXIT_OK:
        live.say(f"error: {verdict.reason}")
        if verdict.hint:
            live.say(f"hint: {verdict.hint}")


@contextmanager
def ending(state: RunState, live: Live, interrupts: Interrupts) -> Iterator[None]:
    """Make an exception that leaves the block the verdict of the run, unless the run has failed already."""
    try:
        yield
        return
    except Abandoned as error:
        state.is_abandoned = True
        verdict = interruption(error.number)
    except Interrupted as error:
        verdict = interruption(error.number)
    except RunError as error:
        verdict = verdict_of(error, has_started=state.verdict is not None)
    except Exception as error:
        if interrupts.last_signal:  # Ray's compiled code turns Abandoned into a SystemError
            state.is_abandoned = True
            verdict = interruption(interrupts.last_signal)
        else:
            verdict = _bug(error, state)
    if state.verdict is None or state.verdict.status == "ok":
        settle(state, verdict, live)
    else:  # the first failure stays the verdict; this one is noted beside it
        state.problems.append(verdict.reason)


def _bug(error: Exception, state: RunState) -> Verdict:
    """The verdict on an error of our own, in one line; writes its traceback into a file. Call it in an except block.

    Where the ranks have ended well, the run has: their records are whole, and what is derived from them is missing.
    """
    log = state.folder.write_text(traceback.format_exc(), LOGS_DIR, _DRIVER_LOG)
    bug = verdict_of_bug(error, log)
    if state.verdict is None or state.verdict.status != "ok":
        return bug
    hint = f"{bug.hint}; ray-memprof finish {state.folder.path} makes what is missing"
    return replace(state.verdict, exit_code=bug.exit_code, reason=bug.reason, hint=hint)


def write_results(state: RunState, live: Live, interrupts: Interrupts) -> None:
    """Write the tables of the driver and all files that are derived from the ranks' records; then send them on."""
    from ray_memprof.report.derive import derived
    from ray_memprof.store.run_tables import write_driver_tables

    run_dir = state.folder.path
    with live.stage("report"):
        state.note()
        write_driver_tables(run_dir, state.run_row(), state.rank_rows())
        for line in derived(run_dir, state.problems):
            # Kept one by one, so that these lines are printed even if the report cannot be written.
            state.measured.append(line)
    state.note()  # again, with the seconds of this stage
    _export(state, live, interrupts)


def _export(state: RunState, live: Live, interrupts: Interrupts) -> None:
    """Send the complete run to the services of logging.export; what fails is a line and nothing more."""
    from ray_memprof.driver.exporting import exported

    config = state.config
    if not (config.logging.export and config.logging.profile_memory):
        return
    limit_s = config.ray.timeouts.export_s
    with live.stage("export"):
        for line in exported(
            state.folder.path,
            config.logging.export,
            limit_s=limit_s,
            is_stopped=lambda: interrupts.signal != 0,
        ):
            live.say(line)


def summary(state: RunState) -> list[str]:
    """The last lines on the console: how the run ended, what is missing, where its files are."""
    assert state.verdict is not None
    return ended_lines(
        state.folder.path,
        f"{state.config.name}: {state.verdict.status}, exit {state.exit_code}",
        state.problems,
        state.measured,
    )
