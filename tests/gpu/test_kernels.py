"""The fused kernels against the plain torch forms of the same steps, on the device."""

import pytest
import torch
from torch import Tensor

from tests.references import relative_error
from wan.networks import ops
from wan.networks.rope import rope_table

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("inference")]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def close(fused: Tensor, plain: Tensor) -> None:
    assert fused.dtype == plain.dtype
    # One rounding of the last bit apart at the most: the statistics are summed in another order.
    tolerance = 1e-5 if fused.dtype == torch.float32 else 2 * torch.finfo(fused.dtype).eps
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)


def test_fused_kernels_run_here_unless_autograd_records() -> None:
    """Otherwise the tests below would hold plain torch against itself."""
    x = noise(1)
    assert (ops.runs_fused(x, True), ops.runs_fused(x, False), ops.runs_fused(x.cpu(), True)) == (
        True,
        False,
        False,
    )
    with torch.enable_grad():
        assert not ops.runs_fused(x, True)


@pytest.mark.parametrize("width", [64, 1536, 5120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_video", [True, False])
def test_layer_norm(width: int, dtype: torch.dtype, per_video: bool) -> None:
    shape = (2, width) if per_video else (width,)
    x, gain, bias = noise(2, 77, width) * 3 + 1, noise(*shape), noise(*shape)
    arguments = {"eps": 1e-6, "dtype": dtype}
    close(
        ops.layer_norm(x, gain, bias, **arguments, fused=True),
        ops.layer_norm(x, gain, bias, **arguments, fused=False),
    )


@pytest.mark.parametrize("num_heads", [4, 12, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("part", [slice(None), slice(10, 40)])
def test_rms_norm_rope(num_heads: int, dtype: torch.dtype, rotated: bool, part: slice) -> None:
    width = num_heads * 128
    x, gain = noise(2, 60, width, dtype=dtype), noise(width, dtype=dtype)
    table = rope_table((3, 4, 5), 128, torch.device("cuda"))[part] if rotated else None
    fused, plain = x.clone(), x.clone()
    for target, is_fused in ((fused, True), (plain, False)):
        turns = table if table is None else table.to(ops.rope_dtype(dtype, fused=is_fused))
        result = ops.rms_norm_rope(
            target[:, part], gain, turns, num_heads=num_heads, eps=1e-6, chunks=3, fused=is_fused
        )
        assert result.data_ptr() == target[:, part].data_ptr()
    close(fused, plain)
    assert not torch.equal(fused, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_table_in_half_the_bytes_turns_the_same(dtype: torch.dtype) -> None:
    x, gain = noise(1, 60, 1536, dtype=dtype), noise(1536, dtype=dtype)
    table = rope_table((3, 4, 5), 128, torch.device("cuda"))
    assert ops.rope_dtype(dtype, fused=True) == torch.complex64
    whole, half = (
        ops.rms_norm_rope(x.clone(), gain, table.to(kind), num_heads=12, eps=1e-6, fused=True)
        for kind in (torch.complex128, torch.complex64)
    )
    assert torch.equal(whole, half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("part", [slice(None), slice(10, 40)])
def test_gated_add(dtype: torch.dtype, gated: bool, part: slice) -> None:
    x, y, gate = noise(2, 60, 1536), noise(2, 60, 1536, dtype=dtype), noise(2, 1536) if gated else None
    fused, plain = x.clone(), x.clone()
    ops.gated_add(fused[:, part], y[:, part], gate, fused=True)
    ops.gated_add(plain[:, part], y[:, part], gate, fused=False)
    close(fused, plain)
    assert not torch.equal(fused[:, part], x[:, part])


@pytest.mark.parametrize("channels", [8, 96, 192, 384])
def test_vae_norm_silu(channels: int) -> None:
    from wan.networks.vae.layers import norm_silu

    x = noise(2, channels, 9, 13).contiguous(memory_format=torch.channels_last)
    x[0, :, 0, 0] = 0
    x[1, 3, 4, 5] = float("nan")
    gamma = noise(channels, 1, 1, 1)
    fused = norm_silu(x, gamma)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    spoiled = ~torch.isfinite(fused).all(dim=1)
    assert spoiled.nonzero().tolist() == [[1, 4, 5]], "NaN spoils its pixel, all channels of it"
    assert not torch.isfinite(fused[1, :, 4, 5]).any()
    x[1, 3, 4, 5] = 1
    close(norm_silu(x, gamma), norm_silu(x.cpu(), gamma.cpu()).cuda())


@pytest.mark.parametrize("crop", [None, (3, 2, 9), (2, 1, 5)])
@pytest.mark.parametrize("num_frames", [1, 2, 3])
@pytest.mark.parametrize("channels", [(96, 96), (96, 192), (8, 8)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-5), (torch.bfloat16, 0.03)])
def test_vae_block_is_the_same_fused_and_in_plain_torch(
    channels: tuple[int, int],
    num_frames: int,
    crop: tuple[int, int, int] | None,
    dtype: torch.dtype,
    bound: float,
) -> None:
    """The first frames of a video have one and two taps; slabs are cut along rows or columns."""
    from wan.networks.vae.layers import ResidualBlock, dense

    block = ResidualBlock(*channels).cuda().to(dtype)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    frames = [dense(noise(1, channels[0], 9, 13, dtype=dtype)) for _ in range(num_frames)]
    switched = [module for module in block.modules() if hasattr(module, "fused")]
    assert len(switched) == 4, "two norms and two convolutions, which are not fused in the second round"
    made = []
    for fused in (True, False):
        for module in switched:
            module.fused = fused
        past: dict[torch.nn.Module, list[torch.Tensor]] = {}
        made.append(
            [block(frame, past, lambda x: x if crop is None else x.narrow(*crop))[0] for frame in frames]
        )
    for fused_out, plain in zip(*made, strict=True):
        assert fused_out.is_contiguous(memory_format=torch.channels_last)
        # cuDNN may take another algorithm for a convolution without a bias: rounding is that of the largest sums.
        assert (fused_out - plain).abs().max() < bound * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("part", [slice(None), slice(10, 40)])
def test_add_layer_norm(dtype: torch.dtype, gated: bool, part: slice) -> None:
    x, y = noise(2, 60, 1536), noise(2, 60, 1536, dtype=dtype)
    gate, gain, bias = noise(2, 1536) if gated else None, noise(2, 1536), noise(2, 1536)
    streams, normed = [], []
    for fused in (True, False):
        stream = x.clone()
        result, norm = ops.add_layer_norm(
            stream[:, part], y[:, part], gate, gain, bias, eps=1e-6, dtype=dtype, fused=fused
        )
        assert result.data_ptr() == stream[:, part].data_ptr()
        streams.append(stream)
        normed.append(norm)
    close(streams[0], streams[1])
    close(normed[0], normed[1])


def test_linear_gelu() -> None:
    layer = torch.nn.Linear(256, 512, device="cuda")
    x = noise(1, 100, 256)
    # The epilogue's tanh is an approximation of its own: near, not equal.
    plain = ops.linear_gelu(x, layer, fused=False)
    assert relative_error(ops.linear_gelu(x, layer, fused=True), plain) < 1e-3
    layer, x = layer.bfloat16(), x.bfloat16()
    plain = ops.linear_gelu(x.float(), layer.float(), fused=False)
    fused = ops.linear_gelu(x, layer.bfloat16(), fused=True)
    assert fused.dtype == torch.bfloat16 and relative_error(fused, plain) < 5e-3
