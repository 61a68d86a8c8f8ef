"""The folders that make_checkpoint.py writes: official names and sizes, the same model as `random`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import import_script
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from wan.config import TASKS, Task
from wan.networks.dit import WanDit
from wan.networks.image import build_image_encoder
from wan.networks.text import build_text_encoder
from wan.networks.vae.network import WanVae
from wan.weights import checkpoint
from wan.weights.checkpoint import (
    CLIP_FILE,
    DIT_FILE,
    DIT_INDEX_FILE,
    TEXT_FILE,
    VAE_FILE,
)
from wan.weights.fill import (
    Source,
    load,
    on_meta,
    random_clip,
    random_dit,
    random_text,
    random_vae,
)
from wan.weights.tokenizer import TOKENIZER_DIR, load_tokenizer

make_checkpoint = import_script("make_checkpoint")


def build_dit(task: Task, dtype: torch.dtype) -> nn.Module:
    return on_meta(lambda: WanDit(task.dit), dtype)


def build_vae(task: Task, dtype: torch.dtype) -> nn.Module:
    return on_meta(lambda: WanVae(task.vae), dtype)


def build_text(task: Task, dtype: torch.dtype) -> nn.Module:
    return build_text_encoder(task.text, dtype)


def build_clip(task: Task, dtype: torch.dtype) -> nn.Module:
    assert task.clip is not None
    return build_image_encoder(task.clip, dtype)


def test_no_components_is_an_empty_folder(tmp_path: Path) -> None:
    make_checkpoint.write_checkpoint(TASKS["t2v-tiny"], tmp_path / "new", components=())

    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "build", "opened", "random"),
    [
        ("t2v-tiny", build_dit, checkpoint.open_dit, random_dit),
        ("i2v-tiny", build_dit, checkpoint.open_dit, random_dit),
        ("flf2v-tiny", build_dit, checkpoint.open_dit, random_dit),
        ("vace-tiny", build_dit, checkpoint.open_dit, random_dit),
        ("t2v-tiny", build_vae, checkpoint.open_vae, random_vae),
        ("t2v-tiny", build_text, checkpoint.open_text, random_text),
        ("i2v-tiny", build_clip, checkpoint.open_clip, random_clip),
    ],
)
def test_a_folder_and_random_weights_are_the_same_model(
    tmp_path: Path,
    name: str,
    build: Callable[[Task, torch.dtype], nn.Module],
    opened: Callable[[Task, Path], Source],
    random: Callable[[int], Source],
    dtype: torch.dtype,
) -> None:
    task = TASKS[name]
    make_checkpoint.write_checkpoint(task, tmp_path, seed=3)
    from_folder, from_random = build(task, dtype), build(task, dtype)

    load(from_folder, opened(task, tmp_path), "cpu")
    load(from_random, random(3), "cpu")

    expected = from_random.state_dict()
    assert list(expected) == list(from_folder.state_dict())
    for key, value in from_folder.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_the_layout_of_a_folder(tmp_path: Path) -> None:
    make_checkpoint.write_checkpoint(TASKS["vace-tiny"], tmp_path / "vace")
    make_checkpoint.write_checkpoint(TASKS["i2v-tiny"], tmp_path / "i2v")

    common = {DIT_FILE, "config.json", VAE_FILE, TEXT_FILE, "google"}
    assert {path.name for path in (tmp_path / "vace").iterdir()} == common
    assert {path.name for path in (tmp_path / "i2v").iterdir()} == common | {CLIP_FILE}
    assert json.loads((tmp_path / "vace" / "config.json").read_text()) == {
        "_class_name": "VaceWanModel", "_diffusers_version": "0.30.0", "dim": 64, "eps": 1e-6, "ffn_dim": 128,
        "freq_dim": 32, "in_dim": 16, "model_type": "vace", "num_heads": 4, "num_layers": 4, "out_dim": 16,
        "text_len": 32, "vace_layers": [0, 2], "vace_in_dim": 96,
    }  # fmt: skip


def test_other_readers_accept_the_files(tmp_path: Path) -> None:
    make_checkpoint.write_checkpoint(TASKS["vace-tiny"], tmp_path)

    dit = load_file(tmp_path / DIT_FILE)
    assert {key: tensor.dtype for key, tensor in dit.items()} == {
        key: torch.bfloat16 if key.startswith("vace_") else torch.float32 for key in dit
    }
    # Without mmap torch.load reads the whole archive, directory and all.
    text = torch.load(tmp_path / TEXT_FILE, weights_only=True)
    assert {tensor.dtype for tensor in text.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() and tensor.abs().max() > 0 for tensor in text.values())


def test_shards(tmp_path: Path) -> None:
    task = TASKS["t2v-tiny"]
    make_checkpoint.write_checkpoint(task, tmp_path / "whole", components=("dit",))
    make_checkpoint.write_checkpoint(task, tmp_path / "shards", components=("dit",), shard_bytes=500_000)

    index = json.loads((tmp_path / "shards" / DIT_INDEX_FILE).read_text())
    names = sorted({path.name for path in (tmp_path / "shards").glob("*.safetensors")})
    count = len(names)
    assert count > 1
    prefix = "diffusion_pytorch_model"
    assert names == [f"{prefix}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    whole = load_file(tmp_path / "whole" / DIT_FILE)
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name in names:
        shard = load_file(tmp_path / "shards" / name)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 500_000
        for key, tensor in shard.items():
            assert index["weight_map"][key] == name
            assert torch.equal(tensor, whole[key])
    checkpoint.open_dit(task, tmp_path / "shards")


@pytest.mark.parametrize(
    ("name", "tensors", "num_tensors", "num_parameters", "num_bytes"),
    [
        ("t2v-1.3B", make_checkpoint.dit_tensors, 825, 1_418_996_800, 4 * 1_418_996_800),
        ("t2v-14B", make_checkpoint.dit_tensors, 1095, 14_288_491_584, 4 * 14_288_491_584),
        ("i2v-14B", make_checkpoint.dit_tensors, 1303, 16_394_878_784, 4 * 16_394_878_784),
        ("flf2v-14B", make_checkpoint.dit_tensors, 1304, 16_395_536_704, 4 * 16_395_536_704),
        ("vace-1.3B", make_checkpoint.dit_tensors, 1264, 2_153_972_032, 2 * (2_153_972_032 + 1_418_996_800)),
        (
            "vace-14B",
            make_checkpoint.dit_tensors,
            1331,
            17_337_592_896,
            2 * (17_337_592_896 + 14_288_491_584),
        ),
        ("t2v-14B", make_checkpoint.vae_tensors, 194, 126_892_531, 4 * 126_892_531),
        ("t2v-14B", make_checkpoint.text_tensors, 242, 5_680_910_336, 2 * 5_680_910_336),
        ("i2v-14B", make_checkpoint.clip_tensors, 784, 1_193_014_785, 4 * 1_193_014_785),
    ],
)
def test_full_sizes_are_the_published_ones(
    name: str, tensors: Callable[[Task], dict], num_tensors: int, num_parameters: int, num_bytes: int
) -> None:
    stored = tensors(TASKS[name]).values()

    found = (len(stored), sum(item.shape.numel() for item in stored), sum(item.num_bytes for item in stored))
    assert found == (num_tensors, num_parameters, num_bytes)


def test_vace_14b_has_seven_shards_and_t2v_14b_six() -> None:
    for name, count in (("t2v-1.3B", 1), ("t2v-14B", 6), ("i2v-14B", 7), ("flf2v-14B", 7), ("vace-14B", 7)):
        shards = make_checkpoint._split(make_checkpoint.dit_tensors(TASKS[name]), make_checkpoint.SHARD_BYTES)
        assert (name, len(shards)) == (name, count)


def test_the_tokenizer_is_a_real_one(tmp_path: Path) -> None:
    make_checkpoint.write_tokenizer(tmp_path)

    ids, mask = load_tokenizer(tmp_path, TASKS["t2v-tiny"].text)(["the red fox \u72d0"])

    auto = AutoTokenizer.from_pretrained(tmp_path / TOKENIZER_DIR, local_files_only=True)
    expected = auto(["the red fox \u72d0"], padding="max_length", max_length=32, return_tensors="pt")
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].tolist()
    assert (mask.sum().item(), ids.max().item() < 512) == (8, True)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "make_checkpoint.py",
        "--task",
        "t2v-tiny",
        "--out",
        str(tmp_path),
        "--components",
        "text,tokenizer",
    ]
    monkeypatch.setattr(sys, "argv", command)

    make_checkpoint.main()

    assert {path.name for path in tmp_path.iterdir()} == {TEXT_FILE, "google"}


def test_an_unknown_component_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "make_checkpoint.py",
        "--task",
        "t2v-tiny",
        "--out",
        str(tmp_path / "x"),
        "--components",
        "dit,t5",
    ]
    monkeypatch.setattr(sys, "argv", command)

    with pytest.raises(SystemExit):
        make_checkpoint.main()

    assert "--components: unknown t5; choose from dit, vae, text, clip, tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
