"""Profiles of GPU models."""

from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ray_memprof.errors import ConfigError
from ray_memprof.predictor.gpu_profile import gpu_at_hand, gpu_profile, profile_names, profile_of
from ray_memprof.recorder.meters import nvml


def test_a_name_is_found_however_it_is_written() -> None:
    wanted = gpu_profile("rtx_4090")
    assert [gpu_profile(name) for name in ("RTX 4090", "rtx-4090", " Rtx_4090 ")] == [wanted] * 3
    assert [gpu_profile(name) for name in ("RTX4090", "NVIDIA GeForce RTX 4090", "rtx 4090 24GB")] == [
        wanted
    ] * 3


@pytest.mark.parametrize("name", profile_names())
def test_the_name_that_the_driver_gives_is_that_of_its_profile(name: str) -> None:
    found = gpu_profile(name)
    assert gpu_profile(found.name) == found
    assert profile_of(found.name, found.total_bytes) == name


@pytest.mark.parametrize(
    "name",
    ["A100 40GB", "NVIDIA A100-SXM4-40GB", "RTX 4090 Laptop GPU", "RTX 4090 D", "H100 NVL", "H20", "nvidia"],
)
def test_a_model_of_another_memory_is_another_model(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no profile of it"):
        gpu_profile(name)


@pytest.mark.parametrize(
    ("name", "gib", "found"),
    [
        ("NVIDIA A100-SXM4-40GB", 40, ""), ("NVIDIA A100-SXM4-80GB", 80, "a100"), ("NVIDIA H100 NVL", 93.6, ""),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, ""), ("NVIDIA H200 NVL", 140.4, "h200"),
    ],
)  # fmt: skip
def test_the_gpu_at_hand_has_the_profile_of_its_model_and_memory(
    name: str, gib: float, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(facts=lambda: {"gpu_name": name, "device_total_bytes": int(gib * 2**30)})
    monkeypatch.setattr(nvml, "open_device", lambda index: nullcontext(device))
    assert gpu_at_hand() == found


def test_an_unknown_one_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="--gpu RTX 3090: there is no profile of it") as caught:
        gpu_profile("RTX 3090")
    assert caught.value.hint == "there are: a100, b200, h100, h200, l40s, rtx_4090, rtx_5090"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_says_where_it_comes_from_and_has_room(name: str) -> None:
    found = gpu_profile(name)
    assert found.source.startswith(("measured on", "data sheet"))
    outside = found.context_bytes + found.kernels_bytes + found.libraries_bytes
    assert 0 < outside < found.total_bytes / 10
    assert (
        found.product_flops["float8_e4m3fn"]
        > found.product_flops["bfloat16"]
        > found.product_flops["float32"]
    )
    # A link is slower than the device's own memory.
    assert found.pageable_bytes_per_s < found.link_bytes_per_s < found.memory_bytes_per_s


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None), ("source", 5), ("total_bytes", 0), ("total_bytes", 10**30), ("num_sms", 0),
        ("memory_bytes_per_s", float("nan")), ("link_bytes_per_s", float("inf")), ("launch_ns", -1),
        ("product_flops", {"float32": float("nan")}), ("attention_flops", {1: 2.0, "float32": 1.0}),
        ("capability", "90"), ("capability", [9]), ("capability", [9, "a"]), ("capability", None),
        ("cudnn_workspaces", "x"), ("cudnn_workspaces", [[1, 2]]), ("cudnn_workspaces", [[1, 2, 3, 4, 5, -6]]),
        ("cudnn_workspaces", None),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(key: str, value: object, tmp_path: Path) -> None:
    facts = yaml.safe_load(
        (files("ray_memprof.predictor") / "gpus" / "h200.yaml").read_text(encoding="utf-8")
    )
    path = tmp_path / "gpu.yaml"
    path.write_text(yaml.safe_dump(facts | {key: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"--gpu .*gpu\.yaml: {key}"):
        gpu_profile(str(path))
