"""The recorder: spans and readings in, whole rows out, never an error into the model. End to end: test_recording.py."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from desks import at_work, desk_of
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.errors import DiskFull
from ray_memprof.recorder.collectives import watching
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.rows import Sample
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.recorder.status import ReplayCheck
from ray_memprof.recorder.writer import Writer
from ray_memprof.store.schema import SPANS

SAMPLE = Sample(1, 2, None, 40, 5, 6, 7, None)
COST = ("recorder_ns", "longest_pause_ns", "recorder_bytes")


def without_cost(check: ReplayCheck | None) -> ReplayCheck:
    assert check is not None
    return replace(check, **dict.fromkeys(COST, 0))


class Watched(dict[int, str]):
    """A dictionary that notes which threads change it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)

    def __setitem__(self, key: int, value: str) -> None:
        self._note()
        super().__setitem__(key, value)

    def update(self, *given: Any, **named: Any) -> None:
        self._note()
        super().update(*given, **named)

    def pop(self, *given: Any) -> Any:
        self._note()
        return super().pop(*given)


# --------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("events", [False, True])
def test_nothing_happened_is_no_row_and_a_check_of_nothing(events: bool) -> None:
    with at_work(events=events) as desk:
        assert desk.recorder.check() is None
        beat = desk.recorder.beat()
        assert (beat.path, beat.stage, beat.step, beat.num_steps) == ("", "", -1, -1)
    assert (desk.store.rows, desk.store.is_closed, desk.meter.calls) == ({}, True, ["start", "stop"])
    assert without_cost(desk.recorder.check()) == ReplayCheck(
        num_events=0, num_lost_events=0, num_checks=0, max_error_bytes=0, allocated_peak_bytes=0,
        replayed_allocated_peak_bytes=0, reserved_peak_bytes=0, replayed_reserved_peak_bytes=0,
        recorder_ns=0, longest_pause_ns=0, recorder_bytes=0,
    )  # fmt: skip
    assert desk.recorder.failure() is None


def test_a_span_is_a_whole_row() -> None:
    with at_work() as desk:
        desk.meter.alloc(100)
        with span("decode"):
            desk.meter.alloc(30)
            desk.meter.alloc(40)
            desk.meter.free(3, 40)
    (row,) = desk.store.rows["spans"]
    assert row.pop("recorder_ns") > 0
    assert row == {
        "span_id": 1, "parent_id": 0, "path": "decode", "name": "decode", "stage": "decode", "component": "vae",
            "module": None,
        "step": None, "block": None, "branch": None, "depth": 0, "start_ns": 2, "end_ns": 3, "failed": False,
        **ends("allocated", 100, 130, 170), **ends("reserved", 100, 130, 170), **ends("active", 100, 130, 170),
        # The device was not read between the ends: 170 may have been in use, 130 was seen.
        **ends("device_used", 100, 130, 130), "device_used_bound_bytes": 170, "num_samples": 0,
        **ends("host_rss", 9, 9, 9), "num_allocs": 2, "num_segments": 0, "num_retries": 0,
    }  # fmt: skip
    assert set(row) | {"recorder_ns"} == {column.name for column in SPANS.columns}


def ends(what: str, start: int, end: int, peak: int) -> dict[str, int]:
    return {f"{what}_start_bytes": start, f"{what}_end_bytes": end, f"{what}_peak_bytes": peak}


def test_what_a_span_does_not_say_it_has_from_the_one_around_it() -> None:
    with at_work() as desk:
        with span("denoise", step=3, branch="cond"):
            with span("dit.block", index=7):
                with span("comm.ulysses"):
                    pass
                with span("module", component="Block.attn"):
                    pass
        with span("vae.up", index=2):
            pass
    names = ("span_id", "parent_id", "depth", "stage", "component", "step", "block", "branch")
    assert {path: tuple(row[name] for name in names) for path, row in desk.spans.items()} == {
        "denoise": (1, 0, 0, "denoise", "dit", 3, None, "cond"),
        "denoise/dit.block": (2, 1, 1, "denoise", "dit", 3, 7, "cond"),
        "denoise/dit.block/comm.ulysses": (3, 2, 2, "denoise", "dit", 3, 7, "cond"),
        "denoise/dit.block/module": (4, 2, 2, "denoise", "Block.attn", 3, None, "cond"),
        "vae.up": (5, 0, 0, "vae.up", "vae", None, None, None),
    }
    assert list(desk.spans) == [
        "denoise/dit.block/comm.ulysses", "denoise/dit.block/module", "denoise/dit.block", "denoise", "vae.up"
    ]  # fmt: skip


@pytest.mark.parametrize("events", [False, True])
def test_a_peak_inside_a_span_is_one_of_all_around_it_and_of_none_beside_it(events: bool) -> None:
    with at_work(events=events) as desk:
        with span("denoise"):
            with span("dit.block"):
                desk.meter.alloc(1000)
                desk.meter.free(1, 1000)
            with span("dit.head"):
                desk.meter.alloc(10)
            desk.meter.free(2, 10)
        with span("decode"):
            desk.meter.alloc(20)
    peaks = {path: row["allocated_peak_bytes"] for path, row in desk.spans.items()}
    assert peaks == {"denoise/dit.block": 1000, "denoise/dit.head": 10, "denoise": 1000, "decode": 20}


def test_a_peak_between_two_spans_is_the_one_around_them_alone() -> None:
    with at_work(events=False) as desk, span("denoise"):
        with span("dit.embed"):
            desk.meter.alloc(1)
        desk.meter.alloc(50)
        desk.meter.free(2, 50)
        with span("dit.head"):
            pass
    peaks = {path: row["allocated_peak_bytes"] for path, row in desk.spans.items()}
    assert peaks == {"denoise/dit.embed": 1, "denoise/dit.head": 1, "denoise": 51}


def test_only_the_thread_that_writes_changes_what_the_replay_looks_up() -> None:
    categories = Watched()
    replay = Replay(category_of=lambda span_id: categories.get(span_id, "activation"))
    recorder = Recorder(0, FakeMeter(), Scribe(Writer(FakeStore(), replay, categories=categories)))  # type: ignore[arg-type]
    recorder.start()
    with listening(recorder), span("load"):
        pass
    recorder.close()
    assert (categories.threads, categories) == ({"scribe"}, {})


def test_events_name_their_span_and_the_category_of_its_name() -> None:
    with at_work() as desk:
        with span("load.t5"):
            desk.meter.alloc(5)
        desk.meter.free(1, 5)
        with span("save"):
            desk.meter.alloc(6)
    rows = [
        (row["seq"], row["action"], row["size_bytes"], row["span_id"], row["category"])
        for row in desk.store.rows["allocs"]
    ]
    assert rows == [
        (0, "alloc", 5, 1, "weight"),
        (1, "free_requested", 5, 0, "weight"),
        (2, "free_completed", 5, 0, "weight"),
        (3, "alloc", 6, 2, "output"),
    ]
    assert without_cost(desk.recorder.check()) == ReplayCheck(
        num_events=4, num_lost_events=0, num_checks=1, max_error_bytes=0, allocated_peak_bytes=6,
        replayed_allocated_peak_bytes=6, reserved_peak_bytes=6, replayed_reserved_peak_bytes=6,
        recorder_ns=0, longest_pause_ns=0, recorder_bytes=0,
    )  # fmt: skip


def test_what_recording_costs_is_a_column_of_the_span_it_held_up() -> None:
    with at_work() as desk, span("decode"):
        pass
    check = desk.recorder.check()
    assert check is not None
    assert check.recorder_ns >= check.longest_pause_ns > 0
    assert 0 < desk.spans["decode"]["recorder_ns"] <= check.recorder_ns


def test_growth_outside_the_allocator_goes_into_the_ledger() -> None:
    desk = desk_of()
    desk.meter.is_on, desk.meter.device_used = False, 7
    desk.recorder.start()
    with listening(desk.recorder):
        with span("device.init"):
            desk.meter.is_on, desk.meter.device_used = True, 507
        for _ in range(2):
            with span("decode"):
                desk.meter.device_used += 10
        with span("comm.init"):
            desk.meter.device_used += 100
        desk.meter.device_used += 1
    desk.recorder.close()
    assert desk.ledger() == [(0, "others", 7), (1, "context", 500), (2, "libraries", 10), (4, "nccl", 100)]


def test_a_sample_is_a_row_and_tells_what_others_hold() -> None:
    with at_work() as desk:
        desk.meter.device_used = 40
        desk.recorder.tick(SAMPLE)
        with span("decode"):
            pass
    assert [row["others_used_bytes"] for row in desk.store.rows["samples"]] == [40]
    assert desk.ledger() == [(0, "others", 40)]


def test_host_memory_that_came_and_went_counts_for_the_span_in_which_a_sample_saw_it() -> None:
    """GIVEN a script that builds a model on the host and moves it away before its first span ends."""
    with at_work() as desk:
        with span("script"):
            begun = desk.meter.now
            with span("load.dit"):
                # Taken before load.dit began, recorded after: the sample belongs to the script's span.
                desk.recorder.tick(replace(SAMPLE, t_ns=begun, host_rss_bytes=60))
                desk.recorder.tick(replace(SAMPLE, t_ns=desk.meter.now, host_rss_bytes=50))
            with span("denoise"):
                pass
        with span("decode"):
            desk.recorder.tick(replace(SAMPLE, t_ns=begun, host_rss_bytes=70))  # late: its span has ended
    peaks = {path: row["host_rss_peak_bytes"] for path, row in desk.spans.items()}
    assert peaks == {"script": 70, "script/load.dit": 50, "script/denoise": 9, "decode": 9}


def test_a_collective_belongs_to_the_innermost_span_that_is_open() -> None:
    with at_work() as desk, span("denoise"):
        with span("dit.forward"):
            before = desk.recorder.begin_collective()
            assert before is not None
            desk.recorder.end_collective(before, op="barrier", num_bytes=0, group="0", group_size=1)
        before = desk.recorder.begin_collective()
        assert before is not None
        desk.recorder.end_collective(before, op="barrier", num_bytes=0, group="0", group_size=1)
    names = {row["span_id"]: row["name"] for row in desk.store.rows["spans"]}
    assert [names[row["span_id"]] for row in desk.store.rows["collectives"]] == ["dit.forward", "denoise"]


def test_a_collective_is_a_row_with_the_growth_across_it(tmp_path: Path) -> None:
    with at_work() as desk, watching(desk.recorder):
        desk.recorder.tick(replace(SAMPLE, others_used_bytes=0))
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        with span("denoise"):
            original = desk.meter.read

            def read() -> Any:
                desk.meter.device_used += 5
                return original()

            desk.meter.read = read  # type: ignore[method-assign]
            dist.barrier()
            desk.meter.read = original  # type: ignore[method-assign]
        thread = threading.Thread(target=dist.barrier)  # not the model's: no row
        thread.start()
        thread.join()
        dist.destroy_process_group()
    rows = [
        (row["op"], row["span_id"], row["bytes"], row["group_size"], row["non_torch_growth_bytes"])
        for row in desk.store.rows["collectives"]
    ]
    assert rows == [
        ("init_process_group", 0, 0, 1, 0), ("barrier", 1, 0, 1, 5), ("destroy_process_group", 0, 0, 0, 0)
    ]  # fmt: skip
    assert desk.ledger() == [(1, "libraries", 5), (1, "nccl", 5)]


# --------------------------------------------------------------------------------
# Failures


def test_an_exception_marks_every_span_it_leaves_and_failure_names_the_innermost() -> None:
    with at_work() as desk:
        with pytest.raises(KeyError), span("denoise", step=4), span("dit.block"):
            desk.meter.alloc(9)
            raise KeyError
    assert {path: row["failed"] for path, row in desk.spans.items()} == {
        "denoise/dit.block": True, "denoise": True
    }  # fmt: skip
    assert desk.recorder.failure() == ("denoise/dit.block", 4, 9, 9)


def test_the_first_step_is_a_step() -> None:
    with at_work() as desk:
        with pytest.raises(KeyError), span("denoise", step=0), span("dit.block"):
            assert desk.recorder.beat().step == 0
            desk.meter.alloc(9)
            raise KeyError
    assert [row["step"] for row in desk.spans.values()] == [0, 0]
    assert desk.recorder.failure() == ("denoise/dit.block", 0, 9, 9)


def test_what_the_device_had_in_use_when_the_exception_came() -> None:
    with at_work() as desk:
        assert desk.recorder.device_used_at_failure() is None
        with pytest.raises(KeyError), span("denoise"), span("dit.block"):
            desk.meter.alloc(9)
            raise KeyError
        used = desk.recorder.beat().device_used_bytes
        desk.meter.alloc(90)
    assert desk.recorder.device_used_at_failure() == used > 0


def test_a_span_that_tidies_up_behind_an_exception_does_not_hide_it() -> None:
    with at_work() as desk, pytest.raises(KeyError), span("denoise"):
        try:
            with span("dit.block"):
                raise KeyError
        finally:
            with span("residency.offload"):
                pass
    assert desk.recorder.failure() == ("denoise/dit.block", -1, 0, 0)


def test_an_exception_that_the_span_around_it_handled_is_no_failure() -> None:
    with at_work() as desk, span("denoise"):
        with pytest.raises(KeyError), span("dit.block"):
            raise KeyError
    assert desk.recorder.failure() is None


def test_the_exception_after_a_handled_one_is_the_failure() -> None:
    with at_work() as desk, pytest.raises(ValueError, match="second"), span("denoise"):
        with pytest.raises(KeyError), span("dit.block"):
            raise KeyError
        with span("dit.head"):
            raise ValueError("second")
    assert desk.recorder.failure() == ("denoise/dit.head", -1, 0, 0)


def test_a_span_open_at_the_end_is_closed_as_failed_and_its_late_end_is_nothing() -> None:
    with at_work() as desk:
        late = span("denoise", step=1)
        late.__enter__()
        inner = span("dit.block")
        inner.__enter__()
    late.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert {path: row["failed"] for path, row in desk.spans.items()} == {
        "denoise/dit.block": True, "denoise": True
    }  # fmt: skip
    assert desk.recorder.beat().path == ""


def test_a_full_disk_is_told_at_the_end_and_not_to_the_model() -> None:
    problems: list[str] = []
    with pytest.raises(DiskFull, match="No space left"):
        with at_work(room=0) as desk:
            assert desk.recorder.beat().problem == ""
            for _ in range(3):
                with span("decode"):
                    desk.meter.alloc(5)
                desk.recorder.seal()
                problems.append(desk.recorder.beat().problem)
    assert "No space left" in problems[1] and problems[1] == problems[2]
    check = desk.recorder.check()
    assert check is not None
    assert (check.allocated_peak_bytes, desk.store.rows) == (15, {})
    assert desk.meter.calls == ["start", "stop"]


# --------------------------------------------------------------------------------
# From other threads


def test_where_nothing_is_kept_no_peak_begins_anew() -> None:
    meter = FakeMeter(has_events=False)
    recorder = Recorder(0, meter, None)
    recorder.start()
    with listening(recorder):
        meter.alloc(5)
        meter.free(1, 5)
        with span("decode"), span("dit.block"):
            pass
    recorder.close()
    assert (recorder.beat().sequence, meter.peek().allocated_peak) == (4, 5)


def test_what_was_recorded_is_written_though_the_device_fails_at_the_end() -> None:
    desk = desk_of()
    desk.recorder.start()
    with listening(desk.recorder):
        with span("decode"):
            desk.meter.alloc(5)

    def fails() -> None:
        raise RuntimeError("device-side assert triggered")

    desk.meter.stop = fails  # type: ignore[method-assign]
    desk.recorder.close()
    assert (list(desk.spans), desk.store.is_closed) == (["decode"], True)
    assert desk.recorder.problems == ("the meter could not stop: RuntimeError: device-side assert triggered",)
