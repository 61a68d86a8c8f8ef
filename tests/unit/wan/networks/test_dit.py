"""The DiT against diffusers, its levers against no levers, and its forward pass under fake tensors."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from dit_inputs import inputs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.live_bytes import LiveBytes
from tests.references import relative_error
from tests.tiny_tasks import TINY_TASKS
from wan.config import TASKS, DitConfig
from wan.levers import Levers
from wan.networks.dit import Block, WanDit, token_slices

GIB = 2**30
# Tensor and parameter counts of the published checkpoints.
PUBLISHED = {
    "t2v-1.3B": (825, 1_418_996_800),
    "t2v-14B": (1095, 14_288_491_584),
    "t2i-14B": (1095, 14_288_491_584),
    "i2v-14B": (1303, 16_394_878_784),
    "flf2v-14B": (1304, 16_395_536_704),
    "vace-1.3B": (1264, 2_153_972_032),
    "vace-14B": (1331, 17_337_592_896),
}


def random_dit(config: DitConfig, levers: Levers | None = None) -> WanDit:
    """A tiny model whose every parameter matters: no zeros, no ones."""
    torch.manual_seed(0)
    dit = WanDit(config, levers).requires_grad_(False)
    for parameter in dit.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.1 + (parameter.dim() == 1) * 0.5)
    return dit


def reference(config: DitConfig) -> nn.Module:
    common = {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": True,
    }
    if config.model_type == "vace":
        return WanVACETransformer3DModel(
            **common, vace_layers=list(config.vace_layers), vace_in_channels=config.vace_in_dim
        )
    if config.has_image_context:
        common |= {"image_dim": config.image_dim, "added_kv_proj_dim": config.dim, "in_channels": 36}
    if config.model_type == "flf2v":
        common |= {"pos_embed_seq_len": config.image_len}
    return WanTransformer3DModel(**common)


RENAMES = [
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"^head\.modulation", "scale_shift_table"),
    (r"^head\.head", "proj_out"),
    (r"^img_emb\.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    (r"^img_emb\.proj\.0", "condition_embedder.image_embedder.norm1"),
    (r"^img_emb\.proj\.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    (r"^img_emb\.proj\.3", "condition_embedder.image_embedder.ff.net.2"),
    (r"^img_emb\.proj\.4", "condition_embedder.image_embedder.norm2"),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.self_attn\.([qkv])\.", r".attn1.to_\1."),
    (r"\.self_attn\.o\.", ".attn1.to_out.0."),
    (r"\.self_attn\.norm", ".attn1.norm"),
    (r"\.cross_attn\.([qkv])\.", r".attn2.to_\1."),
    (r"\.cross_attn\.o\.", ".attn2.to_out.0."),
    (r"\.cross_attn\.k_img", ".attn2.add_k_proj"),
    (r"\.cross_attn\.v_img", ".attn2.add_v_proj"),
    (r"\.cross_attn\.norm_k_img", ".attn2.norm_added_k"),
    (r"\.cross_attn\.norm", ".attn2.norm"),
    (r"\.ffn\.0", ".ffn.net.0.proj"),
    (r"\.ffn\.2", ".ffn.net.2"),
    (r"\.norm3", ".norm2"),
    (r"\.before_proj", ".proj_in"),
    (r"\.after_proj", ".proj_out"),
]


def diffusers_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        dit = WanDit(TASKS[name].dit)
    assert (len(dit.state_dict()), sum(p.numel() for p in dit.parameters())) == PUBLISHED[name]


def beside_diffusers(name: str) -> tuple[WanDit, dict[str, Any], nn.Module, dict[str, Any]]:
    """Our model and diffusers' with the same weights, and what each is given."""
    config = replace(TASKS[name].dit, text_len=512)  # diffusers counts 512 text tokens from the end
    dit, other, given = random_dit(config), reference(config), dict[str, Any](inputs(config))
    other.load_state_dict(
        {diffusers_name(key): value for key, value in dit.state_dict().items()}, strict=True
    )
    hidden = given["latents"]
    if "image_latents" in given:
        hidden = torch.cat([hidden, given["image_latents"]], dim=1)
    arguments = {
        "hidden_states": hidden,
        "timestep": given["time"],
        "encoder_hidden_states": given["text"],
        "encoder_hidden_states_image": given.get("image_states"),
    }
    if name == "flf2v-tiny":  # diffusers takes the two images as a batch of two
        arguments["encoder_hidden_states_image"] = given["image_states"].unflatten(1, (2, -1)).flatten(0, 1)
    if "control" in given:
        arguments["control_hidden_states"] = given["control"]
        arguments["control_hidden_states_scale"] = torch.full((len(config.vace_layers),), 0.7)
        given["control_scale"] = 0.7
    return dit, given, other, arguments


@pytest.mark.parametrize("name", TINY_TASKS)
def test_forward_equals_diffusers(name: str) -> None:
    dit, given, other, arguments = beside_diffusers(name)
    hidden = arguments["hidden_states"].clone()
    with torch.no_grad():
        expected = other(**arguments, return_dict=False)[0]
        assert torch.equal(arguments["hidden_states"], hidden)
        actual = dit(**given)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TINY_TASKS)
def test_forward_and_gradients_equal_those_of_diffusers(name: str, checkpointing: bool) -> None:
    # The path that records gradients is another one: nothing is changed in place, no chunks.
    dit, given, other, arguments = beside_diffusers(name)
    dit.requires_grad_(True)
    dit.levers = Levers(gradient_checkpointing=checkpointing)
    expected = other(**arguments, return_dict=False)[0]
    actual = dit(**given)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    for made in (actual, expected):
        (made * torch.linspace(-1, 1, made.numel()).view(made.shape)).sum().backward()
    wanted = dict(other.named_parameters())
    for key, parameter in dit.named_parameters():
        gradient = wanted[diffusers_name(key)].grad
        assert parameter.grad is not None and gradient is not None
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=0, atol=2e-5 * float(gradient.abs().max()), msg=key
        )


@pytest.mark.parametrize("name", ["t2v-tiny", "i2v-tiny", "vace-tiny", "t2v-1.3B", "vace-1.3B", "vace-14B"])
def test_execution_order_is_the_order_in_which_blocks_run(name: str) -> None:
    # GIVEN every module that owns parameters, or has a part that does, and that forward() calls as a whole
    config = TASKS[name].dit
    if not name.endswith("-tiny"):  # the published structure with small layers
        config = replace(config, dim=64, ffn_dim=64, num_heads=4, text_dim=32, text_len=8, freq_dim=32)
    dit, ran = random_dit(config), []
    blocks = [part for part in dit.modules() if isinstance(part, Block)]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: ran.append(module))

    with torch.no_grad():
        dit(**inputs(config, batch=1, shape=(1, 2, 2)))

    # THEN each is in the order once, where it runs
    order = dit.execution_order()
    assert [id(block) for block in order] == [id(block) for block in ran]
    assert {id(block) for block in order} == {id(block) for block in blocks}
    assert len(order) == config.num_layers + len(config.vace_layers)
    # AND what lies outside is what runs before and after them
    inside = {id(parameter) for block in order for parameter in block.parameters()}
    outside = {key.split(".")[0] for key, one in dit.named_parameters() if id(one) not in inside}
    known = {"patch_embedding", "text_embedding", "time_embedding", "time_projection", "head"}
    assert outside - {"img_emb", "vace_patch_embedding"} == known


ALL_OFF = Levers(ffn_chunks=1, rope_chunks=1)


@pytest.mark.parametrize("name", TINY_TASKS)
@pytest.mark.parametrize(
    "levers",
    [
        Levers(ffn_chunks=3, rope_chunks=1),
        Levers(ffn_chunks=1, rope_chunks=5),
        Levers(ffn_chunks=1, rope_chunks=1, attention_slicing=True),
        Levers(ffn_chunks=3, rope_chunks=7, attention_slicing=True, gradient_checkpointing=True),
    ],
    ids=["ffn_chunks", "rope_chunks", "attention_slicing", "all"],
)
def test_levers_leave_the_result_alone(name: str, levers: Levers) -> None:
    config = TASKS[name].dit
    shape = (3, 14, 20)  # 210 tokens: more than one chunk of 128
    with torch.no_grad():
        expected = random_dit(config, ALL_OFF)(**inputs(config, shape=shape))
        actual = random_dit(config, levers)(**inputs(config, shape=shape))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TINY_TASKS)
def test_batch_is_as_videos_one_by_one(name: str) -> None:
    config = TASKS[name].dit
    dit, given = random_dit(config), inputs(config)
    with torch.no_grad():
        together = dit(**given)
        alone = [dit(**{key: value[i : i + 1] for key, value in given.items()}) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_fp32(dtype: torch.dtype) -> None:
    config = TASKS["t2v-tiny"].dit
    given = inputs(config)
    with torch.no_grad():
        expected = random_dit(config)(**given)
        actual = random_dit(config).to(dtype)(**given)
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected) < 0.05


@pytest.mark.parametrize("name", ["t2v-tiny", "vace-tiny"])
def test_gradients_with_checkpointing_equal_those_without(name: str) -> None:
    config = TASKS[name].dit
    gradients = []
    for checkpointing in (False, True):
        levers = Levers(gradient_checkpointing=checkpointing, attention_slicing=True)
        dit = random_dit(config, levers).requires_grad_(True)
        dit(**inputs(config)).square().mean().backward()
        gradients.append([parameter.grad for parameter in dit.parameters()])
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])


class _Storages(TorchDispatchMode):
    """Where each storage lies that an operation makes, in the order in which they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made += [one.untyped_storage().data_ptr() for one in tree_leaves(out) if isinstance(one, Tensor)]
        return out


@pytest.mark.parametrize("name", ["t2v-tiny", "vace-tiny"])
def test_the_result_lies_in_front_of_all_that_a_pass_makes(name: str) -> None:
    """At its end it would divide the free memory, and the next pass would need more."""
    dit, given = random_dit(TASKS[name].dit), inputs(TASKS[name].dit)
    with torch.no_grad(), _Storages() as storages:
        velocity = dit(**given)
    assert storages.made[0] == velocity.untyped_storage().data_ptr()
    assert velocity.untyped_storage().nbytes() == velocity.nbytes


def test_token_slices_cover_the_tokens_once() -> None:
    assert list(token_slices(0, 4)) == []
    assert list(token_slices(7, 2)) == [slice(0, 4), slice(4, 7)]
    assert list(token_slices(100, 1)) == [slice(0, 100)]
    assert list(token_slices(3, 5)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert [part.stop for part in token_slices(75600, 4)] == [18900, 37800, 56700, 75600]


def test_number_of_chunks() -> None:
    assert [Levers().num_chunks(tokens) for tokens in (0, 1, 20480, 32760, 75600)] == [1, 1, 1, 2, 4]
    assert [Levers(attention_slicing=True).num_chunks(tokens) for tokens in (1, 32760, 75600)] == [1, 4, 10]
    assert Levers(ffn_chunks=3).num_chunks(75600) == 3


def fake_peak(name: str, levers: Levers, shape: tuple[int, int, int]) -> int:
    """Live bytes above the weights at the peak of one bf16 forward pass, on fake tensors."""
    config = TASKS[name].dit
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(torch.bfloat16)
        try:
            dit = WanDit(config, levers)
        finally:
            torch.set_default_dtype(torch.float32)
        given = inputs(config, batch=1, shape=shape)
        with LiveBytes() as live:
            out = dit(**given)
        assert out.shape == given["latents"].shape
    return live.peak


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_forward_runs_on_fake_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS[name]
    if not task.dit.vace_layers:
        # Blocks are alike, and what ten of them would keep is above the bound; forty take four times as long.
        monkeypatch.setitem(TASKS, name, replace(task, dit=replace(task.dit, num_layers=10)))
    size = (21, 60, 104) if "1.3B" in name else (21, 90, 160)
    # x fp32 + q, k, v and the output; VACE holds a second stream
    bound = {"t2v-1.3B": 0.9, "vace-1.3B": 1.1, "vace-14B": 6.5}.get(name, 5.0)
    assert 0.3 * GIB < fake_peak(name, Levers(), size) < bound * GIB


def test_each_lever_lowers_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (21, 90, 160)
    # One block has the peak of forty, in a fortieth of the time.
    monkeypatch.setitem(
        TASKS, "t2v-14B", replace(TASKS["t2v-14B"], dit=replace(TASKS["t2v-14B"].dit, num_layers=1))
    )
    plain = Levers(ffn_chunks=1, rope_chunks=1)
    bytes_of = {
        "none": fake_peak("t2v-14B", plain, shape),
        "rope": fake_peak("t2v-14B", replace(plain, rope_chunks=16), shape),
        "rope, ffn": fake_peak("t2v-14B", replace(plain, rope_chunks=16, ffn_chunks=4), shape),
        "all": fake_peak("t2v-14B", Levers(attention_slicing=True), shape),
    }
    assert bytes_of["none"] > bytes_of["rope"] > bytes_of["rope, ffn"] > bytes_of["all"]
    assert bytes_of["all"] < 3.6 * GIB
