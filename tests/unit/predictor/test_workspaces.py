"""What kernels hold besides their results, as recorded on one H200 (torch 2.11, cuDNN 9.19, 2026-11-28)."""

import pytest
import torch
import torch.nn.functional as F
from devices import MIB, allocations, device_of, on_device

LAST = torch.channels_last


def convolved(
    shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, *, last: bool
) -> list[int]:
    """The bytes that a convolution asks for; x and weight are dense in one memory format."""
    device = device_of()
    with on_device(device):
        order = LAST if last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="cuda").contiguous(memory_format=order)
        w = torch.empty(weight, dtype=dtype, device="cuda").contiguous(memory_format=order)
        allocations(device)
        out = F.conv2d(
            x, w, stride=weight[-1] if weight[-1] > 3 else 1, padding=weight[-1] // 2 if last else 0
        )
        assert out.is_contiguous(memory_format=order)
    return allocations(device)


@pytest.mark.parametrize(
    ("shape", "weight", "workspace"),
    [
        ((1, 96, 480, 832), (9, 96, 3, 3), 172_565_008),
        ((1, 96, 480, 417), (9, 96, 3, 3), 86_510_608),
        ((1, 96, 1024, 257), (9, 96, 3, 3), 113_730_064),
        ((1, 3, 720, 653), (96, 3, 3, 3), 5_652_304),
        ((1, 3, 720, 660), (96, 3, 3, 3), 5_712_784),
        ((1, 384, 120, 208), (192, 384, 3, 3), 7_864_963),
        ((1, 384, 240, 416), (192, 384, 3, 3), 7_340_643),
    ],
)
def test_a_convolution_in_channels_last_memory(
    shape: tuple[int, ...], weight: tuple[int, ...], workspace: int
) -> None:
    out_bytes = weight[0] * shape[2] * shape[3] * 4
    assert convolved(shape, weight, torch.float32, last=True) == [out_bytes, workspace]


def test_a_convolution_of_patches_in_half_precision() -> None:
    taken = convolved((1, 3, 224, 224), (1280, 3, 14, 14), torch.float16, last=False)
    assert taken == [1280 * 16 * 16 * 2, 5_472_272]


def test_a_weight_of_another_order_is_copied_after_the_result_and_an_input_before_it() -> None:
    device = device_of(cudnn_workspaces={})
    with on_device(device):
        x = torch.empty(1, 8, 6, 5, device="cuda").contiguous(memory_format=LAST)
        weight = torch.empty(8, 8, 3, 3, device="cuda")
        allocations(device)
        F.conv2d(x, weight)
        after_result = allocations(device)
        F.conv2d(x[..., :4], weight.contiguous(memory_format=LAST))
    weight_bytes, out_bytes = 8 * 8 * 9 * 4, 8 * 4 * 3 * 4
    assert after_result == [out_bytes, weight_bytes]
    assert allocations(device) == [weight_bytes, 8 * 6 * 4 * 4, 8 * 4 * 2 * 4]


def test_cublas_takes_its_workspaces_once() -> None:
    device = device_of()
    with on_device(device):
        x, bias = torch.empty(64, 64, device="cuda"), torch.empty(64, device="cuda")
        allocations(device)
        kept = [F.linear(x, x, bias), F.linear(x, x, bias), x @ x]
        assert allocations(device) == [64 * 64 * 4, 32 * MIB, MIB, 64 * 64 * 4, 64 * 64 * 4]
        kept.clear()
        assert device.allocator.allocated == 33 * MIB + 64 * 64 * 4 + 512


@pytest.mark.parametrize(
    ("name", "copied"),
    [("dense", []), ("columns", [24]), ("cast there", [48]), ("cast here", [])],
)
def test_copies_to_the_host_and_back_go_by_dense_tensors(name: str, copied: list[int]) -> None:
    device = device_of()
    with on_device(device):
        there, here = torch.empty(6, 4, device="cuda"), torch.empty(6, 4)
        allocations(device)
        if name == "dense":
            here.copy_(there)
            there.copy_(here)
        elif name == "columns":
            here[:, :1].copy_(there[:, :1])
        elif name == "cast there":
            torch.empty(6, 4, dtype=torch.bfloat16).copy_(there)
        else:
            there.copy_(torch.empty(6, 4, dtype=torch.bfloat16))
    assert allocations(device) == copied


def test_a_number_that_is_raised_to_a_tensor_becomes_a_tensor() -> None:
    device = device_of()
    with on_device(device):
        exponents = torch.empty(3, device="cuda")
        allocations(device)
        torch.pow(10000, exponents)
    assert allocations(device) == [12, 8]
