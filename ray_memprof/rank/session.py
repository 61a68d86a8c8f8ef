"""The recording of a process that was started without the launcher, from its beginning to its end.

    session = Session(settings, start_of(os.environ), program)
    session.begin()                        # once torch is imported; never raises
    session.end(error)                     # seals the rows and says how it ended; rank 0 has the run completed

The folder of the run is made by rank 0 (store/joint_folder.py). Each rank writes its tables and logs/rankN.json there.
What goes wrong here is one line on the standard error: the program runs on, recorded or not.
"""

import os
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_memprof.rank.claim import RECORDED, check_free, claimed, released
from ray_memprof.rank.finisher import finish_later, finished
from ray_memprof.rank.process_recording import ProcessRecording, line_of
from ray_memprof.rank.settings import Program, Settings
from ray_memprof.rank.starters import Start
from ray_memprof.store.joint_folder import (
    NoFolderYet,
    announce_failure,
    await_joint,
    make_joint,
    patience_s,
    withdraw,
)
from ray_memprof.store.processes import process_facts
from ray_memprof.store.rank_notes import note_rank, rank_note, still_running
from ray_memprof.store.standing import RUNNING

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder
    from ray_memprof.store.run_folder import RunFolder

WAIT_S = 10.0
"""Seconds that rank 0 waits at its end for the other ranks to end, as long as their processes run."""
_num_sessions: Counter[str] = Counter()


def is_claimed() -> bool:
    """Whether something in this process records, or is about to."""
    return bool(_num_sessions)


class Session(ProcessRecording):
    """One recording of this process.

    Args:
        settings: what is recorded, and where it goes.
        start: which rank this is.
        program: what runs, for the record.
        on_any_thread: see ProcessRecording.
    """

    def __init__(
        self, settings: Settings, start: Start, program: Program, *, on_any_thread: bool = False
    ) -> None:
        super().__init__(on_any_thread=on_any_thread)
        self._settings, self._start = settings, start
        # The program may change its working folder later.
        self._program = replace(program, path=None if program.path is None else program.path.absolute())
        self._output_dir, self._name = settings.folder(), settings.run_name(program)
        _num_sessions[self._name] += 1
        if start.key:
            # Ranks that record twice under one name must not join the folder of the first time.
            self._start = replace(start, key=f"{start.key}-{_num_sessions[self._name]}")
        self._folder: RunFolder | None = None
        self._made_it = False
        self._device, self._facts = "cpu", dict[str, Any]()

    def forked(self) -> None:
        """In a forked child: nothing is recorded, and nothing is left to end."""
        super().forked()
        released()

    @property
    def run_dir(self) -> Path | None:
        """The run folder; None: nothing is recorded."""
        return None if self.recorder is None or self._folder is None else self._folder.path

    def _not_begun(self, error: Exception) -> None:
        self._is_over = True
        with suppress(Exception):
            if self._start.rank == 0 and self._start.key:  # the others need not wait for a folder
                announce_failure(self._output_dir, self._name, self._start.key, line_of(error))
        with suppress(Exception):
            if self._folder is not None:
                self._note(status="failed", exit_code=0, reason=f"not recorded: {line_of(error)}", end_ns=0)

    def _begin(self) -> None:
        check_free()
        os.environ[RECORDED] = str(self._start.rank)
        from ray_memprof.rank.device_of_process import device_of_process
        from ray_memprof.recorder.recording import recording

        found = device_of_process(self._start.local_rank, self._settings.device)
        self._device = found.device
        self._folder = self._make_folder()
        claimed(self._folder.path)
        self._stack.callback(released)
        self._facts = {**process_facts(), **found.facts}
        self._note(status=RUNNING)
        options = found.options(self._folder.path, self._start.rank, self._settings)
        self.recorder = self._stack.enter_context(recording(options))
        self._stack.enter_context(_observed(self._settings, self.recorder))

    def _make_folder(self) -> "RunFolder":
        import yaml

        start = self._start
        if start.leads_host:
            with suppress(NoFolderYet):
                wait_s = patience_s(self._output_dir)
                return await_joint(self._output_dir, self._name, start.key, wait_s=wait_s)
        elif start.rank:
            return await_joint(self._output_dir, self._name, start.key)
        config = self._settings.config(self._program, start, self._device.partition(":")[0])
        text = yaml.safe_dump(config, sort_keys=False)
        folder = make_joint(
            self._output_dir, self._name, start.key, config_text=text, num_ranks=start.num_ranks
        )
        folder.note(started_by="record", start=dict(start.variables))
        self._made_it = True
        return folder

    def leave(self, exit_code: int) -> None:
        """Another thread than the main thread is about to end the process: say so, and write what is recorded."""
        if self.recorder is None or self._is_over:
            return
        reason = (
            "" if exit_code == 0 else f"the program ended with exit code {exit_code}, on a thread of its own"
        )
        status = "ok" if exit_code == 0 else "failed"
        self._note(status=status, exit_code=exit_code, reason=reason, end_ns=time.time_ns())
        if self.recorder.answers():  # the main thread may hang in the allocator, and this thread must not
            self.recorder.seal()
        self._finish(is_ok=False)  # not here: the process ends at once

    def end(self, error: BaseException | None = None, exit_code: int | None = None) -> None:
        """End the recording.

        Args:
            error: the exception that ended the program; None: it ended well, or by an exit code.
            exit_code: of the program; None: 0.
        """
        if self._is_over or self.recorder is None:
            return
        self._is_over = True
        try:
            self._end(error, exit_code)
        except Exception as failed:
            self._tell(f"the recording did not end as it should: {line_of(failed)}")

    def _end(self, error: BaseException | None, exit_code: int | None) -> None:
        from ray_memprof.rank.outcome import free_at_failure, outcome_of

        recorder = self.recorder
        assert recorder is not None
        lost = self._close(error)
        if error is not None:
            free = free_at_failure(recorder, self._facts["device_total_bytes"])
            outcome = asdict(outcome_of(error, self._start.rank, recorder.failure(), free_bytes=free))
        elif exit_code:
            outcome = {"status": "failed", "reason": f"the program ended with exit code {exit_code}"}
        else:
            outcome = {"status": "ok", "reason": ""}
        if isinstance(error, KeyboardInterrupt):
            outcome["status"] = "interrupted"
        # The process ends with the program's own code, whatever a launcher would make of the error.
        outcome["exit_code"] = exit_code or 0
        check = recorder.check()
        ended = {
            "check": None if check is None else asdict(check),
            "problems": [*recorder.problems, *([line_of(lost)] if lost else [])],
            **_surroundings(),
            "end_ns": time.time_ns(),
        }
        self._note(**outcome | ended)
        self._finish(is_ok=outcome["status"] == "ok")

    def _note(self, **facts: Any) -> None:
        self._facts |= facts
        note_rank(self._run_folder(), self._start.rank, {**self._facts, "local_rank": self._start.local_rank})

    def _run_folder(self) -> Path:
        assert self._folder is not None
        return self._folder.path

    def _finish(self, *, is_ok: bool) -> None:
        """Have the run completed: by rank 0 if all ranks have ended well, else in the background.

        Where this rank has failed, others may wait for it until the starter has seen it end, and kills them.
        """
        start, run_dir = self._start, self._run_folder()
        if self._made_it:
            withdraw(self._output_dir, self._name, start.key)
            if start.rank:
                self._tell(
                    f"what the ranks of this host recorded is in {run_dir}, apart from rank 0's folder"
                )
                self._tell(
                    "hint: ray-memprof finish FOLDER FOLDER takes both together, from copies or mounts"
                )
        if start.rank == 0 and (is_ok or start.num_ranks == 1):
            if not still_running(run_dir, start.num_ranks, wait_s=WAIT_S):
                for line in finished(run_dir):
                    self._tell(line)
                return
        if self._has_rank_0() and (start.rank == 0 or not is_ok):
            log = finish_later(run_dir)
            if log is not None:
                self._tell(f"the run is completed once all ranks have ended; see {log}")

    def _has_rank_0(self) -> bool:
        """Whether the run folder is rank 0's, and not that of a host which does not share its disk."""
        return self._start.rank == 0 or rank_note(self._run_folder(), 0) is not None

    def _tell(self, text: str) -> None:
        with suppress(Exception):  # a program may have closed its standard error
            sys.stderr.write(f"ray-memprof: {text}\n")


def _observed(settings: Settings, recorder: "Recorder") -> Any:
    from ray_memprof.workload.observed import observed

    return observed(
        recorder,
        module_spans=settings.module_spans,
        components=settings.components,
        ranges=settings.ranges,
    )


def _surroundings() -> dict[str, Any]:
    from ray_memprof.rank.variables import in_force
    from ray_memprof.rank.versions import versions

    return {"versions": versions(), "environment": in_force(os.environ)}
