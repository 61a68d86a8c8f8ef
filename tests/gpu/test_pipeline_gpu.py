"""Whole tiny runs on the device: every strategy and lever gives the video that plain residency gives."""

import gc

import pytest
import torch

from tests.references import relative_error
from wan.config import TASKS
from wan.levers import Levers
from wan.pipeline import Pipeline, Request

pytestmark = pytest.mark.gpu


def video(
    task: str, *, precision: str = "fp32", levers: Levers | None = None, **options: object
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 48, 64, generator=generator) * 2 - 1
    given = {
        "t2v-tiny": {},
        "i2v-tiny": {"image": image},
        "flf2v-tiny": {"first_frame": image, "last_frame": image.flip(-1)},
        "vace-tiny": {"src_ref_images": (image,)},
    }[task]
    pipeline = Pipeline(
        TASKS[task], ckpt_dir=None, device="cuda", precision=precision, levers=levers, **options
    )
    request = Request(prompt="a fox", frame_num=9, steps=3, **given)
    first = pipeline.generate(request)
    assert torch.equal(first, pipeline.generate(request)), "the same seed gives the same video twice"
    return first


@pytest.fixture(autouse=True)
def _exact() -> object:
    # TF32 rounds products to 10 bits; slabs change which kernel cuDNN picks, so compare without it.
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("task", ["t2v-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny"])
def test_strategies_and_levers_agree(task: str) -> None:
    plain = video(task, levers=Levers(fused_kernels=False, ffn_chunks=1, rope_chunks=1, vae_slabs=1))
    assert plain.std() > 0.05
    for strategy in ("full", "block", "stream"):
        for offload in (True, False):
            other = video(
                task,
                load_strategy=strategy,
                offload_model=offload,
                levers=Levers(attention_slicing=True, vae_slabs=3),
            )
            torch.testing.assert_close(other, plain, rtol=0, atol=1e-4)


def test_t5_on_the_cpu_agrees() -> None:
    torch.testing.assert_close(video("t2v-tiny", t5_cpu=True), video("t2v-tiny"), rtol=0, atol=1e-4)


def held() -> int:
    """Bytes in tensors that somebody still uses: not what waits in reference cycles, nor torch's own workspaces."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # 32 MiB a handle
    return torch.cuda.memory_allocated()


def test_released_components_hold_no_device_memory() -> None:
    before = held()
    for strategy in ("full", "block", "stream"):
        video("t2v-tiny", load_strategy=strategy)
    assert held() - before < 2**20


def test_a_vae_in_bf16_is_near_and_slabs_of_it_as_near() -> None:
    """Its convolutions have kernels of their own, another one for another width, and the fused sums read bf16."""
    plain, half = video("i2v-tiny"), video("i2v-tiny", levers=Levers(vae_dtype="bf16"))
    slabs = video("i2v-tiny", levers=Levers(vae_dtype="bf16", vae_slabs=3))
    errors = {"whole": relative_error(half, plain), "in slabs": relative_error(slabs, plain)}
    assert 1e-4 < errors["whole"] < 0.1, errors
    assert errors["in slabs"] < 1.5 * errors["whole"], errors


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_runs(precision: str) -> None:
    assert torch.isfinite(video("t2v-tiny", precision=precision)).all()
