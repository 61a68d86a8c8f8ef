"""Each collective is recorded once, with bytes and group; afterwards torch.distributed is as it was before."""

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ray_memprof.recorder import collectives
from ray_memprof.recorder.collectives import OPS, joined, watching
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.status import Group

KIB = 1024
NOW = Reading(1, 0, 0, 0, 0, 0, -1, -1, -1, 0, 0, 0)


class Notebook:
    """A listener that keeps what it is told."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.lines: list[tuple[str, int, int]] = []
        self.groups: list[str] = []
        self.problems: list[str] = []
        self.num_begun = 0
        self._deaf = deaf

    def begin_collective(self) -> Reading | None:
        self.num_begun += 1
        return None if self._deaf else NOW

    def end_collective(
        self, before: Reading, *, op: str, num_bytes: int, group: str, group_size: int
    ) -> None:
        assert before is NOW
        self.lines.append((op, num_bytes, group_size))
        self.groups.append(group)

    def problem(self, text: str) -> None:
        self.problems.append(text)


def kib(number: int = 1) -> torch.Tensor:
    return torch.zeros(number * KIB, dtype=torch.uint8)


def test_without_a_collective_nothing_is_heard_and_every_function_is_put_back() -> None:
    before = dict(vars(dist)), dict(vars(dist.distributed_c10d))
    notebook = Notebook()
    with watching(notebook):
        heard = {op for op in OPS if vars(dist).get(op) is not before[0].get(op)}
        assert all(getattr(dist.distributed_c10d, op) is getattr(dist, op) for op in heard)
    assert set(OPS) - heard <= {"all_gather_single", "reduce_scatter_single"}, "these came with torch 2.13"
    assert (vars(dist), vars(dist.distributed_c10d)) == before
    assert (notebook.lines, notebook.num_begun) == ([], 0)


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning"
)  # of deprecated names, which must be recorded all the same
def test_each_call_is_a_line_with_the_larger_of_input_and_output() -> None:
    notebook = Notebook()
    with watching(notebook):
        dist.all_reduce(kib())
        dist.broadcast(kib(2), src=0)
        dist.barrier()
        dist.all_gather_into_tensor(kib(3), kib(3))
        dist.all_gather([kib()], kib())
        dist.reduce_scatter_tensor(output=kib(4), input=kib(4), group=dist.group.WORLD)
        dist.all_to_all_single(torch.zeros(KIB), torch.zeros(KIB))
    assert notebook.lines == [
        ("all_reduce", KIB, 1),
        ("broadcast", 2 * KIB, 1),
        ("barrier", 0, 1),
        ("all_gather_into_tensor", 3 * KIB, 1),
        ("all_gather", KIB, 1),
        ("reduce_scatter_tensor", 4 * KIB, 1),
        ("all_to_all_single", 4 * KIB, 1),
    ]


def test_the_default_group_is_heard_coming_and_going(tmp_path: Path) -> None:
    notebook = Notebook()
    with watching(notebook):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        dist.destroy_process_group()
    assert notebook.lines == [("init_process_group", 0, 1), ("destroy_process_group", 0, 0)]


@pytest.mark.usefixtures("group")
def test_a_new_group_is_told_by_its_own_name_and_given_by_place_or_by_word() -> None:
    notebook = Notebook()
    with watching(notebook):
        group = dist.new_group([0])
        dist.all_reduce(kib(), dist.ReduceOp.SUM, group)
        dist.all_reduce(kib(), group=group)
        dist.all_reduce(kib())
        dist.destroy_process_group(group)
    assert group is not None
    assert notebook.lines == [
        ("new_group", 0, 1), *[("all_reduce", KIB, 1)] * 3, ("destroy_process_group", 0, 1)
    ]  # fmt: skip
    made, by_place, by_word, default, destroyed = notebook.groups
    assert made == by_place == by_word == destroyed == group.group_name != default


@pytest.mark.usefixtures("group")
def test_what_a_collective_calls_itself_is_part_of_it() -> None:
    notebook = Notebook()
    with watching(notebook):
        dist.broadcast_object_list([{"a": 1}], src=0)
    assert [op for op, _, _ in notebook.lines] == ["broadcast", "broadcast"], "sizes, then bytes"

    # GIVEN a new_group that calls a collective inside
    notebook.lines.clear()
    inner: list[str] = []
    plain = dist.new_group

    def new_group(*args: object, **kwargs: object) -> object:
        dist.all_reduce(kib())
        inner.append("reached")
        return plain(*args, **kwargs)

    dist.new_group = dist.distributed_c10d.new_group = new_group
    try:
        with watching(notebook):
            dist.new_group([0])
        assert dist.new_group is new_group
    finally:
        dist.new_group = dist.distributed_c10d.new_group = plain
    assert inner == ["reached"]
    assert notebook.lines == [("new_group", 0, 1)]


@pytest.mark.usefixtures("group")
def test_a_collective_that_fails_is_no_line_and_the_next_one_is() -> None:
    notebook = Notebook()
    with watching(notebook):
        with pytest.raises(TypeError, match="Invalid function argument"):
            dist.all_reduce("no tensor")  # type: ignore[arg-type]
        dist.all_reduce(kib())
    assert notebook.lines == [("all_reduce", KIB, 1)]


@pytest.mark.usefixtures("group")
def test_what_ddp_calls_in_cpp_when_it_begins_is_heard() -> None:
    notebook = Notebook()
    with watching(notebook):
        before = dict(vars(dist))
        torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2, bias=False))
    assert notebook.lines == [("_verify_params_across_processes", 0, 1), ("_broadcast_coalesced", 32, 1)]
    assert notebook.problems == []
    assert dist._broadcast_coalesced is not before["_broadcast_coalesced"]


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ({}, []),
        ({"device_id": torch.device("cuda", 1)}, ["cuda:1"]),
        ({"device_id": torch.device("cuda", 1), "backend": "cpu:gloo,cuda:nccl"}, ["cuda:1"]),
        ({"device_id": torch.device("cuda", 1), "backend": "gloo"}, []),
        ({"device_id": torch.device("cpu")}, []),
    ],
)
def test_a_group_that_makes_the_context_at_once_finds_it_made(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], made: list[str]
) -> None:
    """GIVEN a call that makes the CUDA context and a communicator THEN the context is there before the reading."""
    order: list[str] = []

    def new_group(ranks: Any = None, backend: Any = None, device_id: Any = None) -> None:
        order.append("called")

    class Reader(Notebook):
        def begin_collective(self) -> Reading | None:
            order.append("read")
            return NOW

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: order.append(str(device)))
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist.distributed_c10d, "new_group", new_group)
    with watching(Reader()):
        dist.new_group(**arguments)
    assert order == [*made, "read", "called"]


@pytest.mark.usefixtures("group")
def test_an_error_of_the_block_puts_every_function_back() -> None:
    before = dist.all_reduce
    with pytest.raises(KeyError), watching(Notebook()):
        raise KeyError
    assert dist.all_reduce is before


@pytest.mark.usefixtures("group")
def test_a_listener_that_records_nothing_costs_the_call_nothing() -> None:
    notebook = Notebook(deaf=True)
    with watching(notebook):
        dist.all_reduce(kib())
    assert (notebook.lines, notebook.num_begun) == ([], 1)


@pytest.mark.usefixtures("group")
def test_torch_takes_sends_and_receives_whenever_their_functions_were_imported() -> None:
    isend = dist.isend
    with watching(Notebook()):
        assert dist.P2POp(isend, kib(), 0).op is dist.P2POp(dist.isend, kib(), 0).op


@pytest.mark.usefixtures("group")
def test_a_function_taken_by_name_under_the_watch_is_silent_after_it() -> None:
    notebook = Notebook()
    with watching(notebook):
        all_reduce = dist.all_reduce
        all_reduce(kib())
    all_reduce(kib())
    assert (notebook.lines, notebook.num_begun) == ([("all_reduce", KIB, 1)], 1)


@pytest.mark.usefixtures("group")
def test_other_threads_are_not_held_up() -> None:
    with watching(Notebook()) as _:
        thread = threading.Thread(target=lambda: dist.all_reduce(kib()))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.usefixtures("group")
def test_groups_whose_collectives_wait_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN the same groups under another name THEN they are counted. For NCCL see tests/gpu/test_ranks_gpu.py."""
    pair = dist.new_group([0])
    assert pair is not None
    assert joined() == {}
    default, second = (Group(name=group.group_name, first_rank=0) for group in (dist.group.WORLD, pair))
    monkeypatch.setattr(dist.ProcessGroup, "name", lambda group: "other")
    before = joined()
    dist.all_reduce(kib())
    thread = threading.Thread(target=lambda: [dist.all_reduce(kib(), group=pair) for _ in range(2)])
    thread.start()
    thread.join()
    assert {group: number - before[group] for group, number in joined().items()} == {default: 1, second: 2}


def test_gloo_is_not_counted_by_whatever_name_it_was_asked_for(tmp_path: Path) -> None:
    dist.init_process_group("cpu:gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert joined() == {}
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("function", ["name", "_get_sequence_number_for_group"])
def test_a_group_that_cannot_be_counted_is_left_out(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a program's own class that lacks an attribute of torch's THEN the rank still says where it is."""

    def fails(group: dist.ProcessGroup) -> str:
        raise TypeError(function)

    monkeypatch.setattr(dist.ProcessGroup, "name", lambda group: "other")
    monkeypatch.setattr(dist.ProcessGroup, function, fails)
    assert joined() == {}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("operations", [None, 5, [None], [SimpleNamespace(group=None)]])
def test_what_is_wrong_with_a_batch_torch_says_itself(operations: object) -> None:
    with watching(Notebook()), pytest.raises(ValueError, match="Invalid ``p2p_op_list``"):
        dist.batch_isend_irecv(operations)  # type: ignore[arg-type]


def batched(peer: int, backend: str = "other") -> list[Any]:
    """A send and a receive with `peer`."""
    return [SimpleNamespace(group=SimpleNamespace(group_name="7", name=lambda: backend), peer=peer)] * 2


def between(one: int, other: int) -> Group:
    return Group(name=f"7 between ranks {one} and {other}", first_rank=one, second_rank=other)


@pytest.fixture
def no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank has nobody to send to."""
    monkeypatch.setattr(collectives, "_passed", Counter())
    for module in (dist, dist.distributed_c10d):
        monkeypatch.setattr(module, "batch_isend_irecv", lambda p2p_op_list: [])


@pytest.mark.usefixtures("group", "no_batches")
def test_a_batch_counts_while_another_thread_is_in_a_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor: torch.Tensor) -> None:
        thread = threading.Thread(target=lambda: dist.batch_isend_irecv(batched(3)))
        thread.start()
        thread.join(20)

    for module in (dist, dist.distributed_c10d):
        monkeypatch.setattr(module, "all_reduce", all_reduce)
    with watching(Notebook()):
        dist.all_reduce(kib())
    assert joined() == {between(0, 3): 2}


@pytest.mark.usefixtures("group", "no_batches")
def test_batches_count_for_each_pair_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(Notebook(deaf=True)):
        dist.batch_isend_irecv([*batched(1), *batched(3)])
        dist.batch_isend_irecv(p2p_op_list=batched(3))
        dist.batch_isend_irecv(batched(3, "gloo"))
        monkeypatch.setattr(dist, "get_rank", lambda: 5)
        dist.batch_isend_irecv(batched(3))
    dist.batch_isend_irecv(batched(3))  # outside of watching(): not counted
    assert joined() == {between(0, 1): 2, between(0, 3): 4, between(3, 5): 2}


def test_without_a_group_nothing_is_counted() -> None:
    assert joined() == {}


def test_what_cannot_be_told_of_a_call_does_not_reach_who_called(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise AttributeError("a class of the program's own")

    notebook = Notebook()
    monkeypatch.setattr(collectives, "_num_bytes", fails)
    with watching(notebook):
        tensor = kib()
        dist.all_reduce(tensor)
    assert notebook.lines == [("all_reduce", 0, 0)]
    assert notebook.problems == ["group and bytes of all_reduce are unknown: AttributeError"]
