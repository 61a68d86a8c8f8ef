"""The diffusion transformer of Wan2.1: noisy latents, a time and a context in; a velocity out.

    dit = WanDit(TASKS["t2v-1.3B"].dit)          # official parameter names: official files load strictly
    velocity = dit(latents, time, text)          # [B, 16, T, H, W] fp32

What is where: the residual stream x is fp32 [B, L, D]; what enters a matrix product is in the parameters' dtype, or in
fp8 (linear.py); time embedding, modulation and head are computed in fp32. Everything after attention is token-wise and
runs by token chunks, so the peak of a forward pass is x + q + k + v + the attention output, and with
`attention_slicing` x + q + k + a head group of v and output.

B batch, L tokens, D model width, N heads, F feed-forward width, S context tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wan.config import DitConfig
from wan.levers import Levers
from wan.networks import ops, sdpa
from wan.networks.attention import Attention, head_groups
from wan.networks.linear import Layer, Rows, takes_fp8
from wan.networks.rope import rope_table
from wan.spans import span
from wan.weights.fp8 import FP8

Norm = Callable[[Tensor], Rows]
Pairs = list[tuple[Tensor, Tensor]]


def token_slices(num_tokens: int, chunks: int) -> Iterator[slice]:
    """At most `chunks` slices of nearly equal length."""
    length = max(1, -(-num_tokens // chunks))
    return (slice(start, min(start + length, num_tokens)) for start in range(0, num_tokens, length))


class Tokens:
    """Which tokens of a video this process works on: all; wan/parallel/tokens.py splits them over ranks."""

    num_passes = 1
    """Passes whose tokens whole() brings."""

    def own(self, x: Tensor, dim: int) -> Tensor:
        """The part of x, whose `dim` counts the tokens of the video, that this process works on."""
        return x

    def whole(self, x: Tensor) -> Tensor:
        """The parts x [B, l, C] of all ranks as [B, L, C]; the ranks may run several passes: then [passes B, L, C]."""
        return x


class RmsNorm(nn.Module):
    """The norm of queries or keys, over all heads at once, and the rotation of each head that follows it."""

    def __init__(self, config: DitConfig, levers: Levers) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.dim))
        self.num_heads, self.eps, self.levers = config.num_heads, config.eps, levers

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """x [B, L, D], changed in place unless autograd records; table [L, D/N/2] complex, None: no rotation."""
        levers = self.levers
        return ops.rms_norm_rope(
            x, self.weight, table,
            num_heads=self.num_heads, eps=self.eps, chunks=levers.rope_chunks, fused=levers.fused_kernels,
        )  # fmt: skip


class SelfAttention(nn.Module):
    """Attention of every token to every token; wan/parallel replaces `kernel` where tokens are split over ranks."""

    def __init__(self, config: DitConfig, levers: Levers) -> None:
        super().__init__()
        dim = config.dim
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RmsNorm(config, levers), RmsNorm(config, levers)
        self.num_heads = config.num_heads
        self.levers = levers
        self.kernel = Attention(levers.attention_kernel)

    def attend(self, x: Tensor, norm: Norm, table: Tensor) -> Tensor:
        """The input of `o`: x [B, L, D] fp32, normed to the matmul dtype by `norm`; returns [B, L, D]."""
        if self.levers.attention_slicing and not torch.is_grad_enabled():
            return self._attend_by_groups(x, norm, table)
        normed, kernel = norm(x), self.kernel
        parts = [kernel.to_heads(self._split(self.norm_q(self.q(normed), table)))]
        parts.append(kernel.to_heads(self._split(self.norm_k(self.k(normed), table))))
        parts.append(self._split(self.v(normed)))
        del normed
        parts.append(kernel.to_heads(parts.pop()))  # popped: no name here keeps it alive once it is sent
        return kernel.to_tokens(kernel.attend(parts)).flatten(2)

    def _attend_by_groups(self, x: Tensor, norm: Norm, table: Tensor) -> Tensor:
        """As attend(), with v and the output for one group of heads at a time; the output takes the place of q.

        q and k must be whole, since their norm runs over all heads. `norm` runs again for each group, which costs a
        pass over x and saves holding its result.
        """
        q, k = self._query_key(x, norm, table)
        kernel = self.kernel
        width = q.shape[-1] // head_groups(self.num_heads // kernel.head_ranks)
        for start in range(0, q.shape[-1], width):
            group = slice(start, start + width)
            parts = [kernel.to_heads(self._split(part[..., group])) for part in (q, k)]
            parts.append(kernel.to_heads(self._split(self._value(x, norm, group))))
            out = kernel.to_tokens(kernel.attend(parts))
            q[..., group] = out.flatten(2)
            del out
        return q

    def _query_key(self, x: Tensor, norm: Norm, table: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (torch.empty(x.shape, dtype=self.q.bias.dtype, device=x.device) for _ in range(2))
        for part in token_slices(x.shape[1], self.levers.num_chunks(x.shape[1])):
            normed = norm(x[:, part])
            q[:, part] = self.norm_q(self.q(normed), table[part])
            k[:, part] = self.norm_k(self.k(normed), table[part])
        return q, k

    def _value(self, x: Tensor, norm: Norm, group: slice) -> Tensor:
        bias = self.v.bias[group]
        v = torch.empty(*x.shape[:2], bias.shape[0], dtype=bias.dtype, device=x.device)
        for part in token_slices(x.shape[1], self.levers.num_chunks(x.shape[1])):
            v[:, part] = ops.linear(norm(x[:, part]), self.v, group)
        return v

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.norm_q.weight.shape[0] // self.num_heads))
        return heads


class CrossAttention(nn.Module):
    """Attention of tokens to the context: text, and with i2v and flf2v the image in front of it. Always by torch."""

    def __init__(self, config: DitConfig, levers: Levers) -> None:
        super().__init__()
        dim = config.dim
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RmsNorm(config, levers), RmsNorm(config, levers)
        self.image_len = 0
        if config.has_image_context:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RmsNorm(config, levers)
            self.image_len = config.image_len
        self.num_heads = config.num_heads

    def keys_values(self, context: Tensor) -> Pairs:
        """Keys and values [B, S, N, D/N] of the text, then of the image; context [B, S, D], image tokens first."""
        image, text = context[:, : self.image_len], context[:, self.image_len :]
        pairs = [(self._heads(self.norm_k(self.k(text))), self._heads(self.v(text)))]
        if self.image_len:
            key, value = self.norm_k_img(self.k_img(image)), self.v_img(image)
            pairs.append((self._heads(key), self._heads(value)))
        return pairs

    def forward(self, x: Rows, pairs: Pairs) -> Tensor:
        """x [B, l, D], any chunk of tokens; the pairs come from keys_values(); returns [B, l, D]."""
        q = self._heads(self.norm_q(self.q(x)))
        out = sdpa.attention(q, *pairs[0])
        for key, value in pairs[1:]:
            out = out + sdpa.attention(q, key, value)
        projected: Tensor = self.o(out.flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to the residual stream."""

    apart: tuple[str, ...] = ()
    """Children whose weights are used outside forward()."""

    def __init__(self, config: DitConfig, levers: Levers) -> None:
        super().__init__()
        dim = config.dim
        self.self_attn = SelfAttention(config, levers)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.cross_attn = CrossAttention(config, levers)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.eps = config.eps
        self.levers = levers

    def forward(self, x: Tensor, time: Tensor, context: Tensor, table: Tensor) -> Tensor:
        """x [B, L, D] fp32; time [B, 6, D] fp32; context [B, S, D]; table [L, D/N/2]; returns x, changed in place."""
        modulation = (self.modulation.float() + time).unbind(1)
        shift, scale = modulation[:2]
        attended = self.self_attn.attend(x, lambda part: self._norm(part, 1 + scale, shift), table)
        pairs = self.cross_attn.keys_values(context)
        if torch.is_grad_enabled():
            return self._token_wise(x, attended, pairs, modulation)
        for part in token_slices(x.shape[1], self.levers.num_chunks(x.shape[1])):
            self._token_wise(x[:, part], attended[:, part], pairs, modulation)
        return x

    def _token_wise(
        self, x: Tensor, attended: Tensor, pairs: Pairs, modulation: tuple[Tensor, ...]
    ) -> Tensor:
        """Everything after self-attention, for any chunk of tokens: x and attended [B, l, D]; returns the new x."""
        _, _, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        norm3 = self.norm3
        x, normed = self._add_norm(x, self.self_attn.o(attended), gate, norm3.weight, norm3.bias)
        x, normed = self._add_norm(x, self.cross_attn(normed, pairs), None, 1 + ffn_scale, ffn_shift)
        hidden = ops.linear_gelu(normed, cast(Layer, self.ffn[0]), fused=self.levers.fused_kernels)
        return ops.gated_add(x, self.ffn[2](hidden), ffn_gate, fused=self.levers.fused_kernels)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor) -> Rows:
        return ops.layer_norm(
            x, gain, bias, eps=self.eps, dtype=self._row_dtype, fused=self.levers.fused_kernels
        )

    def _add_norm(
        self, x: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, bias: Tensor
    ) -> tuple[Tensor, Rows]:
        return ops.add_layer_norm(
            x, y, gate, gain, bias, eps=self.eps, dtype=self._row_dtype, fused=self.levers.fused_kernels
        )

    @property
    def _dtype(self) -> torch.dtype:
        return self.self_attn.q.bias.dtype

    @property
    def _row_dtype(self) -> torch.dtype:
        """Of what the norms make for the linear layers behind them."""
        return FP8 if takes_fp8(self.self_attn.q) else self._dtype


class VaceBlock(Block):
    """A block of the control branch; its hint is added to the base stream after one base block.

    `before_proj` of the first block is used before the base blocks start, so it does not belong to the weights that are
    streamed in for the block's own forward.
    """

    apart = ("before_proj",)

    def __init__(self, config: DitConfig, levers: Levers, first: bool) -> None:
        super().__init__(config, levers)
        if first:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)

    def forward(  # type: ignore[override]
        self, control: Tensor, x: Tensor, time: Tensor, context: Tensor, table: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The next control stream, and x + scale * its hint; control and x [B, L, D] fp32, changed in place."""
        control = super().forward(control, time, context, table)
        if torch.is_grad_enabled():
            return control, x + self._hint(control, scale)
        for part in token_slices(x.shape[1], self.levers.num_chunks(x.shape[1])):
            ops.gated_add(
                x[:, part], self._hint(control[:, part], scale), None, fused=self.levers.fused_kernels
            )
        return control, x

    def _hint(self, control: Tensor, scale: float) -> Tensor:
        projected: Tensor = self.after_proj(control.to(self._dtype))
        return projected * scale


class ImageEmbedding(nn.Module):
    """CLIP states to context tokens (i2v, flf2v)."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width, dim = config.image_dim, config.dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim), nn.LayerNorm(dim)
        )
        if config.model_type == "flf2v":
            self.emb_pos = nn.Parameter(torch.zeros(1, config.image_len, width))
        self.has_position = config.model_type == "flf2v"

    def forward(self, states: Tensor) -> Tensor:
        """states [B, image_len, image_dim] -> [B, image_len, D]."""
        if self.has_position:
            states = states + self.emb_pos
        tokens: Tensor = self.proj(states)
        return tokens


class Head(nn.Module):
    """The last norm and projection, in fp32."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = nn.Linear(config.dim, patch * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.eps = config.eps

    def forward(self, x: Tensor, time: Tensor, levers: Levers) -> Tensor:
        """x [B, L, D] fp32, time [B, D] fp32 -> [B, L, patch * out_dim] fp32."""
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).unbind(1)
        weight, bias = self.head.weight.float(), self.head.bias.float()
        parts = []
        # The output of the norm is fp32 here, twice as wide as elsewhere, so there are twice as many chunks.
        for part in token_slices(x.shape[1], 2 * levers.num_chunks(x.shape[1])):
            normed = ops.layer_norm(
                x[:, part], 1 + scale, shift, eps=self.eps, dtype=torch.float32, fused=levers.fused_kernels
            )
            parts.append(F.linear(cast(Tensor, normed), weight, bias))
        return torch.cat(parts, dim=1)


class WanDit(nn.Module):
    """The transformer of every task; `config.model_type` decides which inputs it takes."""

    def __init__(self, config: DitConfig, levers: Levers | None = None) -> None:
        super().__init__()
        levers = levers or Levers()
        dim = config.dim
        self.config, self.levers = config, levers
        self.tokens = Tokens()
        patch = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, levers) for _ in range(config.num_layers))
        self.head = Head(config)
        if config.has_image_context:
            self.img_emb = ImageEmbedding(config)
        if config.model_type == "vace":
            self.vace_patch_embedding = nn.Conv3d(config.vace_in_dim, dim, patch, stride=patch)
            self.vace_blocks = nn.ModuleList(
                VaceBlock(config, levers, first=index == 0) for index in range(len(config.vace_layers))
            )

    def execution_order(self) -> list[nn.Module]:
        """Every block, in the order in which a forward pass runs them; streaming prefetches in this order."""
        order: list[nn.Module] = []
        for index, block in enumerate(self.blocks):
            order.append(block)
            if index in self.config.vace_layers:
                order.append(self.vace_blocks[self.config.vace_layers.index(index)])
        return order

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        text: Tensor,
        *,
        image_latents: Tensor | None = None,
        image_states: Tensor | None = None,
        control: Tensor | None = None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """The velocity at `latents`.

        Args:
            latents: [B, 16, T, H, W] fp32.
            time: [B], the timestep in 0..1000.
            text: [B, text_len, text_dim], zero after the prompt's own tokens.
            image_latents: [B, 20, T, H, W], mask and encoded frames (i2v, flf2v).
            image_states: [B, image_len, image_dim], CLIP states (i2v, flf2v).
            control: [B, vace_in_dim, T, H, W] (vace).
            control_scale: weight of the control branch (vace).

        Returns:
            [B, 16, T, H, W] fp32; where ranks run several passes at the same time, of each: [passes B, 16, T, H, W].
        """
        grid = self._grid(latents)
        velocity = self._place_of_velocity(latents)
        embedded, modulation = self._embed_time(time)
        context = self._embed_context(text, image_states)
        table = self.tokens.own(self._rope_table(grid, latents), dim=0)
        if image_latents is not None:
            latents = torch.cat([latents, image_latents.to(latents.dtype)], dim=1)
        x = self._embed_patches(latents, self.patch_embedding)
        x = self._run_blocks(x, modulation, context, table, control, control_scale)
        with span("dit.head"):
            out = self.tokens.whole(self.head(x, embedded, self.levers))
        return self._unpatch(out, grid, velocity)

    def _place_of_velocity(self, latents: Tensor) -> Tensor | None:
        """Memory for the result, taken before all else; None where autograd records.

        The result outlives the pass. Made at its end, it would come to lie in the middle of the free memory, and the
        large tensors of the next pass would find no room on either side of it.
        """
        if torch.is_grad_enabled():
            return None
        shape = (self.tokens.num_passes * latents.shape[0], self.config.out_dim, *latents.shape[2:])
        return torch.empty(shape, dtype=torch.float32, device=latents.device)

    def _run_blocks(
        self, x: Tensor, time: Tensor, context: Tensor, table: Tensor, control: Tensor | None, scale: float
    ) -> Tensor:
        branch = None if control is None else self._embed_control(x, control)
        for index, block in enumerate(self.blocks):
            with span("dit.block", index=index):
                x = self._run(block, x, time, context, table)
            if branch is None or index not in self.config.vace_layers:
                continue
            # A control block runs when its hint is due and adds the hint at once: so one control stream is held, and
            # not one hint for each layer.
            vace = self.vace_blocks[self.config.vace_layers.index(index)]
            with span("dit.vace_block", index=index):
                branch, x = self._run(vace, branch, x, time, context, table, scale)
        return x

    def _run(self, block: nn.Module, *inputs: Tensor | float) -> Any:
        if self.levers.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _embed_control(self, x: Tensor, control: Tensor) -> Tensor:
        tokens = self._embed_patches(control, self.vace_patch_embedding)
        before = cast(VaceBlock, self.vace_blocks[0]).before_proj
        if torch.is_grad_enabled():
            projected: Tensor = before(tokens.to(before.bias.dtype))
            return x + projected
        for part in token_slices(x.shape[1], self.levers.num_chunks(x.shape[1])):
            own = tokens[:, part]
            own.copy_(before(own.to(before.bias.dtype))).add_(x[:, part])
        return tokens

    def _embed_patches(self, latents: Tensor, conv: nn.Conv3d) -> Tensor:
        """[B, C, T, H, W] -> [B, l, D] fp32 of our tokens: a convolution without overlap is one matrix product."""
        _, height, width = self.config.patch_size
        patches = latents.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))  # B C T h p w q
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        patches = self.tokens.own(patches, dim=1).to(conv.weight.dtype)
        return F.linear(patches, conv.weight.flatten(1), conv.bias).float()

    def _embed_time(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Time [B] -> embedding [B, D] and modulation [B, 6, D], both fp32."""
        half = self.config.freq_dim // 2
        speed = 10000.0 ** -(torch.arange(half, device=time.device, dtype=torch.float64) / half)
        angle = torch.outer(time.double(), speed)
        wave = torch.cat([angle.cos(), angle.sin()], dim=1).float()
        embedded = _linear_fp32(F.silu(_linear_fp32(wave, self.time_embedding[0])), self.time_embedding[2])
        modulation = _linear_fp32(F.silu(embedded), self.time_projection[1])
        return embedded, modulation.unflatten(1, (6, -1))

    def _embed_context(self, text: Tensor, image_states: Tensor | None) -> Tensor:
        dtype = self.patch_embedding.weight.dtype
        context: Tensor = self.text_embedding(text.to(dtype))
        if image_states is None:
            return context
        return torch.cat([self.img_emb(image_states.to(dtype)), context], dim=1)

    def _rope_table(self, grid: tuple[int, int, int], latents: Tensor) -> Tensor:
        rotated = self.patch_embedding.weight.dtype
        dtype = ops.rope_dtype(rotated, fused=ops.runs_fused(latents, self.levers.fused_kernels))
        return rope_table(grid, self.config.head_dim, latents.device, dtype)

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        _, _, frames, height, width = latents.shape
        return frames, height // self.config.patch_size[1], width // self.config.patch_size[2]

    def _unpatch(self, out: Tensor, grid: tuple[int, int, int], place: Tensor | None) -> Tensor:
        """The patches `out` [B, L, patch * C] as [B, C, T, H, W], in `place` where there is one."""
        _, height, width = self.config.patch_size
        out = out.unflatten(-1, (height, width, -1)).unflatten(1, grid)  # B T h w p q C
        out = out.permute(0, 6, 1, 2, 4, 3, 5)
        if place is None:
            return out.flatten(5).flatten(3, 4)
        place.view(out.shape).copy_(out)
        return place


def _linear_fp32(x: Tensor, layer: nn.Module) -> Tensor:
    # The time path is computed in fp32 whatever the storage; its matrix products are too small to cost much.
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight.float(), layer.bias.float())
