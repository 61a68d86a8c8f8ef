"""Rules about stages and components: what each says, to the byte, and what is not quite its case."""

from typing import Any

import pytest
import torch
from diagnosis_runs import (
    FFN_TOKENS,
    PARAMETERS,
    decode_peaks,
    decodes_alone,
    encode_peaks,
    ffn_hidden,
    holds_more,
    t5_stays,
    weights_fp8,
    weights_fp32,
)
from empty_run import GIB, MIB, EmptyRun, Tables, diagnose, held
from run_tables import span

from ray_memprof.analysis.diagnosis.diagnose import Finding, rule_text

LOOK = "ray-memprof query alive_at_peak, and largest_allocations"
HIDDEN = FFN_TOKENS * 8960 * 2


def said(found: list[Finding]) -> list[tuple[Any, ...]]:
    """Each finding but for its words."""
    return [(one.rule, one.ranks, one.stage, one.component, one.bytes, one.is_peak) for one in found]


def test_t5_that_stays(empty: EmptyRun) -> None:
    (finding,) = t5_stays(empty, offload=False, t5_fsdp=False)
    assert finding == Finding(
        rule="t5_stays",
        severity="severe",
        is_peak=True,
        ranks=(0,),
        stage="denoise",
        component="t5",
        bytes=11 * GIB,
        sentence="The text encoder is still on the device in the denoise loop, 11.0 GiB of weights on rank 0.",
        knob="model_config.offload: true, which was false",
    )


def test_t5_that_stays_on_several_ranks_is_told_by_the_most_on_any(empty: EmptyRun) -> None:
    found = t5_stays(empty, weights=9 * GIB, others=(11 * GIB, 10 * GIB))
    (finding,) = [one for one in found if one.rule == "t5_stays"]
    assert (finding.ranks, finding.bytes) == ((0, 1, 2), 11 * GIB)


def test_t5_is_kept_off_the_device_where_offloading_is_on_and_it_stays(empty: EmptyRun) -> None:
    (finding,) = t5_stays(empty, offload=True)
    assert finding.knob == "model_config.t5_cpu: true"


def test_t5_that_stays_below_the_peak(empty: EmptyRun) -> None:
    (finding,) = t5_stays(empty, weights=11 * GIB, peak=11 * GIB - 1)
    assert (finding.is_peak, finding.bytes) == (False, 11 * GIB)


def test_t5_that_leaves_inside_the_loop_was_still_there(empty: EmptyRun) -> None:
    assert said(t5_stays(empty, leaves_ns=101)) == [("t5_stays", (0,), "denoise", "t5", 11 * GIB, True)]


@pytest.mark.parametrize(
    "changes", [{"leaves_ns": 91}, {"leaves_ns": 100}, {"weights": GIB, "peak": 100 * GIB + 1}]
)
def test_t5_that_leaves_in_time_or_takes_less_than_a_hundredth(
    empty: EmptyRun, changes: dict[str, int]
) -> None:
    assert t5_stays(empty, **changes) == []


def test_weights_in_fp32(empty: EmptyRun) -> None:
    half = 2 * PARAMETERS
    (finding,) = weights_fp32(empty, ranks=2)
    assert finding == Finding(
        rule="weights_fp32",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="load.dit",
        component="dit",
        bytes=half,
        sentence="The diffusion transformer's weights are stored in fp32 on ranks 0 and 1: in bf16 they would take "
        "2.64 GiB less.",
        knob="model_config.precision: bf16, which was fp32",
    )


def test_weights_in_fp32_that_are_sharded(empty: EmptyRun) -> None:
    assert said(weights_fp32(empty, ranks=2, dit_fsdp=True)) == [
        ("weights_fp32", (0, 1), "load.dit", "dit", PARAMETERS, True)
    ]


def test_weights_that_came_in_fp32_unasked(empty: EmptyRun) -> None:
    (finding,) = weights_fp32(empty, precision="bf16")
    assert finding.knob == "model_config.precision was bf16, yet they came in fp32: look at what loads them"


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes_each": 3},  # the threshold itself
        {"bytes_each": 2},
        {"bytes_each": 2, "ranks": 2, "dit_fsdp": True},
        {"task": "t2v-14B"},  # ten times the parameters
        {"task": "vace-1.3B", "bytes_each": 3.1},  # its control branch has half as many again
        {"task": "t2v-tiny"},
        {"workload": "script"},
    ],
)
def test_weights_of_two_bytes_or_of_another_network(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert weights_fp32(empty, **changes) == []


SAVED = 1_389_250_560


def test_the_networks_that_rules_know_are_those_of_wan() -> None:
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.networks.dit import WanDit
    from wan.networks.linear import in_fp8
    from wan.weights.fill import on_meta

    for name, task in TASKS.items():
        if task.is_tiny:
            continue
        dit = on_meta(lambda config=task.dit: WanDit(config), torch.bfloat16)
        num_parameters = sum(parameter.numel() for parameter in dit.parameters())
        in_fp8(dit.execution_order(), Levers())
        saved = 2 * num_parameters - sum(parameter.nbytes for parameter in dit.parameters())
        assert f"('{name}', {num_parameters}, {saved})" in rule_text("networks")


def test_weights_that_fp8_would_halve(empty: EmptyRun) -> None:
    (finding,) = weights_fp8(empty, ranks=2)
    assert finding == Finding(
        rule="weights_fp8",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="denoise",
        component="dit",
        bytes=SAVED,
        sentence="The diffusion transformer's weights take 2.64 GiB of the peak on ranks 0 and 1: with linear layers "
        "in fp8 they would take 1.29 GiB less, and the video would change a little.",
        knob="model_config.weights_dtype: fp8 (inexact), which was precision",
    )


def test_weights_that_fp8_would_halve_in_shards_streamed_or_of_an_older_run(empty: EmptyRun) -> None:
    shards = weights_fp8(empty, weights=PARAMETERS, ranks=2, dit_fsdp=True)
    assert said(shards) == [("weights_fp8", (0, 1), "denoise", "dit", SAVED // 2, True)]
    streamed = weights_fp8(empty, weights=PARAMETERS // 10, others=GIB // 100, weights_dtype=None)
    assert said(streamed) == [("weights_fp8", (0,), "denoise", "dit", SAVED // 20, True)]


@pytest.mark.parametrize(
    "changes",
    [
        {"others": 10 * SAVED - 2 * PARAMETERS + 10},  # just below a tenth of the peak
        {"weights_dtype": "fp8"},
        {"precision": "fp32"},
        {"weights": 3 * PARAMETERS},  # not of two bytes each
        {"decode": 4 * GIB},  # the peak is elsewhere
        {"task": "t2v-tiny"},
        {"workload": "script"},
        {"total": (2 * PARAMETERS + GIB) * 5 // 4 + 10},  # a little more than a fifth of the device is free
        {"total": 0},  # not known
    ],
)
def test_weights_that_fp8_would_not_help(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert "weights_fp8" not in {one.rule for one in weights_fp8(empty, **changes)}


def test_weights_of_the_largest_model_do_not_overflow(empty: EmptyRun) -> None:
    (finding,) = weights_fp8(empty, task="t2v-14B", weights=27 * GIB)
    assert finding.rule == "weights_fp8" and 12 * GIB < finding.bytes < 14 * GIB


def test_four_fifths_of_the_device_are_enough_for_fp8(empty: EmptyRun) -> None:
    (finding,) = weights_fp8(empty, total=(2 * PARAMETERS + GIB) * 5 // 4)
    assert finding.rule == "weights_fp8"


def test_a_tenth_of_the_peak_is_enough_for_fp8(empty: EmptyRun) -> None:
    assert said(weights_fp8(empty, others=10 * SAVED - 2 * PARAMETERS)) == [
        ("weights_fp8", (0,), "denoise", "dit", SAVED, True)
    ]


def test_hidden_layer_of_the_feed_forward(empty: EmptyRun) -> None:
    (finding,) = ffn_hidden(empty)
    assert finding == Finding(
        rule="ffn_hidden",
        severity="notable",
        is_peak=True,
        ranks=(0,),
        stage="denoise",
        component="dit",
        bytes=HIDDEN,
        sentence="The hidden layer of the feed-forward has 17.5 MiB alive when denoise peaks on rank 0.",
        knob="optimization.ffn_chunks: 0 (by size), which was 1",
    )


@pytest.mark.parametrize(("chunks", "was"), [(0, "chosen by size"), (4, "4")])
def test_more_chunks_of_the_feed_forward(empty: EmptyRun, chunks: int, was: str) -> None:
    (finding,) = ffn_hidden(empty, chunks=chunks)
    assert finding.knob == f"optimization.ffn_chunks: more than it was ({was})"


def test_hidden_layer_of_exactly_a_twentieth(empty: EmptyRun) -> None:
    others = 19 * HIDDEN - FFN_TOKENS * 1536 * 2
    assert said(ffn_hidden(empty, others=others)) == [("ffn_hidden", (0,), "denoise", "dit", HIDDEN, True)]
    assert ffn_hidden(empty, others=others + 512) == []


@pytest.mark.parametrize(
    "changes", [{"widths": (1536, 4 * 1536)}, {"category": "weight"}, {"has_events": False}]
)
def test_tensors_of_other_widths_or_kinds_are_no_hidden_layer(
    empty: EmptyRun, changes: dict[str, Any]
) -> None:
    assert ffn_hidden(empty, **changes) == []


def test_encoding_makes_the_peak(empty: EmptyRun) -> None:
    (finding,) = encode_peaks(empty, ranks=2, parallel={"t5_fsdp": False, "dit_fsdp": False})
    assert finding == Finding(
        rule="encode_peaks",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="encode.text",
        component="t5",
        bytes=12 * GIB,
        sentence="Encoding the text makes the peak of ranks 0 and 1: 12.0 GiB more than denoise, the next stage below "
        "it.",
        knob="model_config.t5_cpu: true; or model_config.load_strategy: stream; or parallel.t5_fsdp: true",
    )


@pytest.mark.parametrize(
    ("changes", "knob"),
    [
        ({}, "model_config.t5_cpu: true; or model_config.load_strategy: stream"),
        ({"load_strategy": "stream"}, "model_config.t5_cpu: true"),
        # Neither goes with what the ranks share.
        (
            {"ranks": 2, "parallel": {"t5_fsdp": True}},
            "model_config.t5_cpu: true, and parallel.t5_fsdp: false",
        ),
        (
            {"ranks": 2, "parallel": {"dit_fsdp": True}},
            "model_config.t5_cpu: true; or parallel.t5_fsdp: true",
        ),
    ],
)
def test_where_the_text_encoder_may_go(empty: EmptyRun, changes: dict[str, Any], knob: str) -> None:
    (finding,) = encode_peaks(empty, **changes)
    assert finding.knob == knob


def test_encoding_a_twentieth_above_the_loop(empty: EmptyRun) -> None:
    assert said(encode_peaks(empty, loop=19 * GIB)) == [
        ("encode_peaks", (0,), "encode.text", "t5", GIB, True)
    ]
    assert encode_peaks(empty, loop=19 * GIB + 1) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"encode": 4 * GIB},
        {"component": None},
        {"source": "cpu"},
        {"t5_cpu": True},
        {"t5_cpu": None},  # not known
        {"cut": "encode.text"},
        {"cut": "denoise"},  # what it would have taken is not known
        {"cut": "decode"},
        {"cut": "denoise", "fails": False},  # what came later is lost
    ],
)
def test_what_is_not_encoding_or_not_the_peak(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert encode_peaks(empty, **changes) == []


def test_a_peak_that_one_rank_has_since_it_encodes_for_all(empty: EmptyRun) -> None:
    found = encode_peaks(empty, ranks=4, num_encoding=1, parallel={"t5_fsdp": False})
    assert said(found) == [
        ("holds_more", (0,), "encode.text", "t5", 20 * GIB, True),
        ("encode_peaks", (0,), "encode.text", "t5", 12 * GIB, True),
    ]


def test_one_rank_decodes(empty: EmptyRun) -> None:
    (finding,) = decodes_alone(empty)
    assert finding == Finding(
        rule="decodes_alone",
        severity="severe",
        is_peak=False,
        ranks=(0,),
        stage="decode",
        component="vae",
        bytes=10 * GIB,
        sentence="Rank 0 decodes alone and needs 10.0 GiB for it, while the 3 other ranks wait.",
        knob="parallel.vae: split",
    )


def test_one_of_two_decodes_and_has_its_peak_there(empty: EmptyRun) -> None:
    (finding,) = decodes_alone(empty, ranks=2, added=30 * GIB)
    assert (finding.is_peak, finding.sentence) == (
        True,
        "Rank 0 decodes alone and needs 30.0 GiB for it, while the other rank waits.",
    )


def test_decoding_alone_from_two_hundredths_on(empty: EmptyRun) -> None:
    least = 100 * 64 * MIB
    assert len(decodes_alone(empty, added=least // 50, device_used=least)) == 1
    assert decodes_alone(empty, added=least // 50 - 1, device_used=least) == []
    assert decodes_alone(empty, added=64 * MIB - 1, device_used=GIB) == []


@pytest.mark.parametrize("changes", [{"num_decoding": 4}, {"ranks": 1}])
def test_decoding_that_is_shared_or_of_one_rank(empty: EmptyRun, changes: dict[str, int]) -> None:
    assert decodes_alone(empty, **changes) == []


def test_two_of_four_that_decode_hold_more(empty: EmptyRun) -> None:
    assert said(decodes_alone(empty, num_decoding=2)) == [
        ("holds_more", (0, 1), "decode", "vae", 10 * GIB, False)
    ]


def test_ranks_that_failed_before_they_decoded_do_not_wait_unless_one_was_to_decode(
    empty: EmptyRun,
) -> None:
    assert decodes_alone(empty, fails=True) == []
    assert decodes_alone(empty, fails=True, vae="split") == []
    assert [one.rule for one in decodes_alone(empty, fails=True, vae="rank0")] == ["decodes_alone"]


def test_decoding_makes_the_peak(empty: EmptyRun) -> None:
    (finding,) = decode_peaks(empty, ranks=2)
    assert finding == Finding(
        rule="decode_peaks",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="decode",
        component="vae",
        bytes=5 * GIB,
        sentence="Decoding makes the peak of ranks 0 and 1: 5.00 GiB more than denoise, the next stage below it.",
        knob="optimization.vae_slabs: more than it was (chosen by size)",
    )


def test_slabs_that_were_off(empty: EmptyRun) -> None:
    (finding,) = decode_peaks(empty, slabs=1)
    assert finding.knob == "optimization.vae_slabs: 0 (by size), which was 1"


def test_decoding_a_twentieth_above_the_loop(empty: EmptyRun) -> None:
    assert said(decode_peaks(empty, loop=19 * GIB)) == [("decode_peaks", (0,), "decode", "vae", GIB, True)]
    assert decode_peaks(empty, loop=19 * GIB + 1) == []


@pytest.mark.parametrize("changes", [{"component": None}, {"decode": 10 * GIB}])
def test_what_is_not_decoding_or_not_the_peak(empty: EmptyRun, changes: dict[str, Any]) -> None:
    assert decode_peaks(empty, **changes) == []


def test_a_peak_that_one_rank_has_since_it_decodes_alone_is_said_once(empty: EmptyRun) -> None:
    found = decodes_alone(empty, added=30 * GIB, vae="rank0")
    assert said(found) == [("decodes_alone", (0,), "decode", "vae", 30 * GIB, True)]


def test_one_rank_holds_more(empty: EmptyRun) -> None:
    (finding,) = holds_more(empty)
    assert finding == Finding(
        rule="holds_more",
        severity="severe",
        is_peak=True,
        ranks=(1,),
        stage="denoise",
        component="dit",
        bytes=5 * GIB,
        sentence="Rank 1 holds 5.00 GiB more for dit in denoise than rank 0, whose peak there is the typical one.",
        knob=f"compare rank 1 with rank 0: {LOOK}",
    )


def test_one_rank_holds_more_without_events(empty: EmptyRun) -> None:
    assert said(holds_more(empty, has_events=False)) == [
        ("holds_more", (1,), "denoise", "dit", 5 * GIB, True)
    ]


def test_without_events_the_spans_in_which_memory_grew_tell_the_component(empty: EmptyRun) -> None:
    """GIVEN CLIP's 5 GiB on one rank, WHEN a block of the DiT makes the peak on both, THEN it is not put down to it."""

    def tables(held_more: int) -> Tables:
        top = held_more + 10 * GIB
        return {
            "spans": [
                span(1, "load.dit", (0, 5), component="dit", **held(0, 4 * GIB, 4 * GIB)),
                span(2, "denoise", (10, 90), step=0, component="dit", **held(4 * GIB, 4 * GIB, top)),
                span(3, "denoise/module", (10, 20), parent_id=2, component="clip",
                     **held(4 * GIB, 4 * GIB + held_more, 4 * GIB + held_more)),
                span(4, "denoise/dit.block", (20, 60), parent_id=2, component="dit",
                     **held(4 * GIB + held_more, 4 * GIB + held_more, top)),
            ]
        }  # fmt: skip

    found = diagnose(empty, tables(0), tables(5 * GIB), tables(0))
    assert said(found) == [("holds_more", (1,), "denoise", "clip", 5 * GIB, True)]


def test_what_one_rank_does_for_all_has_a_key(empty: EmptyRun) -> None:
    (vae,) = holds_more(empty, stage="encode.video", component="vae", vae="rank0")
    (t5,) = holds_more(empty, stage="encode.text", component="t5", rank=0, t5_fsdp=False)
    (split,) = holds_more(empty, stage="encode.video", component="vae", vae="split")
    assert [vae.knob, t5.knob, split.knob] == [
        "parallel.vae: split, which was rank0",
        "parallel.t5_fsdp: true, which was false",
        f"compare rank 1 with rank 0: {LOOK}",
    ]


def test_holding_more_than_three_hundredths(empty: EmptyRun) -> None:
    least = 3 * 20 * GIB // 100
    assert holds_more(empty, excess=least) == []
    assert len(holds_more(empty, excess=least + 1)) == 1
    assert holds_more(empty, excess=16 * MIB, loop=64 * MIB) == []
    assert len(holds_more(empty, excess=16 * MIB + 1, loop=64 * MIB)) == 1


def test_a_stage_that_takes_little_counts_by_the_peak_of_the_run(empty: EmptyRun) -> None:
    """GIVEN 20 GiB at the peak, WHEN ranks differ where almost nothing is held, THEN it takes 3 % of the 20 GiB."""
    stage = {"stage": "device.init", "component": "x", "small": 4 * MIB}
    assert holds_more(empty, excess=17 * MIB, **stage) == []
    assert holds_more(empty, excess=600 * MIB, **stage) == []
    assert said(holds_more(empty, excess=GIB, **stage)) == [
        ("holds_more", (1,), "device.init", "x", GIB, False)
    ]
    # From a tenth of the run on, a stage counts by itself.
    large = {**stage, "small": 2 * GIB}
    assert said(holds_more(empty, excess=62 * MIB, **large)) == [
        ("holds_more", (1,), "device.init", "x", 62 * MIB, False)
    ]


def test_a_stage_that_was_cut_short_is_not_compared(empty: EmptyRun) -> None:
    assert holds_more(empty, fails=True) == []
