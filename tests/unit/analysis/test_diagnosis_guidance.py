"""The rule about the passes of guidance: what it says, and where it does not speak."""

from typing import Any

import pytest
from diagnosis_runs import passes_in_turn
from empty_run import GIB, SECOND, EmptyRun

from ray_memprof.analysis.diagnosis.diagnose import Finding

WHO = "Ranks 0 to 3 run both passes of guidance, one after the other"
COSTS = "a rank then works on twice as many tokens, so its activations in a step (3.00 GiB) about double"


def test_tokens_that_all_ranks_exchange(empty: EmptyRun) -> None:
    (finding,) = passes_in_turn(empty)
    assert finding == Finding(
        rule="passes_in_turn",
        severity="minor",
        is_peak=False,
        ranks=(0, 1, 2, 3),
        stage="denoise",
        component="dit",
        bytes=0,
        sentence=f"{WHO}, and each hands 2.00 GiB to exchanges of tokens in a step.",
        knob=f"parallel.cfg: 2 with parallel.ulysses: 2, which was 4; {COSTS}",
    )


def test_a_ring_is_shortened_before_a_ulysses_group(empty: EmptyRun) -> None:
    """A batch of sends and receives counts both."""
    (finding,) = passes_in_turn(empty, op="batch_isend_irecv", exchanged=4 * GIB, ulysses=2, ring=2)
    assert finding.sentence == f"{WHO}, and each hands 2.00 GiB to exchanges of tokens in a step."
    assert finding.knob == f"parallel.cfg: 2 with parallel.ring: 1, which was 2; {COSTS}"


@pytest.mark.parametrize(
    ("ranks", "who", "knob"),
    [
        (2, "Ranks 0 and 1", "parallel.cfg: 2"),
        (4, "Ranks 0 to 3", "parallel.cfg: 2, with parallel.ulysses or parallel.ring: 2"),
    ],
)
def test_ranks_that_share_the_weights_alone(empty: EmptyRun, ranks: int, who: str, knob: str) -> None:
    """However full the device is: a rank would hold no more."""
    (finding,) = passes_in_turn(empty, ranks=ranks, exchanged=0, ulysses=1, total=3 * GIB)
    assert finding.sentence == (
        f"{who} run both passes of guidance, one after the other, and all of them on all tokens: the same work is done "
        f"{ranks} times."
    )
    assert finding.knob == knob


@pytest.mark.parametrize(
    "changes",
    [
        {"cfg": 2},
        {"branches": ["cond"]},
        {"branches": ["cond", "uncond"], "silent": [3]},
        {"ranks": 3},
        {"backend": "xfuser"},
        {"exchanged": 2 * GIB - 2},
        {"step_ns": SECOND + 1},
        {"exchanged": 4 * GIB - 4, "op": "batch_isend_irecv"},
        {"exchanged": 9 * GIB, "op": "all_reduce"},
        {"total": 6 * GIB - 1},
    ],
    ids=str,
)
def test_it_is_silent(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert passes_in_turn(empty, **changes) == []


def test_it_speaks_at_its_threshold_and_where_the_room_just_does(empty: EmptyRun) -> None:
    assert len(passes_in_turn(empty, total=6 * GIB)) == 1
    assert len(passes_in_turn(empty, exchanged=4 * GIB, op="batch_isend_irecv")) == 1
    assert len(passes_in_turn(empty, total=0)) == 1, "the CPU has no device"
