"""Rules of wan on programs that are none of ours, with the words of Wan2.1 and what such a program can change."""

import re
from typing import Any

import pytest
from diagnosis_runs import PARAMETERS
from empty_run import GIB, MIB, EmptyRun, diagnose, held
from program_runs import Program, public_wan, trained
from run_tables import blank, event, span

from ray_memprof.analysis.diagnosis.diagnose import Finding
from ray_memprof.config.keys import Model

DIFFUSERS = ("UMT5EncoderModel", "WanTransformer3DModel", "AutoencoderKLWan")
CONFIG = {
    "model_config": {"task": "t2v-1.3B", "precision": "bf16", "t5_cpu": False},
    "parallel": {"vae": "rank0"},
}
"""A script's configuration has keys of wan, too, with their defaults."""


def diagnosed(empty: EmptyRun, *programs: Program, **run: Any) -> dict[str, Finding]:
    """What the rules say of a script, by rule."""
    facts: dict[str, Any] = {"workload": "script", "config": CONFIG} | run
    found = diagnose(empty, *(one.tables() for one in programs), **facts)
    assert len({one.rule for one in found}) == len(found)
    return {one.rule: one for one in found}


def words(finding: Finding) -> tuple[Any, ...]:
    return finding.ranks, finding.stage, finding.component, finding.bytes, finding.is_peak


def test_the_public_generate_script_that_keeps_all_on_the_device(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan())
    assert found.keys() == {"t5_stays", "weights_fp32", "decode_peaks"}
    assert words(found["t5_stays"]) == ((0,), "denoise", "t5", 11 * GIB, True)
    assert found["t5_stays"].sentence == (
        "The text encoder is still on the device in the denoise loop, 11.0 GiB of weights on rank 0."
    )
    assert found["t5_stays"].knob == (
        "--offload_model True, which moves it to the CPU after the prompt; or --t5_cpu, which keeps it there"
    )
    assert words(found["weights_fp32"]) == ((0,), "load.dit", "dit", 3 * GIB, True)
    assert found["weights_fp32"].sentence == (
        "The diffusion transformer's weights are stored in fp32 on rank 0: in bf16 they would take 3.00 GiB less."
    )
    assert found["weights_fp32"].knob.startswith("load the DiT in bf16: model.to(torch.bfloat16) ")
    assert words(found["decode_peaks"]) == ((0,), "decode", "vae", 7 * GIB, True)
    assert found["decode_peaks"].sentence == (
        "Decoding makes the peak of rank 0: 7.00 GiB more than denoise, the next stage below it."
    )
    assert found["decode_peaks"].knob == (
        "--offload_model True: they have 17.0 GiB of weights there while it decodes; or decode in tiles or in parts "
        "of the frames"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_ranks_that_decode_the_most_weights_are_told(empty: EmptyRun, order: int) -> None:
    found = diagnosed(empty, *[public_wan(), public_wan(transformer=5 * GIB)][::order])
    assert found["decode_peaks"].ranks == (0, 1)
    assert "they have 17.0 GiB of weights there while it decodes" in found["decode_peaks"].knob


def test_where_owners_name_the_weights_what_loading_added_is_no_proof_of_fp32(empty: EmptyRun) -> None:
    """GIVEN a run of wan whose DiT takes 4 bytes a parameter: in bf16, beside something else that came with it."""
    size = 4 * PARAMETERS
    spans = [
        span(1, "load.dit", (0, 90), component="dit", **held(0, size, size)),
        span(2, "denoise", (100, 900), step=0, component="dit", **held(size, size, size + GIB)),
    ]
    config = {"model_config": {"task": "t2v-1.3B", "precision": "bf16"}}
    weight = event(10, "alloc", size // 2, "weight", span_id=1)
    owner = blank(
        "owners", seq=weight["seq"], owner="dit.w", component="dit", category="weight", dtype="bfloat16"
    )
    told = [
        {one.rule for one in diagnose(empty, {"spans": spans, **more}, config=config)}
        for more in ({}, {"allocs": [weight], "owners": [owner]})
    ]
    assert ["weights_fp32" in rules for rules in told] == [True, False]


def test_the_public_t2v_script_as_it_was_measured(empty: EmptyRun) -> None:
    """GIVEN the weights of t2v-1.3B and the peaks of its stages at 480P on an H200, nothing offloaded."""
    sizes = {"text_encoder": 2 * 5_680_910_336, "transformer": 4 * 1_418_996_800, "vae": 4 * 126_892_531}
    base = sum(sizes.values())
    loop, decode = (int(peak * GIB) - base for peak in (18.47, 24.67))
    found = diagnosed(empty, public_wan(**sizes, loop=loop, decode=decode))
    assert [one.sentence for one in found.values()] == [
        "The text encoder is still on the device in the denoise loop, 10.6 GiB of weights on rank 0.",
        "Decoding makes the peak of rank 0: 6.20 GiB more than denoise, the next stage below it.",
        "The diffusion transformer's weights are stored in fp32 on rank 0: in bf16 they would take 2.64 GiB less.",
    ]
    assert {one.severity for one in found.values()} == {"severe"}


def test_another_program_with_these_networks_has_no_such_flags(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(classes=DIFFUSERS))
    assert [found[rule].knob for rule in ("t5_stays", "weights_fp32", "decode_peaks")] == [
        "move it to the CPU, or drop it, once the prompt is encoded; then torch.cuda.empty_cache()",
        "model.to(torch.bfloat16) before it goes to the device, if what it computes allows that",
        "move the other networks to the CPU first: they have 17.0 GiB of weights there while it decodes; or decode "
        "in tiles or in parts of the frames",
    ]


def test_no_knob_of_a_script_names_a_key(empty: EmptyRun) -> None:
    every = [
        diagnosed(empty, public_wan(classes=names), num_ranks=2) for names in (DIFFUSERS, public_names())
    ]
    every += [
        diagnosed(empty, public_wan(encode=30 * GIB, classes=names), num_ranks=2)
        for names in (DIFFUSERS, public_names())
    ]
    text = " ".join(finding.knob for found in every for finding in found.values())
    assert not re.search(r"model_config|parallel\.|optimization\.", text)
    assert "t5_cpu" in Model.model_fields  # a key of wan, and a flag of the public program
    assert set(re.findall(r"--\w+", text)) == {"--offload_model", "--t5_cpu", "--t5_fsdp"}


def public_names() -> tuple[str, str, str]:
    return ("T5Encoder", "WanModel", "WanVAE_")


def test_networks_that_leave_are_gone(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(offloads=True, dtype="bfloat16", decode=17 * GIB, encode=0))
    assert found == {}


def test_without_owners_the_text_encoder_is_known_by_its_stay(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(has_owners=False))
    assert found.keys() == {"t5_stays", "decode_peaks"}
    assert found["t5_stays"].bytes == 11 * GIB
    assert found["decode_peaks"].knob == "decode in tiles or in parts of the frames"
    assert "t5_stays" not in diagnosed(empty, public_wan(has_owners=False, offloads=True))


def test_on_the_cpu_there_is_no_other_place(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(encode=30 * GIB), source="cpu")
    assert found.keys() == {"weights_fp32"}


def test_encoding_makes_the_peak_of_a_script(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(encode=30 * GIB), num_ranks=2)
    assert words(found["encode_peaks"]) == ((0,), "encode.text", "t5", 22 * GIB, True)
    assert found["encode_peaks"].knob == "--t5_cpu, which encodes on the CPU; or --t5_fsdp"
    other = diagnosed(empty, public_wan(encode=30 * GIB, classes=DIFFUSERS))
    assert other["encode_peaks"].knob == (
        "encode the text on the CPU, or before the other networks come to the device"
    )


def test_one_rank_of_a_script_decodes_alone(empty: EmptyRun) -> None:
    ranks = [public_wan(decodes=rank == 0, dtype="bfloat16") for rank in range(4)]
    found = diagnosed(empty, *ranks)
    assert found.keys() == {"t5_stays", "decodes_alone"}
    assert words(found["decodes_alone"]) == ((0,), "decode", "vae", 8 * GIB, True)
    assert found["decodes_alone"].knob == (
        "let every rank decode a part of the video; or --offload_model True: they have 17.0 GiB of weights there "
        "while it decodes"
    )


def test_one_rank_of_a_script_decodes_below_its_peak(empty: EmptyRun) -> None:
    ranks = [public_wan(decodes=rank == 0, dtype="bfloat16", encode=9 * GIB) for rank in range(2)]
    finding = diagnosed(empty, *ranks)["decodes_alone"]
    assert (finding.is_peak, finding.knob) == (False, "let every rank decode a part of the video")


def test_any_network_that_is_not_trained(empty: EmptyRun) -> None:
    program = Program()
    with program.span("load.Llama", component="Llama"):
        program.alloc(10 * GIB, "weight", "Llama.a", "Llama", made_as="weight")
        program.alloc(GIB, "weight", "Llama.norm", "Llama", "bfloat16", made_as="weight")
    with program.span("Llama", component="Llama", module="Llama", step=0):
        program.free(program.alloc(2 * GIB, component="Llama"))
    found = diagnosed(empty, program)
    assert words(found["weights_fp32"]) == ((0,), "load.Llama", "Llama", 5 * GIB, True)
    assert found["weights_fp32"].sentence == (
        "The weights of Llama are stored in fp32 on rank 0: in bf16 they would take 5.00 GiB less."
    )


@pytest.mark.parametrize("facts", [{"transformer": 100 * MIB}, {"dtype": "bfloat16"}, {"dtype": "float16"}])
def test_weights_of_two_bytes_or_few(empty: EmptyRun, facts: dict[str, Any]) -> None:
    assert "weights_fp32" not in diagnosed(empty, public_wan(**facts))


def test_bf16_must_give_back_a_twentieth(empty: EmptyRun) -> None:
    # Half of the transformer, out of 18 GiB with it.
    facts: dict[str, Any] = {"text_encoder": 8 * GIB, "vae": GIB, "decode": 7 * GIB}
    assert "weights_fp32" in diagnosed(empty, public_wan(transformer=16 * GIB // 9 + 2, **facts))
    assert "weights_fp32" not in diagnosed(empty, public_wan(transformer=16 * GIB // 9 - 64, **facts))


@pytest.mark.parametrize(
    "facts", [{"gradients": GIB}, {"state": GIB // 4}, {"gradients": GIB, "component": None}]
)
def test_weights_that_are_trained_may_need_fp32(empty: EmptyRun, facts: dict[str, Any]) -> None:
    program = trained(weights=8 * GIB, head=10 * GIB, **facts)
    assert "weights_fp32" not in diagnosed(empty, program)
    with program.span("other"):
        program.alloc(4 * GIB, "weight", "Other.w", "Other")
    # A gradient of no component may be of any.
    assert ("weights_fp32" in diagnosed(empty, program)) is ("component" not in facts)


def test_weights_that_leave_before_the_peak_are_below_it(empty: EmptyRun) -> None:
    found = diagnosed(empty, public_wan(offloads=True, decode=30 * GIB))
    assert words(found["weights_fp32"]) == ((0,), "load.dit", "dit", 3 * GIB, False)
    assert found["decode_peaks"].knob == "decode in tiles or in parts of the frames"


def test_wan_with_owners_goes_by_them(empty: EmptyRun) -> None:
    program = public_wan().tables()
    spans = [
        {**row, "path": row["path"].removeprefix("script/"), "depth": row["depth"] - 1}
        for row in program["spans"]
        if row["path"] != "script"
    ]
    config = {"model_config": {"task": "t2v-14B", "precision": "fp32"}}
    found = {one.rule: one for one in diagnose(empty, {**program, "spans": spans}, config=config)}
    assert (found["weights_fp32"].bytes, found["weights_fp32"].knob) == (
        3 * GIB,
        "model_config.precision: bf16, which was fp32",
    )


@pytest.mark.parametrize(
    ("workload", "source", "is_told"),
    [("script", "cuda", True), ("script", "cpu", False), ("wan", "cpu", True), ("wan", "cuda", True)],
)
def test_a_script_on_the_cpu_has_nowhere_else_to_keep_the_text_encoder(
    empty: EmptyRun, workload: str, source: str, is_told: bool
) -> None:
    found = diagnose(empty, public_wan().tables(), workload=workload, source=source, config=CONFIG)
    assert ("t5_stays" in {one.rule for one in found}) == is_told
