"""Rules about the device and what lies outside of tensors: what each says, to the byte, and what is not its case."""

from typing import Any

import pytest
from diagnosis_runs import fragments, nccl_holds, out_of_memory, outside_grows, retries, starts_late
from empty_run import GIB, MIB, SECOND, EmptyRun, diagnose, events
from run_tables import span

from ray_memprof.analysis.diagnosis.diagnose import Finding

LOOK = "ray-memprof query alive_at_peak, and largest_allocations"
SET_IT = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"


def test_the_device_ran_out_of_memory(empty: EmptyRun) -> None:
    config = {"optimization": {"attention_slicing": True, "ffn_chunks": 2}}
    (finding,) = out_of_memory(empty, config=config)
    assert finding == Finding(
        rule="out_of_memory",
        severity="severe",
        is_peak=True,
        ranks=(1,),
        stage="denoise",
        component="dit",
        bytes=30 * GIB,
        sentence="Rank 1 ran out of device memory in denoise step 3: it asked for 2.00 GiB where 1.00 GiB were free, "
        "and held 30.0 GiB in tensors and 1.00 GiB unused; the largest part is 30.0 GiB of dit (activation).",
        knob="optimization.ffn_chunks: more than it was (2); or more ranks in parallel.ulysses or parallel.ring",
    )


def test_several_ranks_ran_out_of_memory_without_events(empty: EmptyRun) -> None:
    config = {"optimization": {"attention_slicing": True, "ffn_chunks": 1}}
    (finding,) = out_of_memory(empty, ranks=4, failing=3, has_events=False, config=config)
    assert (finding.ranks, finding.component, finding.bytes) == ((1, 2, 3), "dit", 30 * GIB)
    assert finding.sentence == (
        "Ranks 1 to 3 ran out of device memory in denoise step 3: rank 1, the first, held 30.0 GiB in tensors and "
        "1.00 GiB unused."
    )
    assert finding.knob == (
        "optimization.ffn_chunks: 0 (by size), which was 1; or more ranks in parallel.ulysses or parallel.ring"
    )


@pytest.mark.parametrize("has_events", [True, False])
def test_a_library_that_got_no_memory_is_named(empty: EmptyRun, has_events: bool) -> None:
    """GIVEN a refusal of the allocator that the program handled, and NCCL without memory afterwards."""
    found = out_of_memory(empty, oom_by="NCCL", free=12 * MIB, has_events=has_events, workload="script")
    part = "; the largest part is 30.0 GiB of dit (activation)" if has_events else ""
    assert (found[0].ranks, found[0].bytes, found[0].sentence) == (
        (1,),
        30 * GIB,
        "Rank 1 ran out of device memory in denoise step 3: it could get no memory for NCCL where 12.0 MiB were "
        f"free, and held 30.0 GiB in tensors and 1.00 GiB unused{part}.",
    )
    assert found[0].knob == (
        "torch.cuda.empty_cache() before it, or torch.cuda.set_per_process_memory_fraction: NCCL asks the device "
        "itself, and what the allocator holds unused is out of its reach"
    )


def test_the_first_step_is_a_step(empty: EmptyRun) -> None:
    (finding, *_) = out_of_memory(empty, step=0)
    assert finding.sentence.startswith(
        "Rank 1 ran out of device memory in denoise step 0: it asked for 2.00 GiB"
    )


def test_what_ended_the_run_is_said_first(empty: EmptyRun) -> None:
    found = out_of_memory(empty, tensors=GIB, reserved=10 * GIB, is_expandable=False)
    assert [(one.rule, one.severity, one.bytes) for one in found] == [
        ("out_of_memory", "severe", GIB),
        ("fragments", "severe", 9 * GIB),
    ]


@pytest.mark.parametrize(
    ("changes", "knob"),
    [
        (
            {"free": 3 * GIB},
            "what limits this process (torch.cuda.set_per_process_memory_fraction): the device had room",
        ),
        ({"others": GIB}, "what else runs on that device: other processes hold 1.00 GiB"),
        ({"is_expandable": False}, SET_IT),
        ({"workload": "script"}, f"the largest of what is alive: {LOOK}"),
        ({"component": None}, f"the largest of what is alive: {LOOK}"),
        ({"component": "t5"}, "model_config.t5_cpu: true"),
        (
            {"component": "t5", "config": {"parallel": {"t5_fsdp": True}}},
            "model_config.t5_cpu: true, and parallel.t5_fsdp: false",
        ),
        (
            {"component": "vae", "config": {"parallel": {"vae": "rank0"}, "optimization": {"vae_slabs": 1}}},
            "parallel.vae: split; or optimization.vae_slabs: 0 (by size), which was 1",
        ),
        (
            {"component": "vae", "ranks": 1, "config": {"parallel": {"vae": "rank0"}}},
            "optimization.vae_slabs: more than it was (chosen by size)",
        ),
        (
            {
                "category": "weight",
                "config": {"model_config": {"precision": "fp32", "load_strategy": "block"}},
            },
            "model_config.precision: bf16, which was fp32; or parallel.dit_fsdp: true; or "
            "model_config.load_strategy: stream",
        ),
        (
            {"stage": "load.dit", "has_events": False, "ranks": 1},
            "model_config.load_strategy: stream",
        ),
        (
            {"category": "weight", "config": {"parallel": {"dit_fsdp": True}}},
            f"the largest of what is alive: {LOOK}",
        ),
    ],
)
def test_what_to_change_so_that_it_fits(empty: EmptyRun, changes: dict[str, Any], knob: str) -> None:
    (finding, *_) = out_of_memory(empty, **changes)
    assert (finding.rule, finding.knob) == ("out_of_memory", knob)


@pytest.mark.parametrize(
    "changes",
    [
        {"free": 2 * GIB + 20 * MIB - 1},
        {"others": GIB - 1},
        {"is_expandable": False, "reserved": 31 * GIB - 1},
    ],
)
def test_what_would_not_have_been_enough_is_not_asked_for(empty: EmptyRun, changes: dict[str, Any]) -> None:
    (finding, *_) = out_of_memory(empty, **changes)
    assert finding.knob.startswith("optimization.attention_slicing: true; or ")


@pytest.mark.parametrize("status", ["ok", "died", "failed", "host_oom", "interrupted"])
def test_a_rank_that_ended_otherwise_did_not_run_out_of_memory(empty: EmptyRun, status: str) -> None:
    found = out_of_memory(empty, status=status)
    assert [one.rule for one in found] == ["retries"]


def test_a_full_device(empty: EmptyRun) -> None:
    (finding,) = retries(empty, num=3)
    assert finding == Finding(
        rule="retries",
        severity="minor",
        is_peak=True,
        ranks=(0,),
        stage="denoise",
        component=None,
        bytes=GIB,
        sentence="The device was full: the allocator of rank 0 flushed its cache 3 times in denoise, with up to "
        "1.00 GiB held and not in use.",
        knob=f"{SET_IT}; and less at the peak",
    )


def test_a_full_device_with_segments_that_grow(empty: EmptyRun) -> None:
    (finding,) = retries(empty, segments="segment_map")
    assert finding.knob == f"what is alive when denoise peaks: {LOOK}"


def test_an_allocator_that_only_takes_more_is_not_short(empty: EmptyRun) -> None:
    assert retries(empty, num=0) == []


def test_a_run_that_ended_for_lack_of_memory_is_not_told_that_it_was_short(empty: EmptyRun) -> None:
    assert [one.rule for one in out_of_memory(empty)] == ["out_of_memory"]


def test_nccl_holds_memory(empty: EmptyRun) -> None:
    (finding,) = nccl_holds(empty)
    assert finding == Finding(
        rule="nccl_holds",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="denoise",
        component=None,
        bytes=2 * GIB,
        sentence="NCCL holds 2.00 GiB for one process group on ranks 0 and 1 when the device is fullest.",
        knob="NCCL_BUFFSIZE=1048576 in the environment, which was 4194304",
    )


@pytest.mark.parametrize(
    ("was", "knob"),
    [
        ("8388608", "NCCL_BUFFSIZE=1048576 in the environment, which was 8388608"),
        ("4M", "NCCL_BUFFSIZE=1048576 in the environment, which was 4194304"),  # NCCL takes no letters either
        (
            "1048576",
            "NCCL_BUFFSIZE=524288 in the environment, which was 1048576; measure a ring's time with it",
        ),
        (
            "524288",
            "NCCL_MAX_NCHANNELS=8 in the environment, where NCCL_BUFFSIZE was 524288; "
            "it costs an all-to-all 60 % of its speed",
        ),
    ],
)
def test_buffers_that_were_set_are_not_asked_for_again(empty: EmptyRun, was: str, knob: str) -> None:
    (finding,) = nccl_holds(empty, environ={"NCCL_BUFFSIZE": was})
    assert finding.knob == knob


def test_several_process_groups(empty: EmptyRun) -> None:
    groups, environ = ("0", "3", "7"), {"NCCL_BUFFSIZE": "1048576"}
    (script,) = nccl_holds(empty, groups=groups, workload="script")
    xfuser = {"parallel": {"backend": "xfuser"}}
    (wan,) = nccl_holds(empty, groups=groups, config=xfuser, environ=environ)
    assert script.sentence.startswith("NCCL holds 2.00 GiB for 3 process groups on ranks 0 and 1 ")
    assert [script.knob, wan.knob] == [
        "fewer process groups, for each has buffers of its own; or NCCL_BUFFSIZE=1048576 in the environment, "
        "which was 4194304",
        "parallel.backend: native, which makes one process group; or NCCL_BUFFSIZE=524288 in the environment, "
        "which was 1048576; measure a ring's time with it",
    ]


def test_nccl_below_eight_hundredths_or_a_quarter_of_a_gib(empty: EmptyRun) -> None:
    assert len(nccl_holds(empty, used=25 * GIB)) == 1
    assert nccl_holds(empty, used=25 * GIB + 1) == []
    assert len(nccl_holds(empty, size=256 * MIB, used=GIB)) == 1
    assert nccl_holds(empty, size=256 * MIB - 1, used=GIB) == []


@pytest.mark.parametrize("account", ["context", "libraries", "others"])
def test_what_others_hold_is_not_put_down_to_nccl(empty: EmptyRun, account: str) -> None:
    assert nccl_holds(empty, account=account) == []


def test_gaps_between_blocks(empty: EmptyRun) -> None:
    off = {"optimization": {"expandable_segments": False}}
    (finding,) = fragments(empty, config=off)
    assert finding == Finding(
        rule="fragments",
        severity="severe",
        is_peak=True,
        ranks=(0,),
        stage="decode",
        component=None,
        bytes=4 * GIB,
        sentence="Reserved memory of rank 0 peaks in decode, 4.00 GiB above the most in use at once: expandable "
        "segments would give back at most that.",
        knob="optimization.expandable_segments: true, which was false",
    )


def test_gaps_inside_segments_that_grow(empty: EmptyRun) -> None:
    (wan,) = fragments(empty, segments="segment_map")
    (script,) = fragments(empty, segments="segment_map", workload="script")
    assert wan.sentence.endswith(
        " peaks in decode, 4.00 GiB above the most in use at once, with expandable segments."
    )
    assert [wan.knob, script.knob] == [
        "the largest tensors, with more optimization.vae_slabs",
        "the largest tensors, or torch.cuda.empty_cache() between stages",
    ]


@pytest.mark.parametrize(
    ("stage", "knob"),
    [
        ("denoise", "the largest tensors, with more optimization.ffn_chunks"),
        ("encode.text", "the largest tensors: ray-memprof query alive_at_peak, and largest_allocations"),
    ],
)
def test_the_lever_against_gaps_is_that_of_the_stage(empty: EmptyRun, stage: str, knob: str) -> None:
    spans = [span(1, stage, (0, 9), active=(0, 0, GIB), reserved=(0, 2 * GIB, 2 * GIB))]
    (finding,) = diagnose(empty, {"spans": spans, "allocs": events(("segment_map", GIB, 1, 1))})
    assert (finding.stage, finding.knob) == (stage, knob)


def test_gaps_in_a_script_are_put_down_to_its_module(empty: EmptyRun) -> None:
    figures = {"active": (0, 0, GIB), "reserved": (0, 2 * GIB, 2 * GIB)}
    spans = [
        span(1, "script", (0, 9), **figures),
        span(2, "script/Decoder", (1, 8), parent_id=1, stage="Decoder", **figures),
    ]
    (finding,) = diagnose(empty, {"spans": spans}, workload="script")
    assert finding.stage == "Decoder"


@pytest.mark.parametrize(
    ("changes", "knob"),
    [
        # A script obeys no key: what the configuration has as its default says nothing.
        ({"workload": "script", "config": {"optimization": {"expandable_segments": True}}}, SET_IT),
        (
            {"environ": {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}},
            "PYTORCH_ALLOC_CONF: add expandable_segments:True in the environment, which was max_split_size_mb:64",
        ),
        ({"segments": None, "environ": {"RANK": "0"}}, SET_IT),
        ({"segments": None}, f"{SET_IT}, if it was not set"),
        (
            {"segments": None, "environ": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
            "the largest tensors, with more optimization.vae_slabs",
        ),
        # What the allocator did counts more than what it was told.
        (
            {"environ": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
            "PYTORCH_CUDA_ALLOC_CONF: add expandable_segments:True in the environment, "
            "which was expandable_segments:True",
        ),
    ],
)
def test_how_segments_are_made_to_grow(empty: EmptyRun, changes: dict[str, Any], knob: str) -> None:
    (finding,) = fragments(empty, **changes)
    assert finding.knob == knob


def test_gaps_of_eight_hundredths(empty: EmptyRun) -> None:
    assert len(fragments(empty, reserved=25 * GIB, active=23 * GIB)) == 1
    assert fragments(empty, reserved=25 * GIB, active=23 * GIB + 1) == []
    assert len(fragments(empty, reserved=GIB, active=768 * MIB)) == 1
    assert fragments(empty, reserved=GIB, active=768 * MIB + 1) == []


def test_memory_that_was_in_use_earlier_is_no_gap(empty: EmptyRun) -> None:
    """Reserved stays where active was as high: nothing more was ever taken than was in use at once."""
    assert fragments(empty, reserved=20 * GIB, active=20 * GIB) == []


@pytest.mark.parametrize(
    ("first_peak", "gaps"),
    [
        (10 * GIB, None),
        # From 8 % of what is reserved on, 1.60 GiB.
        (10 * GIB - 1638 * MIB, None),
        (10 * GIB - 1639 * MIB, 1639 * MIB),
        # At most what reserved is above the most in use on all of them together.
        (3 * GIB, 4 * GIB),
    ],
)
def test_streams_that_peak_at_different_times_leave_no_gaps(
    empty: EmptyRun, first_peak: int, gaps: int | None
) -> None:
    """GIVEN two streams of 10 GiB each that were full in turn, WHEN asked, THEN only what each had too much counts."""
    found = fragments(
        empty,
        beside=[
            ("segment_map", 10 * GIB, 1, 0),
            ("alloc", first_peak, 1, 0),
            ("free_requested", first_peak, 1, 0),
            ("free_completed", first_peak, 1, 0),
            ("segment_map", 10 * GIB, 2, 7),
            ("alloc", 10 * GIB, 2, 7),
            ("free_requested", 10 * GIB, 2, 7),
            ("segment_unmap", 4 * GIB, 1, 0),
            ("free_completed", 10 * GIB, 2, 7),
        ],
    )
    assert [one.bytes for one in found] == ([] if gaps is None else [gaps])
    assert all("above the most in use at once on each of 2 streams" in one.sentence for one in found)


@pytest.mark.parametrize("kind", [("segment_alloc", "segment_free"), ("segment_map", "segment_unmap")])
def test_what_streams_had_given_back_before_the_peak_does_not_count(
    empty: EmptyRun, kind: tuple[str, str]
) -> None:
    """GIVEN streams of 12 and 8 GiB at the peak, 3 and 2 of them unused, and a third that was larger before."""
    take, give = kind
    found = fragments(
        empty,
        beside=[
            (take, 6 * GIB, 1, 3),
            (give, 6 * GIB, 1, 3),
            (take, 5 * GIB, 2, 0),
            (take, 7 * GIB, 3, 0),
            ("alloc", 9 * GIB, 2, 0),
            (take, 9 * GIB, 4, 7),
            (give, 9 * GIB, 4, 7),
            (take, 8 * GIB, 5, 7),
            ("alloc", 6 * GIB, 5, 7),
            (give, 5 * GIB, 2, 0),
        ],
    )
    # 5 GiB by streams, of which 4 are above the most in use on all of them together.
    assert [(one.bytes, "on each of 2 streams" in one.sentence) for one in found] == [(4 * GIB, True)]


def test_streams_say_nothing_where_their_events_are_not_whole(empty: EmptyRun) -> None:
    (finding,) = fragments(empty, beside=[("segment_map", GIB, 1, 0), ("segment_map", GIB, 2, 7)])
    assert (finding.bytes, "streams" in finding.sentence) == (4 * GIB, False)


def test_memory_outside_grows(empty: EmptyRun) -> None:
    (finding,) = outside_grows(empty)
    assert finding == Finding(
        rule="outside_grows",
        severity="notable",
        is_peak=True,
        ranks=(0,),
        stage="denoise",
        component=None,
        bytes=80 * MIB,
        sentence="Memory outside the allocator grows by 80.0 MiB over 3 visits of denoise on rank 0; its owner "
        "is not known.",
        knob="the versions of cuDNN and NCCL, and what allocates by itself: ray-memprof query books, and collectives",
    )


def test_memory_of_libraries_grows(empty: EmptyRun) -> None:
    (finding,) = outside_grows(empty, account="libraries")
    assert finding.sentence.endswith("; it belongs to libraries.")


@pytest.mark.parametrize(
    "changes",
    [
        {"outside": (GIB, GIB + 32 * MIB, GIB + 64 * MIB - 1)},
        {"outside": (GIB, GIB + 80 * MIB)},  # two visits
        {"outside": (GIB, *[GIB + 80 * MIB] * 3)},  # a workspace, taken once
        {"account": "nccl"},
        {"account": "others"},
        {"source": "cpu"},
    ],
)
def test_what_grows_little_once_or_for_another_is_passed_over(
    empty: EmptyRun, changes: dict[str, Any]
) -> None:
    assert "outside_grows" not in [one.rule for one in outside_grows(empty, **changes)]


def test_one_rank_starts_late(empty: EmptyRun) -> None:
    (finding,) = starts_late(empty)
    assert finding == Finding(
        rule="starts_late",
        severity="minor",
        is_peak=False,
        ranks=(2,),
        stage="device.init",
        component=None,
        bytes=0,
        sentence="Rank 2 begins 5.0 s after the median rank, and the others wait for it at their first collective.",
        knob="what its node does before: see the logs of that rank in logs/, its disk, model_config.load_strategy",
    )


def test_nobody_waits_where_there_is_no_collective(empty: EmptyRun) -> None:
    (finding,) = starts_late(empty, has_collectives=False)
    assert finding.sentence == "Rank 2 begins 5.0 s after the median rank."


@pytest.mark.parametrize(
    "changes",
    [
        {"late_ns": 2 * SECOND - 1},
        {"late_ns": 10 * SECOND - 1, "duration_ns": 1000 * SECOND},
        {"first_span": 7},  # its first rows are lost
        {"config": {"imported": []}},
        {"ranks": 1},
    ],
)
def test_what_is_not_late(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert starts_late(empty, **changes) == []


def test_late_from_two_seconds_or_a_hundredth_on(empty: EmptyRun) -> None:
    assert len(starts_late(empty, late_ns=2 * SECOND)) == 1
    assert len(starts_late(empty, late_ns=10 * SECOND, duration_ns=1000 * SECOND)) == 1
