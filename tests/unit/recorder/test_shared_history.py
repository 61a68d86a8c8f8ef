"""A program that records the allocator's history itself, under the recorder: both have all that they asked for.

Expected is what a second run of the same program gets from torch's fake without the recorder.
"""

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_ring import FakeCuda

from ray_memprof.recorder.meters import program_history as kept_module
from ray_memprof.recorder.meters import shared_history as module
from ray_memprof.recorder.meters.cuda import CudaMeter
from ray_memprof.recorder.meters.program_history import Kept
from ray_memprof.recorder.problems import Problems

Program = Callable[[FakeCuda, Callable[[], None]], Any]


def seen(snapshot: dict[str, Any]) -> list[list[tuple[Any, ...]]]:
    """What a program finds in a snapshot, without the times."""
    return [
        [
            (event["action"], event["addr"], event["size"], event["user_metadata"], str(event.get("frames")))
            for event in trace
        ]
        for trace in snapshot["device_traces"]
    ]


def alone(program: Program) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        cuda = FakeCuda(num_devices=2)
        cuda.install(patch)
        cuda.start()
        return program(cuda, lambda: None)


def together(
    program: Program, *, stacks: bool = False, own: bool = True, ends: bool = False, loses: bool = False
) -> tuple[Any, list[dict[str, Any]], FakeCuda, Problems]:
    """Run a program under a meter, and take events at its pauses; return its result and the events, too.

    Args:
        program: what runs.
        stacks: whether the recorder takes stacks.
        own: events are taken on the model's thread; False: on another one.
        ends: at a pause the recording ends instead.
        loses: a loss of events must be reported; False: none may be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_EVENTS", 400)
        cuda, problems = FakeCuda(num_devices=2), Problems()
        events: list[dict[str, Any]] = []
        lost: list[int] = []
        cuda.install(patch)
        meter = CudaMeter(0, events=True, stacks=stacks, problems=problems)
        meter.start()
        cuda.start()
        numbers = iter(range(1, 10**6))

        def take() -> None:
            batch = meter.drain()
            lost.append(batch.num_lost)
            events.extend(batch.events)
            if own:
                meter.stamp(next(numbers))
            if ends:
                meter.stop()

        def pause() -> None:
            if own:
                take()
                return
            thread = threading.Thread(target=take)
            thread.start()
            thread.join()

        meter.stamp(0)
        result = program(cuda, pause)
        take()
        meter.stop()
        assert any(lost) == loses
        return result, events, cuda, problems


def actions(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["action"], event["size"]) for event in events]


def simple(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
    """As the documentation of torch tells people to do it."""
    cuda.alloc(1)
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    for size in range(2, 8):
        cuda.free(cuda.alloc(size))
        cuda.event("alloc", 9, size, device=1)
        pause()
    first = torch.cuda.memory._snapshot()
    cuda.alloc(8)
    pause()
    second = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    cuda.alloc(9)
    pause()
    return seen(first), seen(second), seen(torch.cuda.memory._snapshot())


EXPECTED = [("alloc", 1)] + [
    (action, size) for size in range(2, 8) for action in ("alloc", "free_requested", "free_completed")
] + [("alloc", 8), ("alloc", 9)]  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("stacks", [False, True])
def test_both_have_all_that_they_asked_for(own: bool, stacks: bool) -> None:
    result, events, cuda, problems = together(simple, own=own, stacks=stacks)
    assert result == alone(simple)
    assert actions(events) == EXPECTED
    assert problems.texts == ()
    assert not cuda.is_enabled()


def test_frames_are_there_for_whom_asked() -> None:
    """GIVEN a program that wants no stacks and one that wants all THEN we and the program get what each asked for."""

    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history(context=None)
        cuda.free(cuda.alloc(1))
        pause()
        torch.cuda.memory._record_memory_history(context="all", stacks="all")
        cuda.free(cuda.alloc(2))
        pause()
        return seen(torch.cuda.memory._snapshot())

    for stacks in (False, True):
        result, events, cuda, _ = together(program, stacks=stacks)
        assert result == alone(program)
        assert ("all", "all") in {(call[1], call[2]) for call in cuda.calls}
        first = [event for event in events if event["size"] == 1 and event["action"] == "alloc"]
        assert ["frames" in event for event in first] == [stacks]


def test_the_programs_stop_does_not_stop_ours_and_ours_not_the_programs() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history()
        cuda.alloc(1)
        pause()  # where the recording of the rank ends
        cuda.alloc(2)
        found = seen(torch.cuda.memory._snapshot())
        torch.cuda.memory._record_memory_history(None)
        return found

    result, events, cuda, _ = together(program, ends=True)
    assert result == alone(program)
    assert (actions(events), cuda.is_enabled()) == ([("alloc", 1)], False)
    assert torch._C.__dict__.get("_cuda_memorySnapshot") is not cuda.snapshot


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("own", [True, False])
def test_the_program_has_as_many_as_it_asked_for(limit: int, own: bool) -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history(max_entries=limit)
        for size in range(200):
            cuda.alloc(size)
            if size % 20 == 0:
                pause()
        return seen(torch.cuda.memory._snapshot())

    result, events, _, _ = together(program, own=own)
    assert result == alone(program)
    assert len(events) == 200


def test_state_keeps_one_event_and_clearing_begins_anew() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history("state")
        cuda.alloc(1)
        cuda.alloc(2)
        pause()
        state = seen(torch.cuda.memory._snapshot())
        torch.cuda.memory._record_memory_history(clear_history=True)
        cuda.alloc(3)
        pause()
        torch.cuda.memory._record_memory_history()
        cuda.alloc(4)
        return state, seen(torch.cuda.memory._snapshot())

    result, events, _, _ = together(program)
    assert result == alone(program)
    assert [event["size"] for event in events] == [1, 2, 3, 4]


def test_the_older_form_of_the_request_means_the_same() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history(
            True, trace_alloc_max_entries=50, trace_alloc_record_context=True
        )
        cuda.free(cuda.alloc(1))
        pause()
        cuda.alloc(2)
        found = seen(torch.cuda.memory._snapshot())
        torch.cuda.memory._record_memory_history(False)
        cuda.alloc(3)
        return found, seen(torch.cuda.memory._snapshot())

    result, events, _, _ = together(program)
    assert result == alone(program)
    assert {event["size"] for event in events} == {1, 2, 3}


@pytest.mark.skipif(not hasattr(torch.cuda.memory, "_get_memory_metadata"), reason="older torch")
def test_what_the_program_sets_as_metadata_is_its_own_and_spans_are_ours() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history()
        cuda.alloc(1)
        torch.cuda.memory._set_memory_metadata("step 5")
        cuda.alloc(2)
        pause()
        cuda.alloc(3)

        def other() -> None:
            torch.cuda.memory._set_memory_metadata("7")
            cuda.alloc(4)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        told = torch.cuda.memory._get_memory_metadata()
        torch.cuda.memory._set_memory_metadata("")
        cuda.alloc(5)
        return told, seen(torch.cuda.memory._snapshot())

    result, events, _, _ = together(program)
    assert result == alone(program)
    assert [(event["size"], event["user_metadata"]) for event in events] == [
        (1, "0"), (2, "0"), (3, "1"), (4, ""), (5, "1")
    ]  # fmt: skip


def test_a_program_that_does_not_record_sees_nothing_of_ours() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        cuda.alloc(1)
        pause()
        cuda.alloc(2)
        return seen(torch.cuda.memory._snapshot()), torch._C._cuda_isHistoryEnabled()

    result, events, _, _ = together(program)
    assert result == alone(program) == ([[], []], False)
    assert len(events) == 2


def test_a_dump_is_a_file_with_all_of_it(tmp_path: Path) -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history()
        cuda.alloc(1)
        pause()
        cuda.alloc(2)
        torch.cuda.memory._dump_snapshot(str(tmp_path / "dump.pickle"))
        return seen(pickle.loads((tmp_path / "dump.pickle").read_bytes()))

    assert together(program)[0] == alone(program)


def test_who_calls_torch_c_itself_is_told_and_has_its_recording() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch._C._cuda_record_memory_history("all", "all", "all", 1000, False, False, False, [])
        cuda.alloc(1)
        pause()
        cuda.alloc(2)
        return seen(torch._C._cuda_memorySnapshot(None))

    result, events, _, problems = together(program)
    assert result == alone(program)
    assert len(events) == 2
    assert problems.texts == tuple(
        f"{__name__} calls torch._C.{name} itself: its own recording may lack events"
        for name in ("_cuda_record_memory_history", "_cuda_memorySnapshot")
    )


def test_who_took_torchs_functions_before_us_and_empties_the_ring_is_told() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        for size in range(9):
            cuda.alloc(size)
        pause()
        cuda.record("all", None, "python", 1000, True)
        cuda.alloc(9)
        return None

    _, events, _, problems = together(program, own=False)
    assert [event["size"] for event in events] == list(range(10))
    assert problems.texts == (module._TORN,)


def test_a_ring_that_was_too_short_has_more_room_from_then_on() -> None:
    """GIVEN events taken on another thread, once too many between two drains THEN as many are not too many later."""

    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        for num in (5, 500, 5, 500, 500):
            for size in range(num):
                cuda.alloc(size)
            pause()

    _, events, _, problems = together(program, own=False, loses=True)
    assert problems.texts == (module._TORN,)
    assert len(events) == 5 + 400 + 5 + 500 + 500


def test_what_torch_refuses_is_refused_and_changes_nothing() -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        torch.cuda.memory._record_memory_history(max_entries=50)
        cuda.alloc(1)
        with pytest.raises(RuntimeError):
            torch.cuda.memory._record_memory_history(context="stack")
        cuda.alloc(2)
        pause()
        return seen(torch.cuda.memory._snapshot())

    assert together(program)[0] == alone(program)


def test_a_program_that_records_before_cuda_has_started_loses_nothing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        cuda, problems = FakeCuda(), Problems()
        cuda.install(patch)
        meter = CudaMeter(0, events=True, problems=problems)
        meter.start()
        torch.cuda.memory._record_memory_history()
        cuda.start()
        cuda.alloc(1)
        assert [event["size"] for event in meter.drain().events] == [1]
        assert [event[2] for event in seen(torch.cuda.memory._snapshot())[0]] == [1]
        meter.stop()
        assert problems.texts == ()


def test_a_history_that_was_on_before_is_gone_on_with_and_told() -> None:
    with pytest.MonkeyPatch.context() as patch:
        cuda, problems = FakeCuda(), Problems()
        cuda.install(patch)
        torch.cuda.memory._record_memory_history()
        cuda.start()
        cuda.alloc(1)
        meter = CudaMeter(0, events=True, problems=problems)
        meter.start()
        cuda.alloc(2)
        assert [event["size"] for event in meter.drain().events] == [2]
        assert [event[2] for event in seen(torch.cuda.memory._snapshot())[0] if event[0] == "alloc"] == [1, 2]
        meter.stop()
        assert len(problems.texts) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 9)),
        st.tuples(st.sampled_from(["pause", "snapshot", "stop", "clear"]), st.just(0)),
        st.tuples(st.just("record"), st.sampled_from([3, 20, 10**9])),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(steps=STEPS, own=st.booleans(), stacks=st.booleans())
def test_whatever_a_program_records_it_has_what_it_had_without_us(
    steps: list[tuple[str, int]], own: bool, stacks: bool
) -> None:
    def program(cuda: FakeCuda, pause: Callable[[], None]) -> Any:
        found = []
        for step, value in steps:
            if step == "alloc":
                cuda.free(cuda.alloc(value))
            elif step == "pause":
                pause()
            elif step == "snapshot":
                found.append(seen(torch.cuda.memory._snapshot()))
            elif step == "record":
                # Cleared, because torch does not define which older events a shorter ring shows.
                torch.cuda.memory._record_memory_history(max_entries=value, clear_history=True)
            elif step == "clear":
                torch.cuda.memory._record_memory_history(clear_history=True)
            else:
                torch.cuda.memory._record_memory_history(None)
        return found

    result, events, _, _ = together(program, own=own, stacks=stacks)
    assert result == alone(program)
    sizes = [value for step, value in steps if step == "alloc"]
    assert [event["size"] for event in events if event["action"] == "alloc"] == sizes


# --------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize("limit", [10, 100, 250, 10**9])
def test_old_events_go_into_a_file_and_come_back_in_order(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "MOST_IN_MEMORY", 64)
    monkeypatch.setattr(kept_module, "CHUNK", 16)
    monkeypatch.setattr(kept_module, "_FILE_BYTES", 300)
    kept = Kept(Problems())
    for first in range(0, 1000, 7):
        kept.add([{"number": number} for number in range(first, min(first + 7, 1000))], limit)
    assert [event["number"] for event in kept.last(limit)] == list(range(1000))[-limit:]
    assert len(kept._recent) <= 64 + 7
    files = {id(chunk.file): chunk.file.file for chunk in kept._chunks}
    assert not any(file.closed for file in files.values())
    assert (len(files) > 1) == (limit > 100)


def test_without_room_for_a_file_events_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_module, "MOST_IN_MEMORY", 4)
    monkeypatch.setattr(kept_module.tempfile, "TemporaryFile", fails)
    problems = Problems()
    kept = Kept(problems)
    for number in range(50):
        kept.add([{"number": number}], 10**9)
    assert [event["number"] for event in kept.last(10**9)] == list(range(50))
    assert problems.texts == (
        "the program's own history of the allocator stays in memory: OSError: [Errno 28] No space left on device",
    )
