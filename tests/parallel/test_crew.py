"""The harness itself: what ranks return, and that nothing a rank does leaves the others or the test waiting."""

import os
import time

import crew as harness
import pytest
import torch.distributed as dist
from crew import Crew, RankError


def place(rank: int) -> tuple[int, int]:
    return rank, dist.get_world_size()


def fail_on(rank: int, failing: int) -> None:
    if rank == failing:
        raise ValueError(f"rank {rank} has had enough")
    dist.barrier()


def hang(rank: int) -> None:
    if rank == 1:
        time.sleep(60)


def end(rank: int) -> None:
    os._exit(3)


def test_ranks_answer_in_order_and_a_crew_outlives_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(2)
    try:
        assert crew.run(place) == [(0, 2), (1, 2)]
        monkeypatch.setattr(harness, "CALL_S", 5.0)
        with pytest.raises(RankError, match="rank 1 did not answer in 5 s"):
            crew.run(hang)
        assert crew.run(place) == [(0, 2), (1, 2)]
        with pytest.raises(RankError, match="ValueError: rank 0 has had enough"):
            crew.run(fail_on, 0)
    finally:
        crew.end()
