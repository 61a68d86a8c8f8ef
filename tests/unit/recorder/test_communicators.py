"""What grows outside the allocator while a process group makes calls is that group's, whoever makes the calls."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch.distributed as dist

from ray_memprof.recorder import communicators
from ray_memprof.recorder.communicators import Communicators, ranks_text
from ray_memprof.recorder.ledger import Ledger, Where
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Communicator

TRAIN = Where(True, 1, "train")


@dataclass
class FakeGroup:
    """As torch's ProcessGroup; no GPU has seen what its memory_stats() tells."""

    group_name: str = "0"
    backend: str = "nccl"
    bound_device_id: int | None = None
    calls: int = 0
    total: int | None = None
    """NCCL's own figure; None: torch, or NCCL, has none."""

    def size(self) -> int:
        return 2

    def name(self) -> str:
        return self.backend

    def _get_sequence_number_for_group(self) -> int:
        return self.calls

    def _get_backend(self, device: Any) -> "FakeGroup":
        assert device.type == "cuda"
        return self

    def memory_stats(self) -> dict[str, int]:
        if self.total is None:
            raise RuntimeError("getMemoryStats() requires NCCL 2.29.7 or later")
        return {"suspend": 0, "suspended": 0, "persist": 0, "total": self.total}


@dataclass
class Desk:
    """The groups of a process, and its books."""

    groups: list[Any] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    now: int = 0

    def __post_init__(self) -> None:
        self.communicators = Communicators(self.problems.append)

    def start(self, used: int = 500) -> "Desk":
        self.book(used, Where(True))
        self.rows()
        return self

    def book(self, used: int, where: Where = TRAIN, **how: Any) -> dict[str, int]:
        self.now += 1
        reading = Reading(self.now, 0, 0, 0, used, 0, -1, -1, -1, 0, 0, 0)
        entries = self.communicators.book(self.ledger, reading, where, **how)
        return {entry.account: entry.bytes for entry in entries}

    def rows(self, **how: Any) -> list[tuple[Any, ...]]:
        rows = self.communicators.rows(self.now, **how)
        return [(row.group, row.num_calls, row.bytes, row.shared_bytes, row.how_known) for row in rows]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk()
    monkeypatch.setattr(communicators, "_groups", lambda: list(made.groups))
    return made


def test_without_groups_the_books_are_as_before_and_there_are_no_rows(desk: Desk) -> None:
    assert desk.book(500, Where(True)) == {"context": 500}
    assert desk.book(520) == {"libraries": 20}
    assert desk.rows(is_last=True) == []


def test_calls_of_cpp_make_growth_the_groups_and_not_a_librarys(desk: Desk) -> None:
    """GIVEN nanoGPT's case: the reducer of DDP calls NCCL, in a span that runs for the first time."""
    desk.groups = [group := FakeGroup()]
    desk.start()
    assert desk.book(510) == {"libraries": 10}, "the group has made no call"
    group.calls = 3
    assert desk.book(1510) == {"nccl": 1000}
    assert desk.rows() == [("0", 3, 1000, 1000, "growth")], "a library may be in it"
    # WHEN the span is known THEN no library is loaded any more
    desk.ledger.close("train")
    group.calls = 5
    assert desk.book(1516) == {"nccl": 6}
    assert desk.rows() == [("0", 5, 1006, 1000, "growth")]
    assert desk.book(1520) == {}, "no call was made, so nothing explains this growth"
    group.calls = 9
    assert (desk.book(1520), desk.rows()) == ({}, [])
    assert desk.rows(is_last=True) == [("0", 9, 1006, 1000, "growth")]


def test_a_call_before_the_last_reading_does_not_explain_later_growth(desk: Desk) -> None:
    desk.groups = [group := FakeGroup()]
    desk.start()
    group.calls = 1
    desk.book(500)
    assert desk.book(530) == {"libraries": 30}


def test_growth_across_a_watched_call_is_the_groups_alone(desk: Desk) -> None:
    desk.groups = [FakeGroup("0", calls=4), one := FakeGroup("1")]
    desk.start()
    one.calls = 1
    assert desk.book(700, account="nccl", group="1") == {"nccl": 200}
    # sends and receives in a batch are not in the group's count: its name is what is known
    assert desk.book(750, account="nccl", group="1") == {"nccl": 50}
    assert desk.rows() == [("1", 1, 250, 0, "growth")]


def test_of_several_that_called_the_one_that_did_so_first_has_grown(desk: Desk) -> None:
    desk.groups = [old := FakeGroup("0"), one := FakeGroup("1"), two := FakeGroup("2")]
    desk.start()
    old.calls = 1
    desk.book(600)
    old.calls, one.calls = 2, 1
    desk.book(640)
    assert desk.rows() == [("0", 2, 100, 100, "growth"), ("1", 1, 40, 40, "growth")]
    # WHEN nobody can tell THEN nobody says so
    one.calls, two.calls = 2, 1
    desk.book(647)
    one.calls, old.calls = 3, 3
    desk.book(649)
    assert desk.rows() == [("2", 1, 7, 7, "growth"), ("", 0, 2, 2, "growth")]


def test_a_group_with_a_device_has_its_communicator_at_once_and_one_without_takes_nothing(desk: Desk) -> None:
    desk.start()
    desk.groups = [FakeGroup("lazy")]
    assert desk.book(510) == {"libraries": 10}
    desk.groups = [*desk.groups, FakeGroup("eager", bound_device_id=0)]
    assert desk.book(870) == {"nccl": 360}
    assert desk.rows() == [("lazy", 0, 0, 0, "none"), ("eager", 0, 360, 360, "growth")]


def test_what_a_destroyed_group_gives_back_is_its_own(desk: Desk) -> None:
    desk.groups = [FakeGroup("0"), one := FakeGroup("1")]
    desk.start()
    one.calls = 1
    desk.book(900, account="nccl", group="1")
    desk.groups = desk.groups[:1]
    assert desk.book(600, account="nccl", group="") == {"nccl": -300}
    assert desk.rows() == [("1", 1, 100, 0, "growth")]
    assert desk.rows(is_last=True) == []


def test_groups_that_end_at_once_leave_no_row_without_a_name(desk: Desk) -> None:
    desk.groups = [FakeGroup("0", backend="gloo"), FakeGroup("1", backend="gloo")]
    desk.start()
    desk.book(540, account="nccl", group="1")
    desk.groups = []
    desk.book(520, account="nccl", group="")
    assert [(name, held) for name, _, held, *_ in desk.rows()] == [("1", 40)]


def test_what_groups_of_gloo_take_at_once_is_not_called_nccl(desk: Desk) -> None:
    desk.groups = [FakeGroup("0", backend="gloo"), FakeGroup("1", backend="gloo")]
    desk.start()
    desk.book(540, account="nccl", group="")
    (row,) = [one for one in desk.communicators.rows(9) if not one.group]
    assert (row.backend, row.bytes) == ("gloo", 40)
    # One group alone is the one.
    desk.groups = desk.groups[:1]
    desk.book(560, account="nccl", group="")
    assert [(one.group, one.bytes) for one in desk.communicators.rows(10) if one.bytes] == [("0", 20)]


def test_a_group_of_gloo_holds_nothing_of_the_device(desk: Desk) -> None:
    desk.groups = [FakeGroup("0", backend="gloo", calls=7)]
    desk.book(500, Where(True))
    assert desk.rows() == [("0", 0, 0, 0, "none")]
    assert desk.book(600) == {"libraries": 100}


# --------------------------------------------------------------------------------
# Where the context is made


def test_a_context_that_came_with_a_communicator_is_not_split_without_a_measurement(desk: Desk) -> None:
    desk.groups = [group := FakeGroup()]
    desk.book(0, Where(False))
    group.calls = 1
    assert not desk.communicators.is_quiet()
    assert desk.book(0, Where(False)) == {}, "CUDA is not on yet"
    assert desk.book(1150) == {"context": 1150}
    assert desk.rows() == [("0", 1, None, 0, "formula")]
    group.calls = 2
    assert desk.book(1170) == {"nccl": 20}
    assert desk.rows() == [], "a part of it would not be what it holds"


def test_a_context_that_was_seen_before_is_known_apart(desk: Desk) -> None:
    desk.groups = [group := FakeGroup()]
    desk.book(0, Where(False))
    assert desk.communicators.is_quiet()
    assert desk.book(540, may_ask=False) == {"context": 540}
    group.calls = 1
    assert desk.book(1150) == {"nccl": 610}


# --------------------------------------------------------------------------------
# NCCL's own figure, on a fake backend


def test_nccls_own_figure_parts_it_from_context_and_libraries(desk: Desk) -> None:
    desk.groups = [group := FakeGroup(total=360), FakeGroup("idle")]
    desk.book(0, Where(False))
    group.calls = 1
    assert desk.book(900) == {"nccl": 360, "context": 540}
    group.calls, group.total = 2, 400
    assert desk.book(1000) == {"nccl": 40, "libraries": 60}
    assert desk.rows() == [("0", 2, 400, 0, "own"), ("idle", 0, 0, 0, "none")]


def test_a_thread_that_must_not_wait_does_not_ask_nccl(desk: Desk) -> None:
    desk.groups = [group := FakeGroup(total=360)]
    desk.start()
    group.calls = 1
    assert desk.book(900, may_ask=False) == {"nccl": 400}
    assert desk.rows() == [("0", 1, 400, 400, "growth")]
    # WHEN it is asked later THEN nothing is booked twice
    group.calls, group.total = 2, 410
    assert desk.book(950) == {"nccl": 10, "libraries": 40}
    assert desk.rows() == [("0", 2, 410, 0, "own")]
    desk.groups = []
    assert desk.book(560, account="nccl") == {"nccl": -390}
    assert desk.rows() == [("0", 2, 20, 0, "own")]


def test_a_figure_that_comes_late_does_not_count_what_the_context_has(desk: Desk) -> None:
    desk.groups = [group := FakeGroup()]
    desk.book(0, Where(False))
    group.calls = 1
    assert desk.book(900) == {"context": 900}
    group.calls, group.total = 2, 380
    assert desk.book(950) == {"libraries": 50}
    assert desk.rows() == [("0", 2, 380, 0, "own")]


def test_a_torch_without_the_figure_is_asked_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.delattr(FakeGroup, "memory_stats")
    monkeypatch.setattr(FakeGroup, "_get_backend", lambda group, device: asked.append(device.type))
    desk.groups = [group := FakeGroup()]
    desk.start()
    for used in (600, 700):
        group.calls += 1
        desk.book(used)
    assert asked == ["cuda"]
    assert desk.problems == []


def test_a_group_that_does_not_count_is_a_problem_and_no_error(desk: Desk) -> None:
    class Broken(FakeGroup):
        def _get_sequence_number_for_group(self) -> int:
            raise RuntimeError("gone")

    desk.groups = [Broken()]
    assert desk.start().book(510) == {"libraries": 10}
    assert desk.problems == ["calls of a process group are not counted: RuntimeError: gone"] * 2


# --------------------------------------------------------------------------------
# torch's own groups


@pytest.mark.usefixtures("group")
def test_groups_of_torch_are_found_with_name_backend_and_ranks() -> None:
    found = Communicators(pytest.fail)
    ledger, reading = Ledger(), Reading(5, 0, 0, 0, 7, 0, -1, -1, -1, 0, 0, 0)
    assert [entry.account for entry in found.book(ledger, reading, TRAIN)] == ["context"]
    assert dist.group.WORLD is not None
    name = str(dist.group.WORLD.group_name)
    assert found.rows(5) == [Communicator(5, name, "gloo", 1, "0", 0, 0, 0, "none")]
    more = dist.new_group([0])
    found.book(ledger, reading, TRAIN)
    assert [row.group for row in found.rows(6)] == [more.group_name]  # type: ignore[union-attr]
    dist.destroy_process_group()
    found.book(ledger, reading, TRAIN)
    assert found.rows(7, is_last=True) == []


@pytest.mark.parametrize(
    ("ranks", "text"), [([], ""), ([3], "3"), ([0, 1], "0-1"), ([8, 0, 1, 2, 5], "0-2,5,8")]
)
def test_ranks_are_told_by_ranges(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text
