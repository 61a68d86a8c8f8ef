"""Products in fp8 on the device against dequantised ones, and fused quantising against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.dit_inputs import inputs
from tests.references import relative_error
from wan.components import Components
from wan.config import TASKS
from wan.levers import Levers
from wan.networks import ops
from wan.networks.linear import FP8_CAPABILITY, Fp8Linear
from wan.weights.fp8 import FP8, Fp8Rows, quantise

kernels = pytest.importorskip("wan.networks.kernels", reason="needs Triton", exc_type=ImportError)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("inference"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY,
        reason="the device has no fp8 units",
    ),
]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def close(fused: Fp8Rows, plain: Fp8Rows) -> None:
    """Equal but for numbers that lie between two of e4m3, which a last bit may take to the other one."""
    assert fused.values.dtype == plain.values.dtype == FP8
    assert fused.values.shape == plain.values.shape and fused.scale.shape == plain.scale.shape
    torch.testing.assert_close(fused.scale, plain.scale, rtol=1e-5, atol=0)
    differs = fused.values.view(torch.uint8) != plain.values.view(torch.uint8)
    assert float(differs.float().mean()) < 2e-3
    ours, theirs = fused.values.float(), plain.values.float()
    torch.testing.assert_close(ours, theirs, rtol=0.126, atol=2**-9)


@pytest.mark.parametrize("width", [64, 1536, 5120, 8960, 13824])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_quantised_as_in_plain_torch(width: int, dtype: torch.dtype) -> None:
    x = noise(2, 77, width, dtype=dtype) * 3
    x[0, 5] = 0
    close(kernels.quantise(x), quantise(x))


def test_rows_with_a_stride_and_rows_that_are_not_finite() -> None:
    wide = noise(60, 256, dtype=torch.bfloat16)
    close(kernels.quantise(wide[:, :128]), quantise(wide[:, :128]))
    close(kernels.quantise(wide.t()), quantise(wide.t()))
    wide[3, 4], wide[7, 8] = float("inf"), float("nan")
    values, scale = kernels.quantise(wide)
    torch.testing.assert_close(scale, quantise(wide).scale, rtol=1e-5, atol=0, equal_nan=True)
    finite = torch.isfinite(values.float() * scale).all(1)
    assert finite.nonzero().flatten().tolist() == [row for row in range(60) if row not in (3, 7)]


@pytest.mark.parametrize("width", [128, 8960, 13824])
def test_gelu_and_quantising_in_one_pass(width: int) -> None:
    x = noise(3, 33, width, dtype=torch.bfloat16) * 2
    fused = kernels.quantise(x, gelu=True)
    wide = F.gelu(x.float(), approximate="tanh")
    assert relative_error(fused.values.float() * fused.scale, wide) < 0.03
    close(fused, quantise(wide))


@pytest.mark.parametrize("width", [64, 1536, 5120])
@pytest.mark.parametrize("per_video", [True, False])
def test_norms_that_quantise(width: int, per_video: bool) -> None:
    shape = (2, width) if per_video else (width,)
    x, gain, bias = noise(2, 77, width) * 3 + 1, noise(*shape), noise(*shape)
    y, gate = noise(2, 77, width, dtype=torch.bfloat16), noise(2, width)
    settings = {"eps": 1e-6, "dtype": FP8}
    close(
        ops.layer_norm(x, gain, bias, **settings, fused=True),
        ops.layer_norm(x, gain, bias, **settings, fused=False),
    )
    for given in (gate, None):
        fused_x, fused = ops.add_layer_norm(x.clone(), y, given, gain, bias, **settings, fused=True)
        plain_x, plain = ops.add_layer_norm(x.clone(), y, given, gain, bias, **settings, fused=False)
        torch.testing.assert_close(fused_x, plain_x, rtol=1e-5, atol=1e-5)
        close(fused, plain)
    # Tokens of several videos: not contiguous.
    part = slice(10, 40)
    fused_x, fused = ops.add_layer_norm(
        x.clone()[:, part], y[:, part], gate, gain, bias, **settings, fused=True
    )
    plain_x, plain = ops.add_layer_norm(
        x.clone()[:, part], y[:, part], gate, gain, bias, **settings, fused=False
    )
    close(fused, plain)


@pytest.mark.parametrize(("inner", "outer"), [(64, 128), (1536, 8960), (5120, 1280), (13824, 5120)])
@pytest.mark.parametrize("tokens", [77, 2048])
def test_a_product_is_that_of_the_dequantised_numbers(inner: int, outer: int, tokens: int) -> None:
    layer = Fp8Linear(nn.Linear(inner, outer, dtype=torch.bfloat16, device="cuda"), Levers(matmul="fp8"))
    weight = quantise(noise(outer, inner))
    layer.weight.data, layer.weight_scale.data = weight
    x = noise(2, tokens, inner, dtype=torch.bfloat16)
    rows = kernels.quantise(x)
    exact = F.linear(
        rows.values.float() * rows.scale, weight.values.float() * weight.scale, layer.bias.float()
    )
    # Fast accumulation keeps fewer bits of a sum than fp32 has.
    assert relative_error(layer(x), exact) < 6e-3
    assert torch.equal(layer(rows), layer(x))
    # As sliced attention takes the outputs of one group of heads. (For 32 outputs of 13,824 inputs cuBLAS of CUDA 13.0
    # has no kernel, and none for 2 and 32 rows of so many inputs; no network asks for them.)
    part = slice(16, 16 + outer // 4)
    assert relative_error(layer(x, part), exact[..., part]) < 6e-3
    wide = F.linear(x.float(), weight.values.float() * weight.scale, layer.bias.float())
    assert 0.01 < relative_error(layer(x), wide) < 0.05


@pytest.mark.parametrize("matmul", ["precision", "fp8"])
@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_dit_in_fp8_is_near_fp32(matmul: str, strategy: str, fused: bool) -> None:
    task = TASKS["vace-tiny"]
    given = {name: value.cuda() for name, value in inputs(task.dit).items()}

    def velocity(dtype: torch.dtype, weights_dtype: str, **levers: object) -> Tensor:
        made = Components(
            task, ckpt_dir=None, device=torch.device("cuda"), strategy=strategy, offload=True, seed=0
        )
        part = made.dit(Levers(fused_kernels=fused, **levers), dtype, weights_dtype)
        with part.on_device() as dit:
            out: Tensor = dit(**given)
        return out

    reference = velocity(torch.float32, "precision")
    for sliced in (False, True):
        out = velocity(torch.bfloat16, "fp8", matmul=matmul, attention_slicing=sliced)
        assert 0.005 < relative_error(out, reference) < 0.07
