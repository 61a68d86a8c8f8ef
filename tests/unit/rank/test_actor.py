"""What a rank passes on of its log, without Ray and without a rank."""

import contextlib
import dataclasses
import io
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.rank import log as rank_log
from ray_memprof.rank.actor import Rank
from ray_memprof.rank.log import lines_since
from ray_memprof.rank.messages import Outcome, RankFacts, Whereabouts
from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.pulse import first_beat


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
    monkeypatch.setattr(rank_log, "_MAX_SAID_BYTES", 4)
    log = tmp_path / "rank0.log"
    log.write_bytes(b"\r10%\r20%\r3")
    assert [lines_since(log, offset) for offset in (0, 4, 8)] == [(4, "\r10%"), (8, "\r20%"), (8, "")]


def test_what_is_far_behind_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_log, "_MAX_SAID_BYTES", 8)
    monkeypatch.setattr(rank_log, "_MAX_BEHIND_BYTES", 20)
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


def listening(pid: int) -> list[str]:
    """Addresses and ports on which a process listens, as the kernel has them."""
    sockets = set()
    for opened in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(opened))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_the_store_listens_where_the_ranks_are_told_and_nowhere_else() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    actor = Rank()
    actor._plan = SimpleNamespace(world_size=2, master_addr="127.0.0.1")  # type: ignore[assignment]
    before = listening(os.getpid())
    host, port = actor.open_store()
    assert host == "127.0.0.1"
    assert [one for one in listening(os.getpid()) if one not in before] == [f"0100007F:{port:04X}"]
    # As torch's rendezvous does it in rank 0, and in the others.
    mine = TCPStore(host, port, 2, True, wait_for_workers=False, multi_tenant=True)
    mine.set("key", "value")
    assert TCPStore(host, port, is_master=False, wait_for_workers=False).get("key") == b"value"


def test_a_store_whose_address_is_translated_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    actor = Rank()
    # Of documentation alone: no host has it.
    actor._plan = SimpleNamespace(world_size=1, master_addr="198.51.100.7")  # type: ignore[assignment]
    host, port = actor.open_store()
    assert host == "198.51.100.7"
    with socket.create_connection(("127.0.0.1", port)):
        pass
    assert "198.51.100.7 is no address of this host" in capsys.readouterr().err


def test_what_is_for_the_log_only_is_not_passed_on(tmp_path: Path) -> None:
    actor = Rank()
    assert actor.said(5) == (5, "")
    actor._log = log = tmp_path / "rank0.log"
    log.write_text("step 1\n")
    assert actor.said(0) == (7, "step 1")
    log.write_text("step 1\nstep 2\n-- in the log only --\nTraceback (most recent call last):\n")
    offset, text = actor.said(7)
    assert text == "step 2\n"
    assert actor.said(offset) == actor.said(offset, False) == (offset, "")


def test_a_rank_that_has_not_begun_is_asked() -> None:
    assert Rank().beat() == first_beat(-1)
    assert Rank().where() == Whereabouts(stack="not running\n")
    Rank().stop()


def test_a_script_that_does_not_answer_stands_still_and_is_silent() -> None:
    actor, beat = Rank(), dataclasses.replace(first_beat(2), sequence=7)
    answers = iter((None, beat, None))
    script = SimpleNamespace(beat=lambda: next(answers), where=lambda: None)
    actor._script = script  # type: ignore[assignment]
    assert [actor.beat() for _ in range(3)] == [first_beat(-1), beat, beat]
    assert actor.where() is None


def test_the_line_without_end_is_passed_on_once_nothing_will_follow(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_bytes(b"one\ntwo")
    assert lines_since(log, 0, whole=False) == (7, "one\ntwo")
    assert lines_since(log, 7, whole=False) == (7, "")


def test_a_rank_tells_its_hosts_time_by_the_clock_that_it_records_with(tmp_path: Path) -> None:
    actor = Rank()
    before = time.time_ns()
    assert before - 10**7 < actor.now_ns() <= actor._clock.now_ns() < time.time_ns() + 10**7
