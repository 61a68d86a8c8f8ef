"""Linear layers in fp8, and a DiT made of them: near fp32, however its weights travel, and exact on fake tensors."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dit_inputs import inputs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.live_bytes import LiveBytes
from tests.references import relative_error
from wan.components import Components
from wan.config import TASKS
from wan.errors import InputError
from wan.levers import Levers, LoadStrategy, Matmul, WeightsDtype
from wan.networks import ops
from wan.networks.dit import WanDit
from wan.networks.linear import Fp8Linear, in_fp8
from wan.pipeline import Pipeline
from wan.weights.fill import on_meta
from wan.weights.fp8 import FP8, Fp8Rows, quantise

CPU = torch.device("cpu")
TASK_NAMES = ["t2v-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny"]
MATMULS: list[Matmul] = ["precision", "fp8"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(matmul: Matmul, dtype: torch.dtype = torch.bfloat16) -> Fp8Linear:
    plain = nn.Linear(64, 48, dtype=dtype).requires_grad_(False)
    made = Fp8Linear(plain, Levers(matmul=matmul))
    values, scale = quantise(noise(48, 64))
    made.weight.data, made.weight_scale.data = values, scale
    made.bias.data = noise(48, seed=1).to(dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dequantised_product_is_that_of_the_dequantised_weight(dtype: torch.dtype) -> None:
    made, x = layer("precision", dtype), noise(2, 9, 64, seed=2).to(dtype)
    weight = (made.weight.float() * made.weight_scale).to(dtype)
    assert torch.equal(made(x), F.linear(x, weight, made.bias))


@torch.no_grad()
def test_fp8_product_is_that_of_quantised_rows_and_weight() -> None:
    made, x = layer("fp8"), noise(2, 9, 64, seed=2).to(torch.bfloat16)
    rows = quantise(x)
    exact = (rows.values.float() * rows.scale) @ (made.weight.float() * made.weight_scale).t()
    expected = exact + made.bias.float()

    out = made(x)

    assert out.dtype == torch.bfloat16 and out.shape == (2, 9, 48)
    torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2**-7)
    assert torch.equal(made(rows), out), "rows that are quantised already"
    wide = made.weight.float() * made.weight_scale
    assert 0.005 < relative_error(out, F.linear(x.float(), wide, made.bias.float())) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("matmul", MATMULS)
def test_some_outputs_are_those_of_all(matmul: Matmul) -> None:
    made, x = layer(matmul), noise(2, 9, 64, seed=2).to(torch.bfloat16)
    part = slice(16, 32)
    torch.testing.assert_close(ops.linear(x, made, part), made(x)[..., part], rtol=2**-7, atol=0.01)
    plain = nn.Linear(64, 48)
    torch.testing.assert_close(ops.linear(x.float(), plain, part), plain(x.float())[..., part])


@torch.no_grad()
def test_gelu_and_norms_quantise_for_a_layer_that_takes_fp8() -> None:
    made, x = layer("fp8"), noise(2, 9, 64, seed=2).to(torch.bfloat16)
    hidden = ops.linear_gelu(x, made)
    assert isinstance(hidden, Fp8Rows)
    expected = quantise(F.gelu(made(x), approximate="tanh"))
    assert torch.equal(hidden.values.view(torch.uint8), expected.values.view(torch.uint8))
    gain, bias = noise(64, seed=3), noise(64, seed=4)
    normed = ops.layer_norm(x.float(), gain, bias, eps=1e-6, dtype=FP8)
    assert isinstance(normed, Fp8Rows) and normed.scale.shape == (2, 9, 1)
    wide = F.layer_norm(x.float(), (64,), gain, bias, 1e-6)
    assert relative_error(normed.values.float() * normed.scale, wide) < 0.04
    assert isinstance(ops.linear_gelu(x, layer("precision")), Tensor)


@pytest.mark.parametrize("matmul", MATMULS)
def test_where_autograd_records_the_weight_is_dequantised(matmul: Matmul) -> None:
    made = layer(matmul)
    x = noise(3, 64).to(torch.bfloat16).requires_grad_(True)
    out = made(x)
    assert torch.equal(out, layer("precision")(x))
    out.float().sum().backward()
    assert x.grad is not None
    expected = made.dequantised().float().sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad.float(), expected, rtol=2**-6, atol=0.05)
    assert made.weight.grad is None


def velocity(
    name: str,
    weights_dtype: WeightsDtype,
    dtype: torch.dtype,
    strategy: LoadStrategy = "block",
    **levers: object,
) -> Tensor:
    task = TASKS[name]
    made = Components(task, ckpt_dir=None, device=CPU, strategy=strategy, offload=True, seed=0)
    part = made.dit(Levers(**levers), dtype, weights_dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(2):  # the second time, the weights come again
            with part.on_device() as dit:
                out: Tensor = dit(**inputs(task.dit))
    return out


@pytest.mark.parametrize("name", TASK_NAMES)
@pytest.mark.parametrize("matmul", MATMULS)
def test_a_dit_in_fp8_is_near_fp32(name: str, matmul: Matmul) -> None:
    reference = velocity(name, "precision", torch.float32)
    error = relative_error(velocity(name, "fp8", torch.bfloat16, matmul=matmul), reference)
    assert 2 * relative_error(velocity(name, "precision", torch.bfloat16), reference) < error < 0.07


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("name", ["i2v-tiny", "vace-tiny"])
def test_how_weights_travel_and_tokens_are_cut_changes_nothing(name: str, matmul: Matmul) -> None:
    first = velocity(name, "fp8", torch.bfloat16, matmul=matmul)
    for strategy in ("full", "stream"):
        assert torch.equal(velocity(name, "fp8", torch.bfloat16, strategy, matmul=matmul), first)  # type: ignore[arg-type]
    sliced = velocity(name, "fp8", torch.bfloat16, matmul=matmul, attention_slicing=True, ffn_chunks=3)
    assert relative_error(sliced, first) < 0.01


@pytest.mark.parametrize("matmul", MATMULS)
def test_a_gradient_passes_through_a_dit_in_fp8(matmul: Matmul) -> None:
    task = TASKS["vace-tiny"]
    made = Components(task, ckpt_dir=None, device=CPU, strategy="block", offload=True, seed=0)
    given = inputs(task.dit)
    given["latents"].requires_grad_(True)
    with made.dit(Levers(matmul=matmul), torch.bfloat16, "fp8").on_device() as dit:
        dit(**given).square().mean().backward()
    assert given["latents"].grad is not None and float(given["latents"].grad.norm()) > 0


def fake_peak(weights_dtype: WeightsDtype, levers: Levers) -> tuple[int, int]:
    """Bytes of the weights, and live bytes above them at the peak, of one block of t2v-14B at 720P."""
    config = replace(TASKS["t2v-14B"].dit, num_layers=1)
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(torch.bfloat16)
        try:
            dit = WanDit(config, levers)
        finally:
            torch.set_default_dtype(torch.float32)
        if weights_dtype == "fp8":
            in_fp8(dit.execution_order(), levers)
        given = inputs(config, batch=1, shape=(21, 90, 160))
        with LiveBytes() as live:
            dit(**given)
        return sum(parameter.nbytes for parameter in dit.blocks.parameters()), live.peak


def test_fake_tensors_count_what_the_kernels_allocate() -> None:
    weights, peak = fake_peak("precision", Levers(ffn_chunks=16))
    half, dequantised = fake_peak("fp8", Levers(ffn_chunks=16))
    _, quantised = fake_peak("fp8", Levers(ffn_chunks=16, matmul="fp8"))
    assert weights / 2 < half < 0.501 * weights, "a scale for each output, and vectors as they were"
    # At the peak v is made: beside q, k, v and the rows that they are made of, a weight of 5,120 x 5,120 in bf16.
    assert dequantised - peak == 2 * 5120 * 5120
    # Rows in fp8 take half: attention is the peak then, where its output is as large as the rows were in bf16.
    assert quantised == peak


def test_fake_rows_in_fp8_take_a_byte_a_number_and_their_scales() -> None:
    with FakeTensorMode(), torch.no_grad():
        x, gain, bias = torch.empty(1, 9000, 512), torch.empty(512), torch.empty(512)
        plain = nn.Linear(512, 256, dtype=torch.bfloat16)
        layer = Fp8Linear(plain, Levers(matmul="fp8"))
        with LiveBytes(x, gain, bias, *layer.parameters()) as live:
            rows = ops.layer_norm(x, gain, bias, eps=1e-6, dtype=FP8)
            assert live.current == 9000 * (512 + 4)
            hidden = ops.linear_gelu(rows, layer)
            assert isinstance(hidden, Fp8Rows)
            assert live.current == 9000 * (512 + 4) + 9000 * (256 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32", "weights_dtype": "fp8"}, "precision is fp32"),
        ({"levers": Levers(matmul="fp8")}, "weights_dtype is precision"),
    ],
)
def test_a_pipeline_refuses_dtypes_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(TASKS["t2v-tiny"], ckpt_dir=None, device="cpu", **options)  # type: ignore[arg-type]


def test_a_block_on_meta_has_no_values_yet() -> None:
    dit = on_meta(lambda: WanDit(TASKS["t2v-tiny"].dit), torch.bfloat16)
    in_fp8(dit.execution_order(), Levers())
    assert all(parameter.is_meta for parameter in dit.parameters())
