"""Kernels without a GPU: wan's own modules on a Triton that compiles nothing, and torch's attention and RMSNorm."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from devices import allocations, device_of, on_device
from torch._subclasses.fake_tensor import FakeTensorMode

import wan.networks
from ray_memprof.predictor import fake_kernels
from ray_memprof.predictor.costs import Costs
from ray_memprof.predictor.fake_cuda import fake_cuda
from ray_memprof.rank.versions import ATTENTION_PACKAGES
from wan.networks import attention_kernels, sdpa
from wan.weights.fp8 import FP8, Fp8Rows


def modules_that_import_triton() -> set[str]:
    """Without Triton they cannot be imported: their text is read."""
    root = Path(wan.__file__).parent
    return {
        f"wan.{'.'.join(path.relative_to(root).with_suffix('').parts)}"
        for path in root.rglob("*.py")
        if re.search(r"^import triton$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }


def test_every_module_of_wan_that_needs_triton_is_there() -> None:
    assert set(fake_kernels.MODULES) == modules_that_import_triton()


def test_afterwards_modules_are_as_they_were() -> None:
    before = {name: sys.modules.get(name) for name in (*fake_kernels.MODULES, "triton")}
    with on_device(device_of()):
        assert all(name in sys.modules for name in fake_kernels.MODULES)
        assert sys.modules.get("triton") is before["triton"]
    assert {name: sys.modules.get(name) for name in before} == before
    assert not hasattr(wan.networks, "kernels") or before["wan.networks.kernels"] is not None


def test_a_launch_takes_the_time_of_its_traffic() -> None:
    from wan.networks import ops

    device = device_of(launch_ns=0, memory_bytes_per_s=1e9, kernels_bytes=0)
    with on_device(device):
        x, gain = torch.empty(1, 1000, 8, device="cuda"), torch.empty(8, device="cuda")
        before = device.stream.free_ns
        ops.layer_norm(x, gain, gain, eps=1e-6, dtype=torch.bfloat16, fused=True)
    # x is read, the result is written, gain and bias are one tensor here.
    assert device.stream.free_ns - before == 1000 * 8 * 4 + 8 * 4 + 1000 * 8 * 2


def test_wan_finds_them_only_inside_the_block() -> None:
    from wan.networks import ops

    device = device_of()
    with on_device(device):
        x, gain = torch.empty(1, 6, 8, device="cuda"), torch.empty(8, device="cuda")
        allocations(device)
        made = ops.layer_norm(x, gain, gain, eps=1e-6, dtype=torch.bfloat16, fused=True)
        assert (made.shape, made.dtype) == ((1, 6, 8), torch.bfloat16)
        assert allocations(device) == [6 * 8 * 2]
        rows = ops.layer_norm(x, gain, gain, eps=1e-6, dtype=FP8, fused=True)
        assert isinstance(rows, Fp8Rows) and rows.scale.shape == (1, 6, 1)
        assert allocations(device) == [6 * 8, 6 * 4]


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("gpu", "dtype", "besides"),
    [
        ("H200", HALF, [8, 8, 0, 256]),  # cuDNN: the generator's state, a workspace
        ("B200", HALF, [8, 8, 0, 256]),
        ("RTX 4090", HALF, [8, 8, 0, 3 * 5 * 4]),  # FlashAttention-2: a number for each query and head
        ("RTX 5090", HALF, [8, 8, 0, 3 * 5 * 4]),
        ("H200", FULL, [0]),
    ],
)
def test_attention_allocates_what_the_gpu_s_kernel_does(
    gpu: str, dtype: torch.dtype, besides: list[int]
) -> None:
    device = device_of(gpu)
    with on_device(device):
        q, k = (torch.empty(1, 3, tokens, 64, dtype=dtype, device="cuda") for tokens in (5, 7))
        allocations(device)
        out = F.scaled_dot_product_attention(q, k, k)
        assert (out.shape, out.dtype) == (q.shape, dtype)
    out_bytes = 3 * 5 * 64 * dtype.itemsize
    assert allocations(device) == [size or out_bytes for size in besides]


def test_attention_on_the_host_is_torch_s_own() -> None:
    q = torch.randn(1, 2, 3, 8)
    wanted = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(fake_kernels.attention(device_of(), q, q, q), wanted)


def test_rms_norm_is_one_kernel_with_a_number_for_each_row() -> None:
    device = device_of()
    with on_device(device):
        x = torch.empty(5, 8, device="cuda")
        allocations(device)
        F.rms_norm(x, (8,))
    assert allocations(device) == [5 * 8 * 4, 5 * 4]


def test_a_ring_s_attention_to_a_part_of_the_keys_takes_its_time() -> None:
    device = device_of("H200")
    with on_device(device):
        query, key = (
            torch.empty(1, num, 40, 128, dtype=torch.bfloat16, device="cuda") for num in (9000, 4500)
        )
        began = device.stream.free_ns
        out, lse = sdpa.attention_lse(query, key, key)
    assert (out.shape, lse.shape) == (query.shape, (1, 9000, 40, 1))
    flops = 4 * 40 * 9000 * 4500 * 128
    assert device.stream.free_ns - began >= flops / device.profile.attention_flops["bfloat16"] * 1e9


@pytest.mark.parametrize(
    ("dtype", "rate"), [(torch.bfloat16, "fa3"), (torch.float8_e4m3fn, "fa3_float8_e4m3fn")]
)
def test_attention_of_another_package_takes_its_time_at_its_own_rate(dtype: torch.dtype, rate: str) -> None:
    device = device_of("H200")
    with on_device(device):
        query, key = (torch.empty(1, num, 40, 128, dtype=dtype, device="cuda") for num in (9000, 4500))
        began = device.stream.free_ns
        attention_kernels._flash_attention_3(query, key, key)
        took = device.stream.free_ns - began
    flops = 4 * 40 * 9000 * 4500 * 128
    expected = flops / device.profile.attention_flops[rate] * 1e9
    assert expected <= took < 1.1 * expected


def test_a_profile_without_a_rate_of_the_kernel_has_that_of_torch() -> None:
    costs = Costs(device_of("A100").profile)
    query = torch.empty(1, 8, 4096, 128, dtype=torch.bfloat16, device="meta")
    assert costs.attention_ns(query, query, kernel="fa3") == costs.attention_ns(query, query)
    narrow = query.to(torch.float8_e4m3fn)
    assert costs.attention_ns(narrow, narrow, kernel="fa3") == costs.attention_ns(query, query)


@pytest.mark.parametrize(
    ("gpu", "packages", "dtype", "kernel"),
    [
        ("H200", (), torch.bfloat16, "sdpa"),
        ("H200", ATTENTION_PACKAGES[:1], torch.bfloat16, "fa3"),
        ("H200", ATTENTION_PACKAGES[:1], torch.float16, "sdpa"),
        ("A100", ATTENTION_PACKAGES, torch.bfloat16, "sdpa"),
    ],
)
def test_auto_takes_what_is_installed_where_the_run_would_be(
    gpu: str, packages: tuple[str, ...], dtype: torch.dtype, kernel: str
) -> None:
    device = device_of(gpu)
    with fake_cuda(device), fake_kernels.fake_kernels(device, packages), FakeTensorMode():
        q = torch.empty(1, 8, 2, 128, dtype=dtype, device="cuda")
        assert attention_kernels.kernel_for("auto", [q, q, q]).name == kernel
        assert attention_kernels.kernel_for("fa3", [q, q, q]).name == "fa3"


def test_packages_of_kernels_are_those_that_wan_knows() -> None:
    assert set(ATTENTION_PACKAGES) == {one.package for one in attention_kernels.KERNELS.values()} - {""}
