"""Random weights, filling a module, and the official files: what fits, and every way not to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan.config import TASKS, Task
from wan.errors import WeightsError
from wan.networks.dit import WanDit
from wan.networks.image import build_image_encoder
from wan.networks.text import build_text_encoder
from wan.weights import checkpoint
from wan.weights.checkpoint import (
    CLIP_FILE,
    DIT_FILE,
    DIT_INDEX_FILE,
    TEXT_FILE,
    VAE_FILE,
)
from wan.weights.fill import (
    POOL_SIZE,
    RandomSource,
    expected_shapes,
    load,
    materialize,
    on_meta,
    random_clip,
    random_dit,
)

TASK = TASKS["t2v-tiny"]


def read(
    name: str, *shape: int, source: RandomSource | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    target = torch.empty(shape, dtype=dtype)
    (source or RandomSource()).read_into(name, target)
    return target


def meta_dit(task: Task = TASK) -> WanDit:
    return on_meta(lambda: WanDit(task.dit), torch.float32)


def dit_weights(task: Task = TASK) -> dict[str, Tensor]:
    source = random_dit()
    return {
        name: read(name, *shape, source=source) for name, shape in expected_shapes(meta_dit(task)).items()
    }


def save_shards(folder: Path, weights: dict[str, Tensor]) -> list[str]:
    """Two shards and their index."""
    keys = list(weights)
    halves = {"a-00001-of-00002.safetensors": keys[::2], "a-00002-of-00002.safetensors": keys[1::2]}
    for name, half in halves.items():
        save_file({key: weights[key] for key in half}, folder / name)
    weight_map = {key: name for name, half in halves.items() for key in half}
    (folder / DIT_INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return list(halves)


def cut_short(path: Path) -> int:
    """Cut `path` in the middle, as a broken download would; its size afterwards."""
    size = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:size])
    return size


def is_untouched(module: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


# Random weights


def test_random_values_are_the_same_everywhere_and_for_ever() -> None:
    values = read("blocks.0.self_attn.q.weight", 2, 4)

    assert torch.equal(values, read("blocks.0.self_attn.q.weight", 2, 4))
    expected = torch.tensor(
        [[-0.317891, -0.86707, 0.385108, 0.309129], [-0.283001, -0.378876, -0.357093, -0.22322]]
    )
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


def test_random_values_differ_by_name_and_seed() -> None:
    values = read("a.weight", 8, 8)

    assert not torch.equal(values, read("b.weight", 8, 8))
    assert not torch.equal(values, read("a.weight", 8, 8, source=RandomSource(seed=1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_values_are_rounded_not_drawn_again(dtype: torch.dtype) -> None:
    assert torch.equal(read("a.weight", 8, 8, dtype=dtype), read("a.weight", 8, 8).to(dtype))


def test_what_the_official_file_stores_in_bf16_is_random_in_bf16() -> None:
    values = read("vace_blocks.0.after_proj.weight", 8, 8, source=random_dit())

    assert torch.equal(values, values.bfloat16().float())


def test_tensors_larger_than_the_pool_repeat_it() -> None:
    values = read("a.weight", POOL_SIZE + 1000)

    assert torch.equal(values[POOL_SIZE:], values[:1000])


def test_parts_of_one_official_tensor_make_the_whole() -> None:
    parts = [
        read(f"blocks.2.self_attn.{name}_proj.weight", 4, 4, source=random_clip()) for name in ("q", "k", "v")
    ]

    assert torch.equal(torch.cat(parts), read("visual.transformer.2.attn.to_qkv.weight", 12, 4))


@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("blocks.0.ffn.0.weight", (500, 64), 0.0, 64**-0.5),
        ("patch_embedding.weight", (500, 16, 1, 2, 2), 0.0, 64**-0.5),
        ("blocks.0.ffn.0.bias", (50_000,), 0.0, 0.02),
        ("blocks.0.norm3.weight", (50_000,), 1.0, 0.02),
        ("decoder.head.0.gamma", (50_000, 1, 1, 1), 1.0, 0.02),
        ("blocks.0.modulation", (1, 600, 64), 0.0, 64**-0.5),
        ("img_emb.emb_pos", (1, 514, 64), 0.0, 64**-0.5),
    ],
)
def test_random_scales(name: str, shape: tuple[int, ...], mean: float, std: float) -> None:
    values = read(name, *shape)

    assert abs(values.mean().item() - mean) < 0.02 * std
    assert abs(values.std().item() / std - 1) < 0.02


def test_released_sources_read_on(tmp_path: Path) -> None:
    save_file(dit_weights(), tmp_path / DIT_FILE)
    for source in (random_dit(), checkpoint.open_dit(TASK, tmp_path)):
        values = torch.empty(64)
        source.read_into("head.head.bias", values)
        source.release()
        again = torch.empty(64)
        source.read_into("head.head.bias", again)

        assert torch.equal(values, again)


def test_materialize_leaves_nothing_behind() -> None:
    source = random_dit()

    materialize(meta_dit(), source, "cpu")

    assert source._pools == {}


def test_a_number_without_axes() -> None:
    assert read("log_scale").shape == ()


def test_a_view_of_a_flat_buffer_can_be_filled() -> None:
    buffer = torch.zeros(40)

    RandomSource().read_into("a.weight", buffer[4:36].view(4, 8))

    assert torch.equal(buffer[4:36].view(4, 8), read("a.weight", 4, 8))
    assert torch.equal(buffer[:4], torch.zeros(4))
    assert torch.equal(buffer[36:], torch.zeros(4))


# Filling a module


def test_a_module_without_parameters_needs_nothing() -> None:
    load(nn.Sequential(), RandomSource(), "cpu")


def test_one_block_is_filled_alone() -> None:
    dit = meta_dit()

    materialize(dit.blocks[1], random_dit(), "cpu", dtype=torch.bfloat16, prefix="blocks.1.")

    weights = dit_weights()
    filled = {name: parameter for name, parameter in dit.named_parameters() if not parameter.is_meta}
    assert set(filled) == {name for name in weights if name.startswith("blocks.1.")}
    for name, parameter in filled.items():
        assert (parameter.dtype, parameter.requires_grad) == (torch.bfloat16, False)
        assert torch.equal(parameter, weights[name].bfloat16())


def test_on_meta_leaves_the_default_dtype_alone() -> None:
    linear = on_meta(lambda: nn.Linear(2, 2), torch.bfloat16)

    assert (linear.weight.dtype, linear.weight.is_meta, linear.training) == (torch.bfloat16, True, False)
    assert torch.get_default_dtype() == torch.float32


# The DiT in files


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_a_dit_from_files_is_the_one_that_was_saved(tmp_path: Path, sharded: bool) -> None:
    # GIVEN a checkpoint of mixed dtypes, as VACE's is
    task = TASKS["vace-tiny"]
    stored = {
        name: value.bfloat16() if name.startswith("vace_") else value
        for name, value in dit_weights(task).items()
    }
    if sharded:
        save_shards(tmp_path, stored)
    else:
        save_file(stored, tmp_path / DIT_FILE)
    # WHEN it is loaded in fp32
    dit = meta_dit(task)
    load(dit, checkpoint.open_dit(task, tmp_path), "cpu")
    # THEN every value is there
    state = dit.state_dict()
    assert list(state) == list(stored)
    for name, value in state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float()), name


def test_mappings_are_dropped_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = dit_weights()
    save_shards(tmp_path, weights)
    monkeypatch.setattr(checkpoint, "MAPPED_LIMIT_BYTES", 1)
    dit = meta_dit()

    load(dit, checkpoint.open_dit(TASK, tmp_path), "cpu")

    assert all(torch.equal(value, weights[name]) for name, value in dit.state_dict().items())


@pytest.mark.parametrize("held", ["t2v-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny"])
@pytest.mark.parametrize("asked", ["t2v-tiny", "t2i-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny"])
def test_the_checkpoint_of_another_task_is_named(tmp_path: Path, held: str, asked: str) -> None:
    save_file(dit_weights(TASKS[held]), tmp_path / DIT_FILE)
    if held == asked or {held, asked} == {"t2v-tiny", "t2i-tiny"}:
        checkpoint.open_dit(TASKS[asked], tmp_path).check(expected_shapes(meta_dit(TASKS[asked])))
        return

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASKS[asked], tmp_path)

    article = "an" if held == "i2v-tiny" else "a"
    assert str(caught.value) == f"folder {tmp_path} holds {article} {held} checkpoint, the task is {asked}"
    hint = "--task t2v-tiny or --task t2i-tiny" if held == "t2v-tiny" else f"--task {held}"
    assert caught.value.hint == hint


def test_a_full_size_checkpoint_is_recognised_by_its_shapes(tmp_path: Path) -> None:
    shapes = expected_shapes(meta_dit(TASKS["i2v-14B"]))

    with pytest.raises(WeightsError) as caught:
        checkpoint._refuse_other_task(TASKS["t2v-14B"], tmp_path, shapes)

    assert str(caught.value) == f"folder {tmp_path} holds an i2v-14B checkpoint, the task is t2v-14B"
    assert caught.value.hint == "--task i2v-14B"


def test_a_dit_of_no_task(tmp_path: Path) -> None:
    weights = {key: value for key, value in dit_weights().items() if not key.startswith("blocks.3.")}
    save_file(weights, tmp_path / DIT_FILE)

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, tmp_path)

    assert str(caught.value) == (
        f"folder {tmp_path} holds a t2v checkpoint of width 64, 16 input channels and 3 layers, "
        "the task is t2v-tiny"
    )


def test_no_dit_at_all(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / DIT_FILE)

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, tmp_path)

    assert str(caught.value) == (
        f"folder {tmp_path} holds no Wan2.1 DiT: it has no key patch_embedding.weight"
    )


def refused(tmp_path: Path, weights: dict[str, Tensor], sharded: bool = False) -> str:
    """The message that refuses `weights`; nothing may have been loaded."""
    if sharded:
        save_shards(tmp_path, weights)
    else:
        save_file(weights, tmp_path / DIT_FILE)
    dit = meta_dit()
    with pytest.raises(WeightsError) as caught:
        load(dit, checkpoint.open_dit(TASK, tmp_path), "cpu")
    assert is_untouched(dit)
    return str(caught.value)


def test_missing_keys(tmp_path: Path) -> None:
    weights = {key: value for key, value in dit_weights().items() if ".norm3." not in key}

    assert refused(tmp_path, weights) == (
        f"{tmp_path / DIT_FILE} does not fit the model: 8 missing: "
        "blocks.0.norm3.weight, blocks.0.norm3.bias, blocks.1.norm3.weight and 5 more"
    )


def test_unknown_key(tmp_path: Path) -> None:
    weights = dit_weights() | {"blocks.0.lora_A.weight": torch.zeros(1)}

    assert refused(tmp_path, weights) == (
        f"{tmp_path / DIT_FILE} does not fit the model: 1 unknown: blocks.0.lora_A.weight"
    )


def test_wrong_shape_in_a_shard(tmp_path: Path) -> None:
    weights = dit_weights()
    weights["head.head.weight"] = torch.zeros(3, 64)
    shard = "a-00001-of-00002.safetensors" if list(weights).index("head.head.weight") % 2 == 0 else (
        "a-00002-of-00002.safetensors"
    )  # fmt: skip

    assert refused(tmp_path, weights, sharded=True) == (
        f"{tmp_path} does not fit the model: 1 wrong shape: "
        f"head.head.weight (in {shard}) is [3, 64], expected [64, 64]"
    )


def test_everything_wrong_at_once_is_one_line(tmp_path: Path) -> None:
    weights = dit_weights() | {"extra": torch.zeros(1), "head.head.bias": torch.zeros(2)}
    del weights["blocks.0.modulation"]

    assert refused(tmp_path, weights) == (
        f"{tmp_path / DIT_FILE} does not fit the model: 1 missing: blocks.0.modulation; 1 unknown: extra; "
        "1 wrong shape: head.head.bias is [2], expected [64]"
    )


# Folders and files that are not whole


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASKS["t2v-14B"], tmp_path / "nowhere")

    assert str(caught.value) == f"no such checkpoint folder: {tmp_path}/nowhere"
    assert caught.value.hint == "give the official folder of t2v-14B: Wan2.1-T2V-14B"


@pytest.mark.parametrize(
    ("opened", "name"),
    [
        (checkpoint.open_dit, DIT_FILE),
        (checkpoint.open_vae, VAE_FILE),
        (checkpoint.open_text, TEXT_FILE),
        (checkpoint.open_clip, CLIP_FILE),
    ],
)
def test_absent_file(tmp_path: Path, opened: object, name: str) -> None:
    assert callable(opened)
    with pytest.raises(WeightsError) as caught:
        opened(TASKS["i2v-tiny"], tmp_path)

    assert str(caught.value) == f"no such file: {tmp_path / name}"


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "a shard"])
def test_truncated_safetensors(tmp_path: Path, sharded: bool) -> None:
    # GIVEN a checkpoint with one file cut in the middle
    if sharded:
        path = tmp_path / save_shards(tmp_path, dit_weights())[1]
    else:
        path = tmp_path / DIT_FILE
        save_file(dit_weights(), path)
    size = cut_short(path)
    # WHEN it is opened
    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, tmp_path)
    # THEN the file is named, before anything is loaded
    assert str(caught.value).startswith(f"{path} ({size:,} bytes) cannot be read: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_truncated_pth(tmp_path: Path) -> None:
    path = tmp_path / VAE_FILE
    torch.save({"encoder.conv1.weight": torch.zeros(4096)}, path)
    path.write_bytes(path.read_bytes()[:9000])

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_vae(TASK, tmp_path)

    assert str(caught.value).startswith(f"{path} (9,000 bytes) cannot be read: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_missing_shard(tmp_path: Path) -> None:
    shard = save_shards(tmp_path, dit_weights())[0]
    (tmp_path / shard).unlink()

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, tmp_path)

    assert str(caught.value) == f"{tmp_path / DIT_INDEX_FILE} names 2 shards; 1 missing: {shard}"
    assert caught.value.hint == f"the download is not complete; put the shards into {tmp_path}"


# The VAE, T5 and CLIP


class TwoHalves(nn.Module):
    """Named like the VAE: conv1 ends the encoder, conv2 starts the decoder."""

    def __init__(self, parts: str) -> None:
        super().__init__()
        if "e" in parts:
            self.encoder, self.conv1 = nn.Linear(2, 2), nn.Linear(2, 2)
        if "d" in parts:
            self.decoder, self.conv2 = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize("parts", ["e", "d", "ed"])
def test_either_half_of_the_vae_can_be_had(tmp_path: Path, parts: str) -> None:
    saved = TwoHalves("ed").state_dict()
    torch.save(saved, tmp_path / VAE_FILE)
    module = TwoHalves(parts)

    load(module, checkpoint.open_vae(TASK, tmp_path), "cpu")

    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("key", ["quant_conv.weight", "decoder.extra"])
def test_unknown_keys_of_the_vae_are_refused_all_the_same(tmp_path: Path, key: str) -> None:
    torch.save(TwoHalves("ed").state_dict() | {key: torch.zeros(1)}, tmp_path / VAE_FILE)

    with pytest.raises(WeightsError) as caught:
        load(TwoHalves("d"), checkpoint.open_vae(TASK, tmp_path), "cpu")

    assert str(caught.value) == f"{tmp_path / VAE_FILE} does not fit the model: 1 unknown: {key}"


def test_t5_keys_are_checked_under_their_official_names(tmp_path: Path) -> None:
    torch.save({"token_embedding.weight": torch.zeros(512, 16)}, tmp_path / TEXT_FILE)

    with pytest.raises(WeightsError) as caught:
        load(build_text_encoder(TASK.text, torch.bfloat16), checkpoint.open_text(TASK, tmp_path), "cpu")

    assert str(caught.value) == (
        f"{tmp_path / TEXT_FILE} does not fit the model: 21 missing: blocks.0.attn.q.weight, "
        "blocks.0.attn.k.weight, blocks.0.attn.v.weight and 18 more; 1 wrong shape: "
        "token_embedding.weight is [512, 16], expected [512, 32]"
    )


def test_clip_keys_are_checked_and_what_is_not_needed_is_known(tmp_path: Path) -> None:
    task = TASKS["i2v-tiny"]
    assert task.clip is not None
    unused = [
        "textual.x",
        "log_scale",
        "visual.head",
        "visual.post_norm.weight",
        "visual.transformer.2.norm1.weight",
    ]
    unknown = {"visual.transformer.3.norm1.weight": torch.zeros(1)}
    torch.save(dict.fromkeys(unused, torch.zeros(1)) | unknown, tmp_path / CLIP_FILE)

    with pytest.raises(WeightsError) as caught:
        load(build_image_encoder(task.clip, torch.float32), checkpoint.open_clip(task, tmp_path), "cpu")

    assert str(caught.value) == (
        f"{tmp_path / CLIP_FILE} does not fit the model: 29 missing: visual.cls_embedding, "
        "visual.patch_embedding.weight, visual.pos_embedding and 26 more; "
        "1 unknown: visual.transformer.3.norm1.weight"
    )
