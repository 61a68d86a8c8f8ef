"""Whole tiny runs on the CPU: no lever changes the video, and the spans tell each stage in its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from wan.config import NEGATIVE_PROMPT, TASKS, TextConfig, sides_of
from wan.errors import InputError
from wan.levers import Levers
from wan.pipeline import Conditions, Pipeline, Request
from wan.spans import Attribute, listening
from wan.weights.tokenizer import Tokenizer

VIDEO_TASKS = ("t2v-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny")
PARTS_OF_NETWORKS = ("dit.block", "dit.vace_block", "dit.head", "vae.", "t5.", "clip.")
OFF = Levers(attention_slicing=False, ffn_chunks=1, rope_chunks=1, vae_slabs=1, fused_kernels=False)
ON = Levers(attention_slicing=True, ffn_chunks=5, rope_chunks=3, vae_slabs=1, gradient_checkpointing=True)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def request(task: str, **changes: object) -> Request:
    given: dict[str, dict[str, object]] = {
        "i2v-tiny": {"image": picture()},
        "flf2v-tiny": {"first_frame": picture(), "last_frame": picture(1)},
        "vace-tiny": {"src_ref_images": (picture(), picture(1))},
    }
    return Request(**({"prompt": "a fox", "steps": 2} | given.get(task, {}) | changes))  # type: ignore[arg-type]


def pipeline(task: str, **options: object) -> Pipeline:
    options = {"ckpt_dir": None, "device": "cpu", "precision": "fp32"} | options
    return Pipeline(TASKS[task], **options)  # type: ignore[arg-type]


def video(task: str, levers: Levers | None = None, **options: object) -> Tensor:
    return pipeline(task, levers=levers, **options).generate(request(task))


@dataclass
class Heard:
    """A listener that keeps the spans as an indented list; the parts of networks are left out."""

    lines: list[str] = field(default_factory=list)
    depth: int = 0

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        if not name.startswith(PARTS_OF_NETWORKS):
            self.lines.append(" ".join(["  " * self.depth + name, *map(str, attributes.values())]))
        self.depth += 1

    def exit(self, name: str, failed: bool) -> None:
        assert not failed
        self.depth -= 1

    def count(self, start: str) -> int:
        return sum(line.strip().startswith(start) for line in self.lines)


def heard(made_by: Pipeline, wanted: Request) -> Heard:
    heard = Heard()
    with listening(heard):
        made_by.generate(wanted)
    assert heard.depth == 0
    return heard


# --------------------------------------------------------------------------------
# The result does not depend on how memory is saved


@pytest.mark.parametrize("task", VIDEO_TASKS)
def test_levers_leave_the_video_but_for_rounding(task: str) -> None:
    plain = video(task, OFF)

    assert plain.shape == (3, 9, 48, 64)
    assert plain.dtype == torch.float32
    assert 0.05 < plain.std() and plain.abs().max() <= 1
    torch.testing.assert_close(video(task, ON), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(video(task, replace(ON, vae_slabs=3)), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", VIDEO_TASKS)
@pytest.mark.parametrize("offload", [True, False])
def test_strategies_agree_in_every_bit(task: str, offload: bool) -> None:
    full = video(task, load_strategy="full", offload_model=True)
    for strategy in ("full", "block", "stream"):
        made = pipeline(task, load_strategy=strategy, offload_model=offload)
        first = made.generate(request(task))
        assert torch.equal(first, full)
        assert torch.equal(made.generate(request(task)), full), (
            "the second video of a pipeline is as the first"
        )


def test_t5_cpu_on_the_cpu_changes_nothing() -> None:
    assert torch.equal(video("t2v-tiny", t5_cpu=True), video("t2v-tiny"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_stay_near(precision: str) -> None:
    reference = video("t2v-tiny")
    made = video("t2v-tiny", precision=precision)

    assert not torch.equal(made, reference)
    assert (made - reference).square().mean().sqrt() < 0.2 * reference.std()


def test_weights_follow_their_seed() -> None:
    assert not torch.allclose(video("t2v-tiny", weights_seed=1), video("t2v-tiny"), atol=0.1)


# --------------------------------------------------------------------------------
# The result depends on what it should


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"prompt": "a boat"},
        {"negative_prompt": "grey"},
        {"steps": 3},
        {"shift": 2.0},
        {"guide_scale": 3.0},
        {"guide_scale": 1.0},
        {"solver": "dpm++"},
    ],
    ids=str,
)
def test_every_sampling_value_matters(change: dict[str, object]) -> None:
    made = pipeline("t2v-tiny", offload_model=False)
    plain = made.generate(request("t2v-tiny"))
    other = made.generate(request("t2v-tiny", **change))

    assert other.shape == plain.shape
    assert torch.isfinite(other).all()
    assert not torch.allclose(other, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("i2v-tiny", {"image": picture(2)}),
        ("flf2v-tiny", {"first_frame": picture(2)}),
        ("flf2v-tiny", {"last_frame": picture(2)}),
        ("vace-tiny", {"src_ref_images": (picture(), picture(2))}),
        ("vace-tiny", {"src_ref_images": (picture(),)}),
        ("vace-tiny", {"src_video": picture(2)[:, None].expand(-1, 9, -1, -1)}),
    ],
    ids=["image", "first_frame", "last_frame", "second reference", "one reference", "src_video"],
)
def test_every_picture_matters(task: str, change: dict[str, object]) -> None:
    made = pipeline(task, offload_model=False)
    plain, other = made.generate(request(task)), made.generate(request(task, **change))

    assert other.shape == plain.shape
    assert torch.isfinite(other).all()
    assert not torch.allclose(other, plain, atol=1e-3)


def test_a_mask_matters() -> None:
    made = pipeline("vace-tiny", offload_model=False)
    control = picture()[:, None].expand(-1, 9, -1, -1)
    half = torch.zeros(1, 1, 48, 64)
    half[..., 32:] = 1
    masked, whole = (
        made.generate(request("vace-tiny", src_ref_images=(), src_video=control, src_mask=mask))
        for mask in (half, None)
    )

    assert masked.shape == whole.shape == (3, 9, 48, 64)
    assert not torch.allclose(masked, whole, atol=1e-3)


@pytest.mark.parametrize("prefix", ["", "shaky camera, "])
def test_the_default_negative_prompt_is_the_published_one_with_the_prefix_of_the_task(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a tokenizer that remembers what it is asked
    asked: list[list[str]] = []

    def load_tokenizer(folder: None, config: TextConfig) -> Tokenizer:
        def tokenize(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
            asked.append(list(prompts))
            return torch.ones(len(prompts), 32, dtype=torch.int64), torch.ones(len(prompts), 32)

        return tokenize

    monkeypatch.setattr("wan.pipeline.load_tokenizer", load_tokenizer)
    task = replace(TASKS["t2v-tiny"], negative_prefix=prefix)
    made = Pipeline(task, ckpt_dir=None, device="cpu", precision="fp32")

    # WHEN
    for negative in (None, "grey", ""):
        made.encode_prompts(request("t2v-tiny", negative_prompt=negative))
    made.encode_prompts(request("t2v-tiny", guide_scale=1.0))

    # THEN
    assert asked == [["a fox", prefix + NEGATIVE_PROMPT], ["a fox", "grey"], ["a fox", ""], ["a fox"]]


def test_the_official_prefixes() -> None:
    prefixes = {name: task.negative_prefix for name, task in TASKS.items() if task.negative_prefix}
    assert prefixes == {
        "i2v-14B": "\u955c\u5934\u6643\u52a8\uff0c",
        "flf2v-14B": "\u955c\u5934\u5207\u6362\uff0c\u955c\u5934\u6643\u52a8\uff0c",
    }


# --------------------------------------------------------------------------------
# Shapes


@pytest.mark.parametrize(("size", "frames"), [((64, 48), 1), ((32, 80), 5), ((16, 16), 13)])
def test_size_and_length_are_those_asked_for(size: tuple[int, int], frames: int) -> None:
    made = pipeline("t2v-tiny").generate(request("t2v-tiny", size=size, frame_num=frames))
    assert made.shape == (3, frames, size[1], size[0])


def test_i2v_keeps_the_ratio_of_the_image_and_the_area_of_the_size() -> None:
    made = pipeline("i2v-tiny").generate(request("i2v-tiny", image=picture(height=90, width=30)))
    assert made.shape == (3, 9, 96, 32)


def test_references_stand_in_front_of_the_latents_and_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    made, wanted = pipeline("vace-tiny"), request("vace-tiny")
    decoded: list[tuple[int, ...]] = []

    def decode(latents: Tensor) -> Tensor:
        decoded.append(tuple(latents.shape))
        return Pipeline.decode(made, latents)

    monkeypatch.setattr(made, "decode", decode)

    conditions = made.condition(wanted)
    result = made.generate(wanted)

    assert (conditions.num_refs, conditions.shape) == (2, (16, 2 + 3, 6, 8))
    assert conditions.control is not None and conditions.control.shape == (96, 2 + 3, 6, 8)
    assert decoded == [(16, 3, 6, 8)]
    assert result.shape == (3, 9, 48, 64)


def test_latents_are_what_generate_decodes() -> None:
    made, wanted = pipeline("vace-tiny"), request("vace-tiny")
    latents = made.latents(wanted)
    assert (latents.shape, latents.requires_grad) == ((16, 3, 6, 8), False)
    with torch.no_grad():
        assert torch.equal(made.decode(latents), made.generate(wanted))
    with pytest.raises(InputError, match=r"frame_num 4 is not 4n\+1"):
        made.latents(request("vace-tiny", frame_num=4))


def test_without_conditions_the_network_gets_no_extra_input() -> None:
    assert Conditions(shape=(16, 1, 2, 2)).inputs() == {}
    given = Conditions(shape=(16, 1, 2, 2), control=torch.ones(96, 1, 2, 2)).inputs()
    assert {name: value.shape for name, value in given.items()} == {"control": (1, 96, 1, 2, 2)}


def test_a_size_is_width_by_height() -> None:
    assert sides_of("1280*720") == (1280, 720)


# --------------------------------------------------------------------------------
# Stages


ENCODE_TEXT = [
    "encode.text",
    "  load.t5",
    "  residency.onload t5",
    "  residency.offload t5",
]
ENCODE_IMAGE = [
    "encode.image",
    "  load.clip",
    "  residency.onload clip",
    "  residency.offload clip",
]
ENCODE_VIDEO = [
    "encode.video",
    "  load.vae",
    "  residency.onload vae",
    "  residency.offload vae",
]
DENOISE = [
    "load.dit",
    "residency.onload dit",
    "denoise 0",
    "  dit.forward cond",
    "  dit.forward uncond",
    "denoise 1",
    "  dit.forward cond",
    "  dit.forward uncond",
    "residency.offload dit",
]
DECODE = [
    "decode",
    "  load.vae",
    "  residency.onload vae",
    "  residency.offload vae",
]


@pytest.mark.parametrize(
    ("task", "stages"),
    [
        ("t2v-tiny", ENCODE_TEXT + DENOISE + DECODE),
        ("i2v-tiny", ENCODE_TEXT + ENCODE_IMAGE + ENCODE_VIDEO + DENOISE + DECODE),
        ("flf2v-tiny", ENCODE_TEXT + ENCODE_IMAGE + ENCODE_VIDEO + DENOISE + DECODE),
        ("vace-tiny", ENCODE_TEXT + ENCODE_VIDEO + DENOISE + DECODE),
    ],
)
@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
def test_the_stages_in_order(task: str, stages: list[str], strategy: str) -> None:
    assert heard(pipeline(task, load_strategy=strategy), request(task)).lines == stages


@pytest.mark.parametrize(
    ("strategy", "loads"),
    [
        ("full", []),
        ("stream", ["load.vae", "load.vae"]),
        ("block", ["load.t5", "load.vae", "load.dit", "load.vae"]),
    ],
)
def test_the_second_video_loads_again_only_what_was_dropped(strategy: str, loads: list[str]) -> None:
    made = pipeline("vace-tiny", load_strategy=strategy)
    made.generate(request("vace-tiny"))

    lines = heard(made, request("vace-tiny")).lines

    assert [line.strip() for line in lines if "load." in line] == loads


def test_without_offloading_the_second_video_moves_nothing() -> None:
    made = pipeline("i2v-tiny", offload_model=False)
    first, second = heard(made, request("i2v-tiny")), heard(made, request("i2v-tiny"))

    assert first.count("residency.offload") == 0
    assert (first.count("residency.onload"), first.count("load.")) == (5, 5)
    assert second.lines == [
        line for line in first.lines if not line.strip().startswith(("load.", "residency.onload"))
    ]


@pytest.mark.parametrize(("guide_scale", "num_forwards"), [(None, 6), (5.0, 6), (0.0, 6), (1.0, 3)])
def test_guidance_1_runs_half_the_passes(guide_scale: float | None, num_forwards: int) -> None:
    spans = heard(pipeline("t2v-tiny"), request("t2v-tiny", steps=3, guide_scale=guide_scale))
    assert spans.count("dit.forward") == num_forwards


def test_guidance_1_is_the_conditional_velocity() -> None:
    # GIVEN the same words to follow and to avoid: both passes agree, and any scale gives the first
    made = pipeline("t2v-tiny", offload_model=False)
    guided = made.generate(request("t2v-tiny", negative_prompt="a fox", guide_scale=7.0))

    torch.testing.assert_close(made.generate(request("t2v-tiny", guide_scale=1.0)), guided, rtol=0, atol=1e-5)


def test_each_step_is_told_when_it_is_done() -> None:
    told: list[tuple[int, int]] = []
    pipeline("t2v-tiny").generate(request("t2v-tiny", steps=3), on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --------------------------------------------------------------------------------
# Without memory: fake tensors take the same path


@pytest.mark.parametrize(
    ("task", "strategy"),
    [("t2v-tiny", "full"), ("t2v-tiny", "block"), ("t2v-tiny", "stream"), ("t2i-tiny", "full"),
     ("i2v-tiny", "full"), ("flf2v-tiny", "full"), ("vace-tiny", "full")],
)  # fmt: skip
def test_fake_tensors_go_all_the_way(task: str, strategy: str) -> None:
    wanted = request(task, steps=1)
    expected = heard(pipeline(task, load_strategy=strategy), wanted).lines
    images = {name: getattr(wanted, name) for name in ("image", "first_frame", "last_frame")}

    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(image) for name, image in images.items() if image is not None}
        refs = tuple(mode.from_tensor(ref) for ref in wanted.src_ref_images)
        made, spans = pipeline(task, load_strategy=strategy), Heard()
        with listening(spans):
            result = made.generate(replace(wanted, **fakes, src_ref_images=refs))

    assert isinstance(result, FakeTensor)
    shape = (3, 1 if task == "t2i-tiny" else 9, 48, 64)
    assert (tuple(result.shape), result.dtype, result.device.type) == (shape, torch.float32, "cpu")
    assert spans.lines == expected
