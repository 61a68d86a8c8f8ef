"""What a rank passes on of its log, without Ray and without a rank."""

import io
import os
import sys
import time
from pathlib import Path

import pytest

from ray_memprof import rank
from ray_memprof.config import RunConfig
from ray_memprof.plan import Outcome, RankFacts, RankPlan
from ray_memprof.rank import Rank, lines_since


def test_an_empty_log_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.touch()
    assert lines_since(log, 0) == (0, "")


def test_lines_are_passed_on_once_they_are_whole(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_bytes(b"one\ntw")
    assert lines_since(log, 0) == (4, "one")
    assert lines_since(log, 4) == (4, "")
    log.write_bytes(b"one\ntwo\n\xff\n")
    assert lines_since(log, 4) == (10, "two\n\ufffd")


def test_a_line_without_end_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "_MAX_SAID_BYTES", 4)
    log = tmp_path / "rank0.log"
    log.write_bytes(b"\r10%\r20%\r3")
    assert [lines_since(log, offset) for offset in (0, 4, 8)] == [(4, "\r10%"), (8, "\r20%"), (8, "")]


def test_what_is_far_behind_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "_MAX_SAID_BYTES", 8)
    monkeypatch.setattr(rank, "_MAX_BEHIND_BYTES", 20)
    log = tmp_path / "rank0.log"
    log.write_bytes(b"0123456\n" * 4)
    assert lines_since(log, 8) == (24, f"... 16 bytes left out here, they are in {tmp_path.name}/rank0.log")
    assert lines_since(log, 24) == (32, "0123456")


def test_a_workload_that_closes_its_output_still_has_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = RankFacts(node_id="", host="", node_ip="", pid=0, gpu_index=-1)
    actor, outcome = Rank(), Outcome(rank=0, status="ok")
    actor._plan = RankPlan(
        run_id="r", config=RunConfig(name="x"), rank=0, world_size=1, local_rank=0, local_world_size=1, node=0,
        visible_devices=(), facts=facts, run_dir=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr(actor, "_run", lambda plan: outcome)
    closed = io.StringIO()
    closed.close()
    for output in (closed, None):
        monkeypatch.setattr(os, "environ", {})
        monkeypatch.setattr(sys, "stdout", output)
        assert actor.run(("127.0.0.1", 1)) == outcome


def test_lines_end_where_a_traceback_begins(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_text("step 1\nTraceback (most recent call last):\n")
    assert lines_since(log, 0, until=7) == (7, "step 1")
    assert lines_since(log, 7, until=7) == (7, "")
    assert lines_since(log, 7) == (42, "Traceback (most recent call last):")


def test_the_line_without_end_is_passed_on_once_nothing_will_follow(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_bytes(b"one\ntwo")
    assert lines_since(log, 0, whole=False) == (7, "one\ntwo")
    assert lines_since(log, 7, whole=False) == (7, "")
    assert lines_since(log, 0, until=6, whole=False) == (6, "one\ntw")


def test_a_rank_tells_its_hosts_time_by_the_clock_that_it_records_with(tmp_path: Path) -> None:
    actor = Rank()
    before = time.time_ns()
    assert before - 10**7 < actor.now_ns() <= actor._clock.now_ns() < time.time_ns() + 10**7
