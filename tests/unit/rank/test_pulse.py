"""Whether a program gets on, as its rank sees it."""

import pytest
import torch

from ray_memprof.rank.messages import Whereabouts
from ray_memprof.rank.pulse import Pulse, first_beat


def test_no_thread_runs_a_program() -> None:
    pulse = Pulse(rank=3, num_ranks=4, thread=0)
    assert pulse.beat(None).rank == 3
    assert pulse.beat(None).path == first_beat(3).path == ""
    assert pulse.where() == Whereabouts(stack="not running\n")


def test_a_program_whose_children_work_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(rank=0, num_ranks=1, thread=-1)
    still = pulse.beat(None).sequence
    assert pulse.beat(None).sequence == still
    worked = iter((0, 1, 2))
    monkeypatch.setattr(pulse._children, "look", lambda moves: next(worked))
    assert [pulse.beat(None).sequence for _ in range(3)] == [still, still + 1, still + 2]


@pytest.mark.parametrize(
    ("num_ranks", "joined", "counts"), [(2, False, True), (2, True, False), (1, False, False)]
)
def test_a_program_that_works_before_it_joins_gets_on(
    monkeypatch: pytest.MonkeyPatch, num_ranks: int, joined: bool, counts: bool
) -> None:
    """GIVEN a call into C that takes minutes THEN its own CPU time counts as long as the others wait for it to come."""
    pulse = Pulse(rank=0, num_ranks=num_ranks, thread=-1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: joined)
    still = pulse.beat(None).sequence
    worked = iter((1, 2))
    monkeypatch.setattr(pulse._own, "look", lambda moves: next(worked))
    assert [pulse.beat(None).sequence - still for _ in range(2)] == ([1, 2] if counts else [0, 0])
