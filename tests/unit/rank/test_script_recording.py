"""A script that ends by another thread's os._exit: what was recorded is written first, where the allocator answers."""

from pathlib import Path
from typing import Any

import pytest

from ray_memprof.errors import EXIT_RANK_DIED
from ray_memprof.rank.messages import Outcome
from ray_memprof.rank.script_messages import ScriptOrders
from ray_memprof.rank.script_recording import ScriptRecording
from ray_memprof.recorder.options import RecordingOptions


class FakeRecorder:
    problems = ("one",)

    def __init__(self, answers: bool) -> None:
        self.is_sealed, self._answers = False, answers

    def answers(self) -> bool:
        return self._answers

    def seal(self) -> None:
        self.is_sealed = True

    def check(self) -> None:
        return None


def script(recorder: Any) -> tuple[ScriptRecording, list[Outcome]]:
    told: list[Outcome] = []
    options = RecordingOptions(run_dir=Path("run"), rank=3, device="cpu")
    recording = ScriptRecording(ScriptOrders(recording=options), told.append)
    recording.recorder = recorder
    return recording, told


@pytest.mark.parametrize("answers", [True, False])
def test_rows_are_written_before_the_process_leaves_unless_that_would_hang(answers: bool) -> None:
    recorder = FakeRecorder(answers)
    recording, told = script(recorder)
    recording.leave(7)
    recording.leave(8)
    recording.end()
    assert recorder.is_sealed is answers
    (outcome,) = told
    assert (outcome.rank, outcome.status, outcome.exit_code, outcome.reason, outcome.problems) == (
        3, "died", EXIT_RANK_DIED, "exit code 7", ("one",)
    )  # fmt: skip


def test_a_script_that_was_not_recorded_leaves_all_the_same() -> None:
    recording, told = script(None)
    recording.leave(0)
    assert [(one.status, one.problems) for one in told] == [("ok", ())]


def test_a_rank_that_is_gone_hears_nothing() -> None:
    def gone(outcome: Outcome) -> None:
        raise BrokenPipeError

    recording, _ = script(FakeRecorder(True))
    recording._report = gone
    recording.leave(0)
