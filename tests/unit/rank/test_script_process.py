"""How a script has ended, by what it reported and by its process; and its messages. With processes: tests/programs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.rank.script_messages import (
    ScriptOrders,
    message_of,
    outcome_of_message,
    whereabouts_of_message,
)
from ray_memprof.rank.script_process import ANSWER_S, SEAL_S, TERM_S, ScriptProcess, outcome_by_exit
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recorder import SEAL_S as RECORDER_SEAL_S
from ray_memprof.recorder.status import Group, ReplayCheck
from ray_memprof.supervision.watch import WHERE_S

OK = Outcome(rank=2, status="ok", environment={"NCCL_DEBUG": "INFO"})
LEAVES = replace(OK, status="died", exit_code=10, reason="exit code 4")


@pytest.mark.parametrize(
    ("returncode", "reported", "expected"),
    [
        (0, OK, OK),
        (-9, None, Outcome(rank=2, status="died", exit_code=10, reason="killed by SIGKILL")),
        (-62, None, Outcome(rank=2, status="died", exit_code=10, reason="killed by signal 62")),
        (17, None, Outcome(rank=2, status="died", exit_code=10, reason="exit code 17")),
        (4, LEAVES, LEAVES),
        # It was about to leave by os._exit, and a signal came first.
        (-11, LEAVES, replace(LEAVES, reason="killed by SIGSEGV")),
        (-6, OK, replace(LEAVES, reason="killed by SIGABRT after its script had ended")),
        (120, OK, replace(LEAVES, reason="exit code 120 after its script had ended")),
    ],
)
def test_how_a_script_ended_whose_process_has_ended(
    returncode: int, reported: Outcome | None, expected: Outcome
) -> None:
    assert outcome_by_exit(2, returncode, reported) == expected


def test_a_script_that_vanishes_with_success_may_lack_its_last_records() -> None:
    text = "the script's process ended without Python's own end: what it recorded last may be missing"
    assert outcome_by_exit(1, 0, None) == Outcome(rank=1, status="ok", problems=(text,))


def test_empty_orders_and_full_ones_arrive_as_they_were() -> None:
    options = RecordingOptions(run_dir=Path("/run"), device="cuda:1", rank=3, level="stack", gpu_uuid="GPU-1")
    for orders in (
        ScriptOrders(recording=options),
        ScriptOrders(
            recording=options, path=Path("a b.py"), args=("-x", "\u00e9", ""), module_spans=("blocks.*",), num_ranks=4,
            environment={"MASTER_PORT": "1"}, clock=(17, 5), trace={"wait": 1}, trace_file=Path("/run/trace/x"),
        ),
        ScriptOrders(recording=options, module="pkg.train"),
    ):  # fmt: skip
        assert ScriptOrders.of(json.loads(json.dumps(orders.message()))) == orders
    assert (ScriptOrders(recording=options, path=Path("a/b.py")).name, orders.name) == ("b.py", "pkg.train")


def test_answers_arrive_as_they_were() -> None:
    check = ReplayCheck(
        num_events=1, num_lost_events=0, num_checks=2, max_error_bytes=0, allocated_peak_bytes=3,
        replayed_allocated_peak_bytes=3, reserved_peak_bytes=4, replayed_reserved_peak_bytes=4, recorder_ns=5,
        longest_pause_ns=6, recorder_bytes=7,
    )  # fmt: skip
    for outcome in (OK, replace(OK, status="oom", check=check, problems=("a", "b"), oom_free_bytes=9)):
        assert outcome_of_message(json.loads(json.dumps(message_of(outcome)))) == outcome
    pair = Group(name="pp", first_rank=0, second_rank=1)
    where = Whereabouts(stack="File", joined={Group(name="0", first_rank=0): 5, pair: 2})
    assert whereabouts_of_message(json.loads(json.dumps(message_of(where)))) == where
    assert message_of(None) is None


class Text(str):
    """As a program may give it to its error."""


def test_a_class_of_the_program_does_not_come_along() -> None:
    outcome = replace(OK, status="failed", reason=Text("theirs"))
    assert type(outcome_of_message(json.loads(json.dumps(message_of(outcome)))).reason) is str


def test_the_rank_answers_before_the_driver_gives_up() -> None:
    assert ANSWER_S < WHERE_S
    assert RECORDER_SEAL_S < SEAL_S
    cluster = (Path(__file__).parents[3] / "ray_memprof" / "driver" / "cluster.py").read_text()
    assert "_SEAL_S = 2.5\n" in cluster and SEAL_S + TERM_S < 2.5


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/absent/python")
    with pytest.raises(FileNotFoundError):
        ScriptProcess({}, None)
