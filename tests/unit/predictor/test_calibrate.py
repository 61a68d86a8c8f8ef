"""A profile is measured: with a clock and a device of our own, and as text that predict takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import on_device
from typer.testing import CliRunner

from ray_memprof.allocator.rules import Rules
from ray_memprof.cli import app
from ray_memprof.errors import EXIT_CONFIG, ConfigError
from ray_memprof.predictor import rates as rates_module
from ray_memprof.predictor.calibrate import profile_text
from ray_memprof.predictor.costs import Costs
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.gpu_profile import GpuProfile, gpu_profile
from ray_memprof.predictor.outside import Nccl
from ray_memprof.predictor.rates import Sizes, Stopwatch, host_ns, rates, rounded, sizes_of_wan
from ray_memprof.predictor.takes import outside

MIB = 2**20


class Clock:
    """A clock on which each piece of work takes the next of these seconds."""

    def __init__(self, *seconds: float) -> None:
        self._left, self._last, self._now, self.num_waits = list(seconds), seconds[-1], 0.0, 0

    def now(self) -> float:
        return self._now

    def wait(self) -> None:
        self.num_waits += 1
        self._now += self._left.pop(0) if self._left else self._last


def test_the_first_time_does_not_count_and_the_median_does() -> None:
    clock = Clock(50.0, 1.0, 9.0, 2.0)
    done: list[int] = []
    stopwatch = Stopwatch(clock.wait, now_s=clock.now, budget_s=0)
    assert stopwatch.seconds(lambda: done.append(1)) == 2.0
    assert len(done) == clock.num_waits == 4


def test_quick_work_is_repeated_until_the_time_is_up() -> None:
    clock = Clock(0.25)
    assert Stopwatch(clock.wait, now_s=clock.now, budget_s=2.0).seconds(lambda: None) == 0.25
    assert clock.num_waits == 1 + 8


SMALL = Sizes(
    rows=8, inner=16, columns=4, weights=((4, 6),), heads=2, tokens=8, width=16, wide_heads=(24,), channels=(2, 3),
    side=4, copied_bytes=4096, calls=1,
)  # fmt: skip


def test_every_rate_is_the_work_over_its_time() -> None:
    clock = Clock(0.5)
    found = rates(Stopwatch(clock.wait, now_s=clock.now, budget_s=0), device="cpu", sizes=SMALL)
    assert found.pop("launch_ns") > 0 and found.pop("view_ns") == 500_000
    product, attention = 2 * (2 * 8 * 16 * 4), 2 * (4 * 2 * 8 * 8 * 16)
    convolution, three = 2 * (2 * 4 * 9 * 16), 2 * (2 * 9 * 9 * 16)
    assert found == {
        "memory_bytes_per_s": 2 * 2 * 4096,
        "mixed_bytes_per_s": 2 * (3 * 4096 + 2048 + 512 * 4),
        "product_flops": {
            **dict.fromkeys(("bfloat16", "float16", "float32"), product),
            "bfloat16_4x6": 2 * (2 * 8 * 4 * 6),
        },
        "convolution_flops": {
            **dict.fromkeys(("float32", "float16", "float32_2"), convolution),
            "float32_3": three,
        },
        "attention_flops": {
            **dict.fromkeys(("bfloat16", "float16", "float32"), attention),
            "float32_24": 2 * (4 * 2 * 2 * 24),
        },
        "page_locked_bytes_per_s": 2 * 4096,
        "pageable_bytes_per_s": 2 * 4096,
    }
    assert rounded({"a": 123456.0, "b": 7}) == {"a": 123000.0, "b": 7}


def test_the_host_s_time_is_that_of_each_operation_of_a_block() -> None:
    # 1,000 views take 1 ms, each time the block does a second.
    clock = Clock(*[0.001] * 4, 1.0)
    found = host_ns(Stopwatch(clock.wait, now_s=clock.now, budget_s=0), "cpu", 1)
    assert found["view_ns"] == 1000
    num = 1e9 / found["launch_ns"]  # operations with a kernel, nearly: the views take less than 1 ms
    assert 30 < num < 1000


def test_operations_with_a_kernel_and_without_one_are_counted_apart() -> None:
    with rates_module._Counted() as counted:
        ones = torch.ones(4, 4)
        ones.view(2, 8).add_(1)
        ones.mul(2)
        torch.empty(3)
    assert (counted.num_kernels, counted.num_views) == (3, 2)


def test_what_is_timed_are_the_layers_of_wan() -> None:
    sizes = sizes_of_wan()
    assert set(sizes.weights) == {
        (5120, 5120), (5120, 13824), (13824, 5120), (1536, 1536), (1536, 8960), (8960, 1536),
    }  # fmt: skip
    assert (sizes.channels, sizes.wide_heads) == ((96, 192, 384), (384,))


def spent_ns(known: GpuProfile) -> list[int]:
    """What each kind of work takes on a device of this profile."""
    device, costs = FakeDevice(known, Rules()), Costs(known)
    half, wide = torch.bfloat16, torch.float32
    aten = torch.ops.aten
    spent = []
    with on_device(device):
        x, y = (torch.empty(4096, 1536, dtype=dtype, device="cuda") for dtype in (half, wide))
        frame, taps = torch.empty(1, 96, 64, 64, device="cuda"), torch.empty(96, 96, 3, 3, device="cuda")
        convolved = frame, taps, None, [1, 1], [1, 1], [1, 1], False
        query = torch.empty(1, 2, 4096, 384, device="cuda")
        weights = [torch.empty(1536, n, dtype=half, device="cuda") for n in (1536, 64)]
        nccl = Nccl(device, MIB)
        spent += [costs.elementwise_ns(x, x), costs.elementwise_ns(x, y)]
        for weight in weights:
            spent.append(
                costs.duration_ns(aten.mm.default, (x, weight), [x.new_empty(4096, weight.shape[1])])
            )
        spent.append(costs.duration_ns(aten.convolution.default, convolved, [frame]))
        spent += [costs.attention_ns(query, query), costs.attention_ns(query.to(half), query.to(half), "fa3")]
        for work in (
            lambda: torch.empty(2**26, dtype=torch.uint8).to("cuda", non_blocking=True),
            lambda: torch.empty(2**26, dtype=torch.uint8).to("cuda"),
            lambda: nccl.exchange(0).wait(),
            lambda: nccl.exchange(2**26).wait(),
        ):
            device.synchronize()
            before = device.stream.free_ns
            work()
            spent.append(device.stream.free_ns - before)
        device.synchronize()
        before = device.now_ns
        x.view(-1)
        x.mul_(2)
        spent.append(device.now_ns - before)
    return spent


@pytest.mark.parametrize(
    "key",
    [
        "memory_bytes_per_s", "mixed_bytes_per_s", "product_flops.bfloat16", "product_flops.bfloat16_1536x1536",
        "convolution_flops.float32_96", "attention_flops.float32_384", "attention_flops.fa3",
        "page_locked_bytes_per_s", "pageable_bytes_per_s", "link_bytes_per_s", "exchange_ns", "launch_ns", "view_ns",
    ],
)  # fmt: skip
def test_each_figure_that_is_measured_changes_what_is_predicted(key: str) -> None:
    known = gpu_profile("H200")
    known = replace(
        known,
        convolution_flops={**known.convolution_flops, "float32_96": 1e14},
        attention_flops={**known.attention_flops, "float32_384": 1e13},
    )
    name, _, shape = key.partition(".")
    value: Any = getattr(known, name)
    changed: Any = (
        {**value, shape: value[shape] / 10} if shape else value * (10 if name.endswith("_ns") else 0.1)
    )
    if isinstance(value, int):
        changed = int(changed)
    before, after = spent_ns(known), spent_ns(replace(known, **{name: changed}))
    assert sum(after) > sum(before)


class FakeGpu:
    """Takes a number of MiB at each step, and as much again in the allocator; gives something back at one of them."""

    def __init__(self) -> None:
        self.reserved, self.used = 0, 5 * MIB

    def used_bytes(self) -> int:
        return self.used

    def reserved_bytes(self) -> int:
        return self.reserved

    def _take(self, outside_mib: int, inside_mib: int = 2) -> None:
        self.reserved += inside_mib * MIB
        self.used += (outside_mib + inside_mib) * MIB

    def make_context(self) -> None:
        self._take(527)

    def run_kernel(self) -> None:
        self._take(92, 0)

    def run_libraries(self) -> None:
        self._take(74, 40)

    def run_more(self) -> None:
        self._take(-1)

    def lock_pages(self) -> None:
        self._take(70)


TAKEN = {
    "context_bytes": 527 * MIB, "kernels_bytes": 92 * MIB, "libraries_bytes": 74 * MIB, "more_kernels_bytes": 0,
    "first_page_locked_bytes": 70 * MIB,
}  # fmt: skip


def test_what_is_taken_outside_the_allocator_is_told_step_by_step() -> None:
    assert outside(FakeGpu()) == TAKEN


RATES: dict[str, Any] = {
    "memory_bytes_per_s": 4.1e12, "mixed_bytes_per_s": 2.5e12,
    "product_flops": {"bfloat16": 7e14, "float32": 5e13, "bfloat16_1536x1536": 5.8e14},
    "convolution_flops": {"float32": 2e14}, "attention_flops": {"float32": 5e13},
    "page_locked_bytes_per_s": 5.5e10, "pageable_bytes_per_s": 9e9, "launch_ns": 12000,
}  # fmt: skip
NCCL = {
    "nccl_communicator_bytes": 458 * MIB, "nccl_rings_bytes": 334 * MIB, "link_bytes_per_s": 3.2e11,
    "exchange_ns": 21_000,
}  # fmt: skip
VERSIONS = {"torch": "2.13.0", "cuDNN": "9.19.0", "NCCL": "2.29.7"}


def facts(name: str, capability: tuple[int, int]) -> dict[str, Any]:
    about = {"name": name, "total_bytes": 80 * 2**30, "capability": list(capability), "num_sms": 132}
    return {**about, **TAKEN, **RATES}


def test_the_text_is_a_profile_that_predict_takes(tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    text = profile_text(facts("NVIDIA H200", (9, 0)), NCCL, VERSIONS, date="2026-11-30")
    path.write_text(text, encoding="utf-8")
    found, known = gpu_profile(str(path)), gpu_profile("H200")
    assert found.source == (
        "measured on one NVIDIA H200, torch 2.13.0, cuDNN 9.19.0, NCCL 2.29.7 (2026-11-30)"
    )
    assert (found.context_bytes, found.launch_ns, found.link_bytes_per_s) == (527 * MIB, 12000, 3.2e11)
    assert (found.mixed_bytes_per_s, found.exchange_ns) == (2.5e12, 21_000)
    assert found.product_flops == RATES["product_flops"]
    assert (found.first_page_locked_bytes, found.capability) == (68 * MIB, (9, 0))
    assert (found.cublas_workspace_bytes, found.cudnn_workspaces) == (32 * MIB, known.cudnn_workspaces)
    assert "not measured" in text.lower()


def test_what_one_gpu_cannot_tell_is_borrowed_and_told(tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(
        profile_text(facts("Voodoo 2", (8, 6)), {}, VERSIONS, date="2026-11-30"), encoding="utf-8"
    )
    found, like = gpu_profile(str(path)), gpu_profile("H200")
    assert found.source.endswith("(2026-11-30); NCCL estimated from NVIDIA H200")
    assert found.nccl_rings_bytes == like.nccl_rings_bytes
    assert (found.cublas_workspace_bytes, found.cudnn_workspaces) == (8_519_680, {})
    assert "# Not measured, for there is no second GPU: those of NVIDIA H200." in path.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", "cannot be read"),
        ("- 1\n", "is no profile: attention_flops, capability"),
        ("{}", "is no profile"),
        ("WHOLE\nspeed: 3\n", "has unknown keys: speed"),
        ("WHOLE\nnum_sms: many\n", "num_sms is 'many', and must be a number"),
        ("WHOLE\nattention_flops: {bfloat16: 1.0}\n", "attention_flops must have a rate for float32"),
        (
            "WHOLE\nattention_flops: {float32: 5e13}\n",
            "attention_flops.float32 is '5e13', and must be",
        ),
        ("WHOLE\nproduct_flops: {float32: 0}\n", "product_flops.float32 is 0, and must be a number above 0"),
        ("WHOLE\nlink_bytes_per_s: 0\n", "link_bytes_per_s is 0, and must be above it"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_one_line(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    whole = profile_text(facts("Voodoo 2", (8, 6)), NCCL, VERSIONS, date="2026-11-30")
    path.write_text(text.replace("WHOLE", whole), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"--gpu {path}.*{error}") as caught:
        gpu_profile(str(path))
    assert "\n" not in str(caught.value) and "calibrate" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "x.yaml")])
    assert result.exit_code == EXIT_CONFIG
    first, second = result.stderr.splitlines()
    assert first == "error: there is no GPU here that torch can use: a profile is measured on one"
    assert second.startswith("hint: ray-memprof doctor") and not (tmp_path / "x.yaml").exists()
