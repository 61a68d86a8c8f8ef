"""The levers for memory and time: what each does, and which value switches it off. Used by dit.py and pipeline.py.

Every lever leaves the result as it was: exactly where the order of arithmetic stays, and within rounding (fp32 <= 1e-5)
where it changes the order of a sum. The values that Levers.inexact names are the only exception: they compute with
fewer digits, change the result, are never chosen unless the user names them, and are told in the log. Where autograd
records, the levers that work in place are not used, because a backward pass needs what they would overwrite, and
attention is torch's own, which has a backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wan.errors import InputError

LoadStrategy = Literal["full", "block", "stream"]
Precision = Literal["fp32", "fp16", "bf16"]
WeightsDtype = Literal["precision", "fp8"]
"""Of the linear layers in the DiT's blocks: that of all other parameters, or e4m3 with a scale for each output."""
Matmul = Literal["precision", "fp8"]
VaeDtype = Literal["fp32", "bf16"]
AttentionKernel = Literal["auto", "sdpa", "fa3", "fa3_fp8", "fa4"]
KERNEL_PRECISIONS: dict[AttentionKernel, tuple[Precision, ...]] = {
    "fa3": ("bf16",), "fa3_fp8": ("bf16",), "fa4": ("bf16", "fp16"),
}  # fmt: skip
"""The precisions of q, k and v that the kernels of other packages take. fa3-fwd is built without fp16."""
INEXACT_KERNELS: tuple[AttentionKernel, ...] = ("fa3_fp8",)
"""Attention kernels that compute with fewer digits than the precision of the run."""
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables: torch reads the first, and the second only where the first is absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levers:
    """Settings that save memory or time, and cost only kernel launches and copies."""

    attention_slicing: bool = False
    """Attention by groups of heads: v and the output exist for one group at a time, only q and k for all heads."""
    ffn_chunks: int = 0
    """Token chunks of everything after self-attention (feed-forward above all); 0 chooses by size, 1 is off."""
    rope_chunks: int = 16
    """Token chunks in which rotary embedding holds its fp64 copies where no fused kernel runs; 1 is off."""
    vae_slabs: int = 0
    """Slabs of columns (or rows) in which the VAE works, exactly; 0 chooses by size, 1 is off."""
    vae_dtype: VaeDtype = "fp32"
    """bf16: weights, frames and what is remembered of them take half the memory, and convolutions less time; inexact.
    Sums of taps, norms and the statistics of the latents are computed in fp32 all the same on CUDA."""
    gradient_checkpointing: bool = False
    """Recompute blocks in backward; without autograd it changes nothing and says so."""
    fused_kernels: bool = True
    """On CUDA, norms, rotary embedding and gated adds in one pass each, without wide copies (Triton)."""
    matmul: Matmul = "precision"
    """fp8: multiply weights stored in fp8 by rows that are quantised before. Saves time, not memory; inexact."""
    attention_kernel: AttentionKernel = "auto"
    """Who computes self-attention, see networks/attention_kernels.py; auto: the fastest exact kernel that is there."""

    @property
    def inexact(self) -> tuple[str, ...]:
        """What is on and changes the result, each as "lever value"; empty where the result is that of no lever."""
        found = ["matmul fp8"] if self.matmul == "fp8" else []
        if self.attention_kernel in INEXACT_KERNELS:
            found.append(f"attention_kernel {self.attention_kernel}")
        if self.vae_dtype != "fp32":
            found.append(f"vae_dtype {self.vae_dtype}")
        return tuple(found)

    def num_chunks(self, num_tokens: int) -> int:
        """Chunks of a pass over `num_tokens`: as asked, else of about 20,000 tokens, or 8,000 with slicing.

        Chunks of 20,000 do not slow the matrix products down, and need less memory than the peak of unsliced attention.
        Sliced attention has a lower peak, so its chunks are smaller.
        """
        return self.ffn_chunks or max(1, -(-num_tokens // (8192 if self.attention_slicing else 20480)))


def check_dtypes(
    precision: Precision, weights_dtype: WeightsDtype, matmul: Matmul, names: Mapping[str, str] | None = None
) -> None:
    """Refuse dtypes that do not fit together, with InputError; `names` is how the user spells the three."""
    called = {name: name for name in ("precision", "weights_dtype", "matmul")} | dict(names or {})
    if weights_dtype == "fp8" and precision == "fp32":
        raise InputError(
            f"{called['weights_dtype']} fp8 stores weights for products in bf16, fp16 or fp8, "
            f"{called['precision']} is fp32",
            hint=f"{called['precision']} bf16, or leave {called['weights_dtype']} out",
        )
    if matmul == "fp8" and weights_dtype != "fp8":
        raise InputError(
            f"{called['matmul']} fp8 multiplies weights that are stored in fp8, {called['weights_dtype']} is "
            f"{weights_dtype}",
            hint=f"{called['weights_dtype']} fp8",
        )
    if matmul == "fp8" and precision != "bf16":
        raise InputError(
            f"{called['matmul']} fp8 gives its products in bf16, {called['precision']} is {precision}",
            hint=f"{called['precision']} bf16, or leave {called['matmul']} out",
        )
