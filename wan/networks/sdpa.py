"""Scaled dot-product attention by torch over [B, L, N, D] (batch, tokens, heads, head width), with and without its LSE.

torch picks the kernel: on one H200 with torch 2.11 it is cuDNN's, which attends 75,600 tokens x 40 heads in 0.20 s
(flash 0.33 s, memory-efficient 0.65 s) and allocates its output only. This file does not choose among torch's kernels:
in a process that had used sdpa_kernel() with a priority, attention elsewhere ran the flash kernel from then on (seen
with torch 2.11). Kernels of other packages: attention_kernels.py.

LSE: the logarithm of the sum of the exponentials of a query's scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v without a mask: q [B, Lq, N, D], k and v [B, Lk, N, D] -> [B, Lq, N, D]."""
    if isinstance(q, FakeTensor) and not q.is_cuda:
        return _fake_output(q)
    query, key, value = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _fake_output(q: Tensor) -> Tensor:
    # With fake CPU tensors SDPA takes the math path, whose score matrix would count as 11 times the memory of the
    # kernel that really runs. That kernel allocates only its output, so this function does the same. Who makes fake
    # CUDA tensors says himself what SDPA does with them.
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its LSE: q [B, Lq, N, D], k and v [B, Lk, N, D] -> [B, Lq, N, D] and [B, Lq, N, 1] fp32."""
    if isinstance(q, FakeTensor):
        return _fake_output(q), torch.empty(*q.shape[:3], 1, dtype=torch.float32, device=q.device)
    query, key, value = (tensor.transpose(1, 2) for tensor in (q, k, v))
    # These are the private operators that F.scaled_dot_product_attention calls. That function cannot return the LSE;
    # flex_attention can, but needs a compiler. torch 2.11 and 2.13 both have these operators.
    if q.is_cuda:
        out, lse = _attention_lse_cuda(query, key, value)
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    # Kernels differ in how they return the LSE: [B, N, Lq], [B, N, Lq, 1], or with rows to spare.
    lse = lse.reshape(*lse.shape[:2], -1)[..., : q.shape[1]].float()
    return out.transpose(1, 2), lse.transpose(1, 2).unsqueeze(-1)


def _attention_lse_cuda(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel that F.scaled_dot_product_attention would pick on a data-centre GPU, asked for its LSE too."""
    aten = torch.ops.aten
    capability = torch.cuda.get_device_capability(query.device)
    # The flash kernel does not read fp32, and does not run on GPUs before Ampere.
    if query.dtype == torch.float32 or capability < (8, 0):
        made = aten._scaled_dot_product_efficient_attention(query, key, value, None, compute_log_sumexp=True)
    elif capability >= (9, 0) and torch.backends.cuda.cudnn_sdp_enabled():
        made = aten._scaled_dot_product_cudnn_attention(query, key, value, None, compute_log_sumexp=True)
    else:
        made = aten._scaled_dot_product_flash_attention(query, key, value)
    return made[0], made[1]
