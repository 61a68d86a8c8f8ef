"""Folders that are damaged, quantised or put together wrongly end in one clear WeightsError, never in a traceback."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan.config import TASKS
from wan.errors import WeightsError
from wan.weights import checkpoint
from wan.weights.checkpoint import DIT_FILE, DIT_INDEX_FILE, TEXT_FILE, VAE_FILE
from wan.weights.fill import load, put

TASK = TASKS["t2v-tiny"]
SHARDS = ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")


def refused_dit(folder: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, folder)
    assert "\n" not in str(caught.value)
    return caught.value


def refused_vae(folder: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        checkpoint.open_vae(TASK, folder)
    assert "\n" not in str(caught.value)
    return caught.value


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


# .pth files


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.zeros(2)], "holds an object of type list, expected a dict of tensors"),
        (torch.zeros(2), "holds an object of type Tensor, expected a dict of tensors"),
        (
            {"state_dict": {"conv1.weight": torch.zeros(2)}},
            "holds an object of type dict under key state_dict, expected a tensor",
        ),
        (
            {"conv1.weight": torch.zeros(2), "epoch": 1, "step": 2},
            "holds an object of type int under key epoch, expected a tensor",
        ),
        ({1: torch.zeros(2)}, "holds key 1 of type int, expected str"),
        (
            {"conv1.weight": torch.zeros(2).to_sparse()},
            "holds a sparse_coo tensor under key conv1.weight, expected a dense one",
        ),
        (
            {"conv1.weight": torch.zeros(2, device="meta")},
            "holds a meta tensor under key conv1.weight, expected a dense one",
        ),
    ],
    ids=["list", "tensor", "nested", "epoch", "number as key", "sparse", "meta"],
)
def test_a_pth_of_anything_but_tensors_by_key(tmp_path: Path, held: object, message: str) -> None:
    torch.save(held, tmp_path / VAE_FILE)

    error = refused_vae(tmp_path)

    assert str(error) == f"{tmp_path / VAE_FILE} {message}"
    assert error.hint.startswith("the official files hold tensors by key and nothing else")


def test_a_pth_of_parameters_is_read_without_gradients(tmp_path: Path) -> None:
    torch.save({"conv1.weight": nn.Parameter(torch.ones(2))}, tmp_path / VAE_FILE)
    target = torch.empty(2)

    checkpoint.open_vae(TASK, tmp_path).read_into("conv1.weight", target)

    assert (target.tolist(), target.requires_grad) == ([1.0, 1.0], False)


def test_an_old_pth(tmp_path: Path) -> None:
    path = tmp_path / VAE_FILE
    torch.save({"conv1.weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)

    error = refused_vae(tmp_path)

    assert str(error) == f"{path} ({path.stat().st_size:,} bytes) is not a zip-format .pth file"
    assert error.hint.endswith("a file of an old torch.save must be saved anew")


@pytest.mark.parametrize("content", [b"not an archive", pickle.dumps(Malicious())], ids=["text", "pickle"])
def test_a_pth_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / VAE_FILE).write_bytes(content)

    assert str(refused_vae(tmp_path)).endswith(f"({len(content)} bytes) is not a zip-format .pth file")


def test_empty_files(tmp_path: Path) -> None:
    for name in (VAE_FILE, DIT_FILE):
        (tmp_path / name).touch()

    assert str(refused_vae(tmp_path)) == f"{tmp_path / VAE_FILE} is empty (0 bytes)"
    assert str(refused_dit(tmp_path)) == f"{tmp_path / DIT_FILE} is empty (0 bytes)"


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(Malicious(), f"{os.system.__module__}.system"), (nn.Linear(2, 2), "torch.nn.modules.linear.Linear")],
    ids=["malicious", "a module"],
)
def test_a_pickle_that_asks_for_more_than_tensors(tmp_path: Path, held: object, wanted: str) -> None:
    torch.save({"conv1.weight": held}, tmp_path / VAE_FILE)

    error = refused_vae(tmp_path)

    assert str(error) == (
        f"{tmp_path / VAE_FILE} asks for more than tensors and is refused: it wants {wanted}"
    )
    assert "damaged" not in error.hint


def test_a_damaged_pickle_in_a_whole_archive(tmp_path: Path) -> None:
    # GIVEN an archive whose pickle reads from an empty memo: a KeyError inside torch
    path = tmp_path / VAE_FILE
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", b"\x80\x02h\x05."), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)

    error = refused_vae(tmp_path)

    assert str(error).startswith(f"{path} ({path.stat().st_size:,} bytes) cannot be read: ")
    assert error.hint.startswith("the file is cut short or damaged")


# Dtypes


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")], ids=["int8", "fp8"]
)
def test_a_quantised_dit(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    # A scale of its own does not hide what matters.
    tensors = {"head.head.weight": torch.zeros(4, 4).to(dtype), "head.head.scale": torch.zeros(1)}
    save_file(tensors | dit_keys(), tmp_path / DIT_FILE)
    source = checkpoint.open_dit(TASK, tmp_path)

    with pytest.raises(WeightsError) as caught:
        source.check({"head.head.weight": torch.Size((4, 4))})

    assert str(caught.value) == (
        f"{tmp_path / DIT_FILE} does not fit the model: 1 of a wrong dtype: head.head.weight is {name}, "
        "expected one of float32, bfloat16, float16, float64"
    )
    assert caught.value.hint.startswith("quantised copies are not supported")


def test_a_quantised_shard_is_named(tmp_path: Path) -> None:
    save_shards(tmp_path, dit_keys(), {"head.head.weight": torch.zeros(4, 4, dtype=torch.int8)})

    with pytest.raises(WeightsError) as caught:
        checkpoint.open_dit(TASK, tmp_path).check({"head.head.weight": torch.Size((4, 4))})

    assert f"head.head.weight (in {SHARDS[1]}) is I8" in str(caught.value)


def test_a_quantised_pth(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}, tmp_path / VAE_FILE)

    with pytest.raises(WeightsError, match="1 of a wrong dtype: weight is int8, expected one of float32"):
        load(nn.Linear(2, 2), checkpoint.open_vae(TASK, tmp_path), "cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_float_dtype_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"weight": torch.ones(2, 2, dtype=dtype), "bias": torch.ones(2, dtype=dtype)}
    torch.save(weights, tmp_path / VAE_FILE)
    keys = dit_keys() | {"head.head.bias": weights["bias"]}
    save_file(keys, tmp_path / DIT_FILE)
    linear, target = nn.Linear(2, 2), torch.zeros(2)

    load(linear, checkpoint.open_vae(TASK, tmp_path), "cpu")
    dit = checkpoint.open_dit(TASK, tmp_path)
    dit.check({key: value.shape for key, value in keys.items()})
    dit.read_into("head.head.bias", target)

    assert (linear.weight.sum().item(), target.tolist()) == (4.0, [1.0, 1.0])


# Shards and their index


def dit_keys() -> dict[str, Tensor]:
    """As much of a tiny t2v DiT as it takes to be recognised."""
    keys = {f"blocks.{index}.modulation": torch.zeros(1) for index in range(TASK.dit.num_layers)}
    return keys | {"patch_embedding.weight": torch.zeros(64, 16, 1, 2, 2)}


def save_shards(
    folder: Path, first: dict[str, Tensor], second: dict[str, Tensor], **moved: str | None
) -> None:
    """Two shards, and an index that is right but for `moved`: another shard for a key, or None to leave it out."""
    weight_map: dict[str, str | None] = {}
    for name, tensors in zip(SHARDS, (first, second), strict=True):
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    weight_map = {key: shard for key, shard in (weight_map | moved).items() if shard is not None}
    (folder / DIT_INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"weight_map": {"a', "JSONDecodeError "),
        ("{}", "it has no weight_map from keys to files"),
        ("[]", "it has no weight_map from keys to files"),
        ("null", "it has no weight_map from keys to files"),
        ('{"weight_map": []}', "it has no weight_map from keys to files"),
        ('{"weight_map": {}}', "it has no weight_map from keys to files"),
        ('{"weight_map": {"a": 1}}', "its weight_map gives 1 as the file of key a"),
        ('{"weight_map": {"a": ["b"]}}', "its weight_map gives ['b'] as the file of key a"),
    ],
)
def test_a_damaged_index(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / DIT_INDEX_FILE).write_text(content)

    error = refused_dit(tmp_path)

    assert str(error).startswith(f"{tmp_path / DIT_INDEX_FILE} is not an index of shards: {reason}")
    assert error.hint == "download it again"


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    save_shards(tmp_path, dit_keys(), {"blocks.1.modulation": torch.ones(1)})

    error = refused_dit(tmp_path)

    assert str(error) == f"{tmp_path / SHARDS[0]} and {SHARDS[1]} both hold key blocks.1.modulation"


@pytest.mark.parametrize(
    ("key", "shard", "message"),
    [
        ("extra", SHARDS[0], f"puts key extra into {SHARDS[0]}, {SHARDS[1]} holds it"),
        ("absent", SHARDS[0], f"puts key absent into {SHARDS[0]}, which does not hold it"),
        ("extra", None, f"does not name key extra, {SHARDS[1]} holds it"),
    ],
    ids=["another shard", "no shard", "not in the index"],
)
def test_an_index_of_other_shards(tmp_path: Path, key: str, shard: str | None, message: str) -> None:
    second = {"extra": torch.zeros(1), "more": torch.zeros(1)}
    save_shards(tmp_path, dit_keys(), second, **{key: shard})

    error = refused_dit(tmp_path)

    assert str(error) == f"{tmp_path / DIT_INDEX_FILE} {message}"
    assert error.hint.startswith("the index and the shards are not of one checkpoint")


def test_shards_of_no_dit(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": torch.zeros(1)}, {"b": torch.zeros(1)})

    assert str(refused_dit(tmp_path)) == (
        f"folder {tmp_path} holds no Wan2.1 DiT: it has no key patch_embedding.weight"
    )


@pytest.mark.parametrize("shape", [(), (64,), (64, 16)], ids=str)
def test_a_patch_embedding_of_too_few_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file(dit_keys() | {"patch_embedding.weight": torch.zeros(shape)}, tmp_path / DIT_FILE)

    assert str(refused_dit(tmp_path)) == (
        f"folder {tmp_path} holds no Wan2.1 DiT: patch_embedding.weight is {list(shape)}, expected 5 axes"
    )


# What to do next


def test_the_hint_for_a_task_without_an_official_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        checkpoint.open_text(TASK, tmp_path)

    assert str(caught.value) == f"no such file: {tmp_path / TEXT_FILE}"
    assert caught.value.hint == (
        "no folder of t2v-tiny is published; scripts/make_checkpoint.py --task t2v-tiny makes one"
    )


# Filling a module


def test_a_tensor_is_placed_under_a_dotted_name() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tensor = torch.ones(2)

    parameter = put(module, "1.bias", tensor)
    outer = put(module[0], "bias", tensor)

    assert module[1].bias is parameter
    assert module[0].bias is outer
    assert (parameter.data_ptr(), parameter.requires_grad) == (tensor.data_ptr(), False)
