"""Numbers in fp8: how near they come, what they do at the edges, and weights that are quantised while they are read."""

from pathlib import Path

import pytest
import torch
from command_line import import_script
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.live_bytes import LiveBytes
from tests.references import relative_error
from wan.config import TASKS
from wan.errors import WeightsError
from wan.levers import Levers
from wan.networks.dit import WanDit
from wan.networks.linear import Fp8Linear, in_fp8
from wan.weights import fp8
from wan.weights.checkpoint import open_dit
from wan.weights.fill import RandomSource, load, materialize, on_meta, random_dit
from wan.weights.fp8 import FP8, Fp8Source, dequantise, quantise

make_checkpoint = import_script("make_checkpoint")
CPU = torch.device("cpu")
DIT = TASKS["vace-tiny"].dit


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def dit_in_fp8(dtype: torch.dtype = torch.bfloat16) -> WanDit:
    dit = on_meta(lambda: WanDit(DIT), dtype)
    in_fp8(dit.execution_order(), Levers())
    return dit


def test_no_rows() -> None:
    values, scale = quantise(torch.zeros(0, 8))
    assert (values.shape, values.dtype, scale.shape, scale.dtype) == ((0, 8), FP8, (0, 1), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_each_number_is_near(dtype: torch.dtype, size: float) -> None:
    x = (noise(3, 5, 64) * size).to(dtype)

    values, scale = quantise(x)

    assert values.shape == x.shape and scale.shape == (3, 5, 1)
    largest = x.float().abs().amax(-1, keepdim=True)
    torch.testing.assert_close(scale, largest / 448, rtol=1e-6, atol=0)
    # Three bits behind the point: half of 1/8; and below 2**-6 of a scale e4m3 has steps of 2**-9.
    near = dequantise(values, scale, torch.float32)
    assert bool(((near - x.float()).abs() <= x.float().abs() / 16 + scale * 2**-10 * 1.001).all())
    assert relative_error(near, x) < 0.03


def test_the_largest_number_of_a_row_is_kept() -> None:
    x = torch.tensor([[1.0, -7.25, 0.0], [3e38, 1.0, 0.0], [1e-20, 0.0, 0.0]])
    near = dequantise(*quantise(x), torch.float32)
    torch.testing.assert_close(near.abs().amax(1), x.abs().amax(1), rtol=1e-6, atol=0)


def test_rows_of_zeros_and_of_the_smallest_numbers() -> None:
    x = torch.tensor([[0.0, 0.0], [-0.0, 0.0], [1e-40, -1e-45]])
    values, scale = quantise(x)
    assert bool(torch.isfinite(scale).all()) and bool((scale > 0).all())
    torch.testing.assert_close(
        dequantise(values, scale, torch.float32), torch.zeros(3, 2), rtol=0, atol=1e-38
    )


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(bad: float) -> None:
    x = noise(2, 16).to(torch.bfloat16)
    x[1, 3] = bad
    near = dequantise(*quantise(x), torch.bfloat16)
    assert bool(torch.isfinite(near[0]).all())
    assert not bool(torch.isfinite(near[1]).all())


def test_dequantised_weights_are_rounded_once() -> None:
    values, scale = quantise(noise(9, 32))
    expected = (values.float() * scale).to(torch.bfloat16)
    assert torch.equal(dequantise(values, scale, torch.bfloat16), expected)


def test_parts_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(11, 32)
    whole = quantise(x)
    monkeypatch.setattr(fp8, "_CHUNK_NUMBERS", 96)
    parts = quantise(x)
    assert torch.equal(parts.values.view(torch.uint8), whole.values.view(torch.uint8))
    assert torch.equal(parts.scale, whole.scale)


def test_fake_tensors_allocate_the_result_alone() -> None:
    with FakeTensorMode():
        x = torch.empty(1000, 512, dtype=torch.bfloat16)
        with LiveBytes() as live:
            quantise(x)
    assert live.peak == 1000 * (512 + 4)


def test_only_linear_layers_of_blocks_are_in_fp8() -> None:
    dit = dit_in_fp8()
    # Of a block: q, k, v, o twice and two of the feed-forward; VACE's after_proj, and before_proj of the first one.
    layers = [name for name, part in dit.named_modules() if isinstance(part, Fp8Linear)]
    assert len(layers) == 10 * (DIT.num_layers + len(DIT.vace_layers)) + len(DIT.vace_layers) + 1
    dtypes = {name: parameter.dtype for name, parameter in dit.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == FP8} == {f"{name}.weight" for name in layers}
    scales = {f"{name}.weight_scale" for name in layers}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == scales
    assert not any(parameter.requires_grad for parameter in dit.parameters())


def test_image_layers_are_in_fp8_too() -> None:
    dit = on_meta(lambda: WanDit(TASKS["i2v-tiny"].dit), torch.bfloat16)
    in_fp8(dit.execution_order(), Levers())
    attention = dit.execution_order()[0].cross_attn
    assert isinstance(attention.k_img, Fp8Linear) and isinstance(attention.v_img, Fp8Linear)
    assert not any(isinstance(part, Fp8Linear) for part in dit.img_emb.modules())


class Watched(RandomSource):
    """Notes what is asked for, and how large the largest piece was."""

    def __init__(self) -> None:
        super().__init__(origin=random_dit()._origin)
        self.read_bytes, self.largest = 0, 0

    def read_rows(self, name: str, target: Tensor, *, start: int, shape: torch.Size) -> None:
        assert not name.endswith("_scale")
        self.read_bytes += target.numel()
        self.largest = max(self.largest, target.nbytes)
        super().read_rows(name, target, start=start, shape=shape)


def test_weights_are_read_once_and_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "_CHUNK_NUMBERS", 128)
    source, dit = Watched(), dit_in_fp8()
    materialize(dit, Fp8Source(source), CPU)
    whole = on_meta(lambda: WanDit(DIT), torch.float32)
    # What is not in fp8 is read as one piece; the largest of that is a vector of a block's modulation, or an embedding.
    others = [p.nbytes for name, p in dit.named_parameters() if p.dtype != FP8]
    assert source.largest == max(512, *others)
    assert source.read_bytes == sum(parameter.numel() for parameter in whole.parameters())


def test_values_are_those_of_the_source_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    dit, whole = dit_in_fp8(), on_meta(lambda: WanDit(DIT), torch.float32)
    materialize(whole, random_dit(), CPU)
    monkeypatch.setattr(fp8, "_CHUNK_NUMBERS", 200)
    materialize(dit, Fp8Source(random_dit()), CPU)
    expected = dict(whole.named_parameters())
    for name, parameter in dit.named_parameters():
        if name.endswith("_scale"):
            assert torch.equal(parameter, quantise(expected[name.removesuffix("_scale")]).scale)
        elif parameter.dtype == FP8:
            values = quantise(expected[name]).values
            assert torch.equal(parameter.view(torch.uint8), values.view(torch.uint8)), name
        else:
            assert torch.equal(parameter, expected[name].to(torch.bfloat16)), name


def test_rows_are_quantised_as_they_are_in_the_whole() -> None:
    name, shape = "blocks.0.ffn.0.weight", torch.Size((DIT.ffn_dim, DIT.dim))
    source = Fp8Source(random_dit())
    whole, scale = torch.empty(shape, dtype=FP8), torch.empty(shape[0], 1)
    source.read_into(name, whole)
    source.read_into(f"{name}_scale", scale)
    part, part_scale = torch.empty(50, shape[1], dtype=FP8), torch.empty(50, 1)
    source.read_rows(name, part, start=30, shape=shape)
    source.read_rows(f"{name}_scale", part_scale, start=30, shape=torch.Size((shape[0], 1)))
    assert torch.equal(part.view(torch.uint8), whole[30:80].view(torch.uint8))
    assert torch.equal(part_scale, scale[30:80])


def test_official_files_are_read_strictly_into_fp8(tmp_path: Path) -> None:
    make_checkpoint.write_checkpoint(TASKS["vace-tiny"], tmp_path, components=("dit",), shard_bytes=2 * 10**5)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    dit, same = dit_in_fp8(), dit_in_fp8()
    load(dit, Fp8Source(open_dit(TASKS["vace-tiny"], tmp_path)), CPU)
    load(same, Fp8Source(random_dit()), CPU)
    for (name, ours), theirs in zip(dit.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), name


def test_a_key_that_is_missing_is_named_as_without_fp8(tmp_path: Path) -> None:
    whole = on_meta(lambda: WanDit(TASKS["t2v-tiny"].dit), torch.float32)
    materialize(whole, random_dit(), CPU)
    held = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    del held["blocks.1.ffn.2.weight"]
    save_file(held, tmp_path / "diffusion_pytorch_model.safetensors")
    dit = on_meta(lambda: WanDit(TASKS["t2v-tiny"].dit), torch.bfloat16)
    in_fp8(dit.execution_order(), Levers())
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.1\.ffn\.2\.weight$"):
        load(dit, Fp8Source(open_dit(TASKS["t2v-tiny"], tmp_path)), CPU)
