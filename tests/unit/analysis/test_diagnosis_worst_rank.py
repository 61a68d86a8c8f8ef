"""Rules that speak of several ranks: stage and figures are those of the rank with most, and every rank counts once."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from diagnosis_runs import PARAMETERS, ffn_hidden, weights_fp32
from empty_run import GIB, MIB, EmptyRun, Tables, diagnose, events, held
from program_runs import Program, trained
from run_tables import blank, span

from ray_memprof.analysis.diagnosis.diagnose import Finding, findings

SAVED = 1_389_250_560
"""What fp8 saves of the transformer of t2v-1.3B with two bytes a parameter, as evidence/networks.sql has it."""


def told(found: Sequence[Finding], rule: str) -> list[Finding]:
    return [one for one in found if one.rule == rule]


def staged(peaks: Mapping[str, int], components: Mapping[str, str]) -> Tables:
    """A rank with these peaks in GiB by stage, in turn; the VAE works inside decode."""
    spans = []
    for number, (stage, size) in enumerate(peaks.items()):
        times, name = (100 * number, 100 * number + 90), components.get(stage)
        at = 2 * number + 1
        spans.append(span(at, stage, times, component=name, **held(0, 0, size * GIB)))
        if stage == "decode":
            about: dict[str, Any] = {"parent_id": at, "component": name, **held(0, 0, size * GIB)}
            spans.append(span(at + 1, "decode/vae.chunk", times, **about))
    return {"spans": spans}


@pytest.mark.parametrize(
    ("rule", "stage", "other"),
    [("encode_peaks", "encode.text", "decode"), ("decode_peaks", "decode", "encode.text")],
)
def test_the_rank_that_is_furthest_above_another_stage_names_that_stage(
    empty: EmptyRun, rule: str, stage: str, other: str
) -> None:
    """GIVEN ranks that are 8, 10 and 7 GiB above the next stage, which is another one on the second rank."""
    components = {"encode.text": "t5", "decode": "vae"}
    below = [{"denoise": 12, other: 8}, {"denoise": 5, other: 10}, {"denoise": 13, other: 4}]
    ranks = [
        {name: {**peaks, stage: 20}[name] for name in ("encode.text", "denoise", "decode")} for peaks in below
    ]
    config = {"model_config": {"t5_cpu": False}}
    (finding,) = told(diagnose(empty, *(staged(peaks, components) for peaks in ranks), config=config), rule)
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), stage, 10 * GIB)
    assert f"10.0 GiB more than {other}, the next stage below it." in finding.sentence


def test_weights_in_fp32_are_named_by_the_stage_that_made_most_of_them(empty: EmptyRun) -> None:
    """GIVEN ranks with 4, 7 and 5 GiB, of which the second made most in a stage of its own; of each a copy goes."""

    def tables(*made: tuple[str, int]) -> Tables:
        program = Program()
        for number, (stage, size) in enumerate(made):
            with program.span(stage, component="GPT"):
                program.alloc(size * GIB, "weight", f"GPT.{number}", made_as="weight")
                program.free(program.alloc(size * MIB, "weight", f"GPT.{number}", made_as="weight"))
        with program.span("run"):
            program.free(program.alloc(9 * GIB))
        return program.tables()

    ranks = tables(("load", 4)), tables(("first", 1), ("build", 4), ("late", 2)), tables(("load", 5))
    (finding,) = told(diagnose(empty, *ranks, workload="script"), "weights_fp32")
    # The most at once: all three, and the copy of the last.
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "build", (7 * GIB + 2 * MIB) // 2)


@pytest.mark.parametrize(("others", "ranks"), [(18 * GIB, [(0,)]), (18 * GIB + 512, [])])
def test_bf16_must_give_back_a_twentieth(empty: EmptyRun, others: int, ranks: list[tuple[int, ...]]) -> None:
    program = Program()
    with program.span("load", component="GPT"):
        program.alloc(2 * GIB, "weight", "GPT.w", made_as="weight")
    with program.span("run"):
        program.free(program.alloc(others))
    found = told(diagnose(empty, program.tables(), workload="script"), "weights_fp32")
    assert [one.ranks for one in found] == ranks


def test_a_rank_counts_once_where_two_stages_have_its_peak(empty: EmptyRun) -> None:
    """GIVEN a loop that reaches just what loading had reached before."""
    (fp32,) = told(weights_fp32(empty, ranks=2, loop=0), "weights_fp32")
    assert (fp32.ranks, fp32.bytes) == ((0, 1), 2 * PARAMETERS)


def test_weights_that_fp8_would_halve_are_told_of_the_rank_with_most(empty: EmptyRun) -> None:
    """GIVEN ranks with 2, 2.5 and 2.25 bytes a parameter; the second peaks as it loads, the third there and later."""
    tables: list[Tables] = []
    totals = []
    for quarters, load, loop in ((8, 0, GIB), (10, 2 * GIB, GIB), (9, GIB, GIB)):
        size = quarters * PARAMETERS // 4
        spans = [
            span(1, "load.dit", (0, 90), component="dit", **held(0, size, size + load)),
            span(2, "denoise", (100, 900), step=0, component="dit", **held(size, size, size + loop)),
        ]
        tables.append({"spans": spans})
        totals.append({"status": "ok", "device_total_bytes": size + max(load, loop)})
    config = {"model_config": {"task": "t2v-1.3B", "precision": "bf16", "weights_dtype": "precision"}}
    (finding,) = told(diagnose(empty, *tables, rank_rows=totals, config=config), "weights_fp8")
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "load.dit", SAVED * 5 // 4)
    assert "weights take 3.30 GiB of the peak on ranks 0 to 2" in finding.sentence


def test_gradients_that_stay_are_told_where_most_of_them_are(empty: EmptyRun) -> None:
    ranks = [
        trained(gradients=2 * GIB, is_kept=True),
        trained(gradients=4 * GIB, is_kept=True, peak_in="forward"),
        trained(gradients=3 * GIB, is_kept=True),
    ]
    (finding,) = told(
        diagnose(empty, *(rank.tables() for rank in ranks), workload="script"), "gradients_kept"
    )
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "forward", 4 * GIB)


def test_gradients_of_several_parameters_are_added_up_for_each_component(empty: EmptyRun) -> None:
    """GIVEN gradients of two components from an earlier step, each in three tensors; one is on the first rank alone."""

    def tables(sizes: Mapping[str, int]) -> Tables:
        program = Program()
        with program.span("load.GPT", component="GPT"):
            program.alloc(GIB, "weight", "GPT.w", made_as="weight")
        with program.span("backward", "backward", step=0):
            for component, size in sizes.items():
                for part in range(3):
                    program.alloc(size * (part + 1), "gradient", f"{component}.{part}", component)
        with program.span("optimizer", "optimizer", step=0):
            program.free(program.alloc(MIB))
        with program.span("backward", "backward", step=1):
            program.free(program.alloc(20 * GIB, made_as="temporary"))
        return program.tables()

    ranks = tables({"GPT": GIB // 2, "Head": GIB}), tables({"GPT": GIB})
    found = told(diagnose(empty, *ranks, workload="script"), "gradients_kept")
    assert sorted((one.component, one.ranks, one.bytes) for one in found) == [
        ("GPT", (0, 1), 6 * GIB),
        ("Head", (0,), 6 * GIB),
    ]


def test_nccl_is_told_in_the_stage_of_the_rank_where_it_holds_most(empty: EmptyRun) -> None:
    """GIVEN ranks with 2, 4 and 3 GiB of one, two and three groups; a further group of each has made no call."""
    tables = []
    for rank, (path, size) in enumerate((("denoise", 2), ("decode/vae.chunk", 4), ("encode", 3))):
        rest = 20 * GIB - size * GIB
        same = dict.fromkeys(("allocated", "active", "reserved"), (rest, rest, rest))
        groups = [
            blank("communicators", group=str(number), t_ns=5, backend="nccl", group_size=2, bytes=GIB,
                  how_known="own", num_calls=1)
            for number in range(rank + 1)
        ]  # fmt: skip
        groups.append(
            blank(
                "communicators", group="idle", t_ns=5, backend="nccl", group_size=2, bytes=0, how_known="none"
            )
        )
        tables.append({
            "spans": [span(1, path, (10, 90), device_used=(20 * GIB,) * 3, **same)],
            "ledger": [blank("ledger", t_ns=5, account="nccl", bytes=size * GIB)],
            "communicators": groups,
        })  # fmt: skip
    (finding,) = told(diagnose(empty, *tables, workload="script"), "nccl_holds")
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "decode", 4 * GIB)
    assert finding.sentence == (
        "NCCL holds 4.00 GiB for 3 process groups on ranks 0 to 2 when the device is fullest."
    )


def test_the_largest_batch_names_stage_and_component(empty: EmptyRun) -> None:
    """GIVEN five ranks, of which the second keeps 5 GiB more, and the fourth 10 GiB, of a class of its own."""
    ranks = [
        trained(),
        trained(head=25 * GIB),
        trained(),
        trained(head=30 * GIB, peak_in="forward", component="Net"),
        trained(),
    ]
    (finding,) = told(diagnose(empty, *(rank.tables() for rank in ranks), workload="script"), "batch_larger")
    # With what its forward pass takes at the peak itself.
    assert (finding.ranks, finding.stage, finding.component, finding.bytes) == (
        (1, 3), "forward", "Net", 10 * GIB + GIB // 16,
    )  # fmt: skip


def test_state_of_an_optimizer_is_told_of_the_rank_with_most_and_by_the_dtype_of_most_bytes(
    empty: EmptyRun,
) -> None:
    """GIVEN 4 GiB of fp32 on one rank between ranks with 2 and 3 GiB of bf16."""
    ranks = [
        trained(state=2 * GIB, state_dtype="bfloat16"),
        trained(state=4 * GIB, peak_in="forward"),
        trained(state=3 * GIB, state_dtype="bfloat16"),
    ]
    (finding,) = told(
        diagnose(empty, *(rank.tables() for rank in ranks), workload="script"), "optimizer_state"
    )
    assert (finding.ranks, finding.stage, finding.bytes) == ((0, 1, 2), "forward", 4 * GIB)
    assert finding.sentence.endswith("on ranks 0 to 2, most of it in bfloat16.")
    assert finding.knob.startswith("shard it over the 3 ranks")


def test_state_that_one_rank_has_beside_what_all_keep(empty: EmptyRun) -> None:
    def tables(*names: str) -> Tables:
        program = Program()
        with program.span("load.GPT", component="GPT"):
            program.alloc(GIB, "weight", "GPT.w", made_as="weight")
        with program.span("optimizer", "optimizer", step=0):
            for name in names:
                program.alloc(GIB, "optimizer", name, made_as="temporary")
        return program.tables()

    ranks = tables("GPT.v exp_avg", "GPT.w exp_avg"), tables("GPT.w exp_avg")
    (finding,) = told(diagnose(empty, *ranks, workload="script"), "optimizer_state")
    assert (finding.ranks, finding.bytes) == ((0, 1), 2 * GIB)
    assert finding.knob.startswith("shard it over the 2 ranks that all keep it whole")


def test_two_states_of_one_parameter_on_one_rank_are_no_copies(empty: EmptyRun) -> None:
    program = Program()
    with program.span("load.GPT", component="GPT"):
        program.alloc(GIB, "weight", "GPT.w", made_as="weight")
    with program.span("optimizer", "optimizer", step=0):
        for _ in range(2):
            program.alloc(GIB, "optimizer", "GPT.w state", made_as="temporary")
    (finding,) = told(diagnose(empty, program.tables(), workload="script"), "optimizer_state")
    assert (finding.bytes, finding.knob.startswith("an optimizer with states of 8 bits")) == (2 * GIB, True)


def test_what_was_predicted_is_told_of_the_rank_that_is_furthest_from_it(empty: EmptyRun) -> None:
    """GIVEN ranks that hold 2, 5 and 3 GiB more than the 10, 20 and 30 that are predicted."""
    tables = []
    for predicted, more in ((10, 2), (20, 5), (30, 3)):
        size = (predicted + more) * GIB
        told_before = [{"stage": "denoise", "account": "allocated", "bytes": predicted * GIB}]
        tables.append(
            {"spans": [span(1, "denoise", (1, 2), allocated=(0, 0, size))], "predicted": told_before}
        )
    (finding,) = told(diagnose(empty, *tables), "unpredicted")
    assert (finding.ranks, finding.bytes) == ((0, 1, 2), 5 * GIB)
    assert "5.00 GiB more in tensors in denoise than the 20.0 GiB that are predicted" in finding.sentence


def test_a_rank_without_a_row_may_have_a_clock_of_its_own(empty: EmptyRun) -> None:
    """GIVEN two ranks on one host and a third of which the driver wrote no row, by whose clock it begins late."""
    late = 30 * 10**9
    ranks: list[Tables] = [{"spans": [span(1, "denoise", (ns, ns + late))]} for ns in (0, 0, late)]
    rows = [{"status": "ok", "host": "a"}] * 3
    (finding,) = told(diagnose(empty, *ranks, rank_rows=rows), "starts_late")
    assert finding.ranks == (2,)
    empty.connection.execute("DELETE FROM ranks WHERE rank = 2")
    assert told(findings(empty.connection), "starts_late") == []


def test_the_hidden_layer_is_told_once_of_the_fullest_rank(empty: EmptyRun) -> None:
    """GIVEN three ranks of several stages, of which the second takes a MiB more in the loop; two chunks are alive."""
    narrow, wide = (1024 * width * 2 for width in (1536, 8960))

    def tables(others: int) -> Tables:
        peak = others + narrow + 2 * wide
        spans = [
            span(1, "encode.text", (0, 9), component="t5", **held(0, 0, GIB // 8)),
            span(2, "denoise", (10, 90), step=0, component="dit", **held(0, 0, peak)),
            span(3, "decode", (90, 99), component="vae", **held(0, 0, GIB // 9)),
        ]
        sizes = (others, narrow, wide, wide)
        rows = [("alloc", size, address, 2) for address, size in enumerate(sizes, 1)]
        rows += [("free_requested", size, address, 2) for address, size in enumerate(sizes, 1)]
        return {"spans": spans, "allocs": events(*rows)}

    config = {"model_config": {"task": "t2v-1.3B"}}
    found = diagnose(empty, *(tables(200 * MIB + more) for more in (0, MIB, 0)), config=config)
    (finding,) = told(found, "ffn_hidden")
    assert (finding.ranks, finding.stage, finding.bytes) == ((1,), "denoise", 2 * wide)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("task", "widths"), [("t2v-1.3B", (1536, 8960)), ("i2v-14B", (5120, 13824))])
def test_gathered_weights_of_both_sizes_are_no_hidden_layer(
    empty: EmptyRun, task: str, widths: tuple[int, int], itemsize: int
) -> None:
    """GIVEN a block's own weights whole on the rank, in their ratio of widths: they do not count."""
    gathered = [widths[0] * widths[1] * itemsize, widths[0] * widths[0] * itemsize]
    (finding,) = told(
        ffn_hidden(empty, task=task, widths=widths, gathered=gathered, others=100 * MIB), "ffn_hidden"
    )
    assert finding.bytes == 1024 * widths[1] * 2
