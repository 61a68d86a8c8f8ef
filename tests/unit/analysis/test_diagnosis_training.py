"""Rules that speak in training: what each says, to the byte, and what is not quite its case."""

from typing import Any

import pytest
from empty_run import GIB, MIB, EmptyRun, diagnose
from program_runs import (
    BLOCK,
    Program,
    activations_kept,
    batch_larger,
    gradients_kept,
    optimizer_state,
    trained,
)
from run_tables import blank

from ray_memprof.analysis.diagnosis.diagnose import Finding, findings

PEAK = GIB + 2 * GIB + 20 * GIB + GIB // 16
"""Weights, state, what is kept, and what backward takes."""
EIGHT_BITS = "an optimizer with states of 8 bits (bitsandbytes, torchao)"


def told(found: list[Finding], rule: str) -> list[Finding]:
    return [one for one in found if one.rule == rule]


def test_state_of_an_optimizer(empty: EmptyRun) -> None:
    (finding,) = optimizer_state(empty)
    assert finding == Finding(
        rule="optimizer_state",
        severity="notable",
        is_peak=True,
        ranks=(0,),
        stage="backward",
        component="GPT",
        bytes=2 * GIB,
        sentence="The state of the optimizer for GPT takes 2.00 GiB of the peak in backward on rank 0, most of it in "
        "float32.",
        knob=f"{EIGHT_BITS}; or states in bf16 instead of fp32",
    )


@pytest.mark.parametrize(
    ("facts", "knob"),
    [
        ({"state_dtype": "bfloat16"}, EIGHT_BITS),
        ({"state_dtype": "uint8"}, "train fewer of the parameters (LoRA)"),
        (
            {"ranks": 2, "state_dtype": "uint8"},
            "shard it over the 2 ranks that all keep it whole (FSDP2's fully_shard, or ZeroRedundancyOptimizer)",
        ),
        # FSDP1 shards its one parameter; nobody knows of one without a name.
        ({"ranks": 2, "state_dtype": "bfloat16", "state_name": "GPT._flat_param exp_avg"}, EIGHT_BITS),
        ({"ranks": 2, "state_dtype": "bfloat16", "state_name": "parameter [9] exp_avg"}, EIGHT_BITS),
    ],
)
def test_what_makes_the_state_smaller(empty: EmptyRun, facts: dict[str, Any], knob: str) -> None:
    (finding,) = optimizer_state(empty, **facts)
    assert finding.knob == knob


def test_state_that_is_sharded_needs_no_shards(empty: EmptyRun) -> None:
    """GIVEN two ranks with state for different parameters, or with weights that FSDP2 gathers."""
    apart = [trained(state=2 * GIB, state_name=f"GPT.w{rank} exp_avg").tables() for rank in range(2)]
    (by_name,) = diagnose(empty, *apart, workload="script")
    same = [trained(state=2 * GIB).tables() for _ in range(2)]
    diagnose(empty, *same, workload="script")
    empty.insert("owners", [blank("owners", seq=-9, owner="GPT.blocks.0", category="communication")], 0)
    (gathered,) = findings(empty.connection)
    assert by_name.knob == gathered.knob == optimizer_state(empty)[0].knob


def test_state_of_exactly_a_twentieth(empty: EmptyRun) -> None:
    others = PEAK - 2 * GIB
    least = others // 19 + 1
    assert [one.rule for one in optimizer_state(empty, state=least)] == ["optimizer_state"]
    assert optimizer_state(empty, state=least - 2) == []


def test_gradients_of_an_earlier_step(empty: EmptyRun) -> None:
    (finding,) = gradients_kept(empty)
    assert finding == Finding(
        rule="gradients_kept",
        severity="notable",
        is_peak=True,
        ranks=(0,),
        stage="backward",
        component="GPT",
        bytes=2 * GIB,
        sentence="Gradients of GPT from an earlier training step are still there when backward peaks: 2.00 GiB on "
        "rank 0.",
        knob="optimizer.zero_grad(set_to_none=True) right after optimizer.step(), so that they are gone in the next "
        "forward pass",
    )


def test_gradients_that_are_there_in_the_next_forward_pass(empty: EmptyRun) -> None:
    (finding,) = gradients_kept(empty, peak_in="forward")
    assert (finding.rule, finding.stage) == ("gradients_kept", "forward")


@pytest.mark.parametrize(
    "facts",
    [
        {"is_kept": False},
        {"is_kept": False, "passes": 2},  # several backward passes add up
        {"is_kept": False, "passes": 3, "peak_in": "forward"},
        {"steps": 1, "passes": 2},  # before any step
        {"peak_in": "optimizer"},  # it needs them
        {"gradients": GIB},  # less than a twentieth
    ],
)
def test_gradients_that_are_needed_or_few(empty: EmptyRun, facts: dict[str, Any]) -> None:
    assert told(gradients_kept(empty, **facts), "gradients_kept") == []


def test_activations_that_checkpointing_drops(empty: EmptyRun) -> None:
    """All that five of six blocks keep, but for the last tensor of each."""
    (finding,) = activations_kept(empty, ranks=2)
    assert finding == Finding(
        rule="activations_kept",
        severity="severe",
        is_peak=True,
        ranks=(0, 1),
        stage="backward",
        component="GPT",
        bytes=25 * GIB,
        sentence="Ranks 0 and 1 keep up to 36.0 GiB of activations of GPT for the backward pass when backward peaks: "
        "checkpointing its 6 blocks would drop 25.0 GiB of them.",
        knob="torch.utils.checkpoint around each block of the model (use_reentrant=False), which runs its forward pass "
        "twice; or a smaller batch, with more backward passes for a step",
    )


def test_checkpointing_is_judged_by_the_rank_that_it_would_help_most(empty: EmptyRun) -> None:
    """GIVEN three ranks, of which the one in the middle has a block more, and one that keeps little."""
    few, more = ([BLOCK] * number for number in (6, 7))
    kept = [
        trained(blocks=blocks, has_block_spans=True, head=3 * GIB).tables()
        for blocks in (few, more, few, [(GIB // 2,)])
    ]
    found = [one for one in diagnose(empty, *kept, workload="script") if one.rule == "activations_kept"]
    alone = [one for one in diagnose(empty, kept[1], workload="script") if one.rule == "activations_kept"]
    assert [(one.ranks, one.bytes) for one in found] == [((0, 1, 2), alone[0].bytes)]


def test_blocks_without_spans_are_known_by_sizes_that_recur(empty: EmptyRun) -> None:
    """Six blocks keep 1, 2, 2 and 0.5 GiB: less 2 GiB for each, and less a sixth of the rest."""
    (finding,) = activations_kept(empty, has_block_spans=False)
    assert (finding.bytes, finding.sentence, finding.knob.rpartition("; ")[2]) == (
        (33 - 6 * 2) * GIB * 5 // 6,
        "Rank 0 keeps 36.0 GiB of activations of GPT for the backward pass when backward peaks: checkpointing its "
        "blocks would drop about 17.5 GiB or more of them.",
        "module_spans shows what each block keeps",
    )


@pytest.mark.parametrize("has_spans", [True, False])
@pytest.mark.parametrize(
    "facts",
    [
        {"blocks": [(GIB // 2,)] * 6},  # checkpointed already: only what goes into each block
        {"blocks": []},
        {"blocks": [BLOCK]},
        {"blocks": [BLOCK] * 3, "head": 80 * GIB},  # less than a fifth
        {"peak_in": "optimizer"},
    ],
)
def test_activations_that_are_few_or_gone(empty: EmptyRun, has_spans: bool, facts: dict[str, Any]) -> None:
    found = activations_kept(empty, has_block_spans=has_spans, **facts)
    assert told(found, "activations_kept") == []


def test_a_fifth_of_the_peak_in_activations(empty: EmptyRun) -> None:
    """Two blocks, of which one may be dropped: 5 GiB."""
    facts: dict[str, Any] = {"blocks": [BLOCK] * 2, "weights": GIB}
    rest = 25 * GIB - GIB - 11 * GIB - GIB // 16
    assert [one.bytes for one in activations_kept(empty, head=rest, **facts)] == [5 * GIB]
    assert activations_kept(empty, head=rest + 512, **facts) == []


def test_a_batch_that_is_larger(empty: EmptyRun) -> None:
    (finding,) = batch_larger(empty)
    assert finding == Finding(
        rule="batch_larger",
        severity="severe",
        is_peak=True,
        ranks=(1,),
        stage="backward",
        component="GPT",
        bytes=5 * GIB,
        sentence="Rank 1 keeps 5.00 GiB more activations for the backward pass than rank 0, which keeps 20.0 GiB with "
        "the same weights: its batch is larger, or the samples in it are longer.",
        knob="as many samples for each rank (drop_last of the sampler), and samples of about the same length: sort "
        "them into batches by length, or cut the longest",
    )


def test_batches_of_several_ranks(empty: EmptyRun) -> None:
    (finding,) = batch_larger(empty, heads=[20 * GIB, 30 * GIB, 20 * GIB, 25 * GIB, 20 * GIB])
    assert (finding.ranks, finding.bytes) == ((1, 3), 10 * GIB)
    assert finding.sentence == (
        "Ranks 1 and 3 keep up to 10.0 GiB more activations for the backward pass than rank 0, which keeps 20.0 GiB "
        "with the same weights: their batches are larger, or the samples in them are longer."
    )


@pytest.mark.parametrize(
    "facts",
    [
        {"heads": [20 * GIB] * 3},
        {"heads": [20 * GIB]},
        {"heads": [20 * GIB, 22 * GIB]},  # a tenth
        {"heads": [20 * GIB, 10 * GIB, 20 * GIB]},  # the last, smaller batch
        {"heads": [100 * MIB, 200 * MIB], "weights": 20 * GIB},  # 1 % of the peak
        {"peak_in": "optimizer"},
    ],
)
def test_batches_that_are_about_equal(empty: EmptyRun, facts: dict[str, Any]) -> None:
    assert told(batch_larger(empty, **facts), "batch_larger") == []


@pytest.mark.parametrize("other", [{"weight_name": "GPT.v"}, {"weights": 2 * GIB}])
def test_ranks_that_train_other_weights_differ_by_them(empty: EmptyRun, other: dict[str, Any]) -> None:
    """GIVEN stages of a pipeline, WHEN one of them keeps more, THEN its batch is not said to be larger."""
    ranks = [trained(), trained(head=25 * GIB, **other), trained()]
    found = diagnose(empty, *(rank.tables() for rank in ranks), workload="script")
    assert [(one.rule, one.ranks) for one in found] == [("holds_more", (1,))]


def test_what_is_kept_without_any_backward_pass_is_no_training(empty: EmptyRun) -> None:
    """GIVEN a program that names a span "forward", and keeps what it has made: a cache, or results."""
    ranks = []
    for num in (9, 12):
        program = Program()
        with program.span("load.GPT", component="GPT"):
            program.alloc(GIB, "weight", "GPT.w", dtype="bfloat16", made_as="weight")
        with program.span("forward", component="GPT"):
            for _ in range(num):
                program.alloc(GIB)
                program.alloc(GIB // 2)
        ranks.append(program.tables())
    assert [one.rule for one in diagnose(empty, *ranks, workload="script")] == ["holds_more"]
