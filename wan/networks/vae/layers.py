"""The layers of the VAE, each of which takes one frame and what it remembers of earlier ones.

Every frame is [1, C, H, W] in channels-last memory; parameters have the official names and shapes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.networks.vae.slabs import Reach, Window, crops, windows

Past = dict[nn.Module, list[Tensor]]
"""What each layer remembers of the earlier frames of one video and slab; empty before the first frame."""
Crop = Callable[[Tensor], Tensor]
"""Takes from a layer's output the part that the next layer reads."""


@dataclass(frozen=True, slots=True)
class Step:
    """A layer, or half of one, as it is run: it takes one frame and makes none, one or two frames."""

    run: Callable[[Tensor, Past, Crop], list[Tensor]]
    reach: Reach


def normalise(x: Tensor, gamma: Tensor) -> Tensor:
    """Scale x [T, C, H, W] to x / |x| * sqrt(C) * gamma, with |x| over C and C gammas; a new tensor."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12)
    return (x * length.reciprocal_().mul_(math.sqrt(x.shape[1]))).mul_(gamma.view(-1, 1, 1))


def norm_silu(x: Tensor, gamma: Tensor, *, fused: bool = True) -> Tensor:
    """SiLU of normalise(x, gamma): x [T, C, H, W], dense in channels-last memory, as is the result."""
    if fused and x.is_cuda:
        from wan.networks.vae import kernels

        return kernels.norm_silu([x], None, gamma)
    return F.silu(normalise(x, gamma), inplace=True)


def dense(x: Tensor) -> Tensor:
    """`x` [T, C, H, W] without gaps, in channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


class Layer(nn.Module):
    """A module called with (frame, past, crop) that returns the frames it makes."""

    reach = Reach()

    def steps(self) -> list[Step]:
        """The steps, which are run one after the other; a layer whose halves differ in size has two."""
        return [Step(self, self.reach)]


def steps_of(*layers: nn.Module) -> list[Step]:
    """The steps of all `layers` (each a Layer) in order."""
    return [step for layer in layers for step in cast(Layer, layer).steps()]


class CausalConv(Layer):
    """A convolution [O, I, 3, k, k] over this frame and the two before it."""

    reach = Reach(before=1, after=1)
    fused = True
    """On CUDA, outputs of taps are added in one pass (kernels.py)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 3, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def lay_out(self) -> None:
        """Make each tap of the weight dense in channels-last memory; its shape and values stay as they are.

        Done once, after loading: a copy per call would cost as much time as a small convolution.
        """
        if not self.weight[:, :, 0].is_contiguous(memory_format=torch.channels_last):
            self.weight.data = self.weight.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)

    def taps(self) -> Tensor:
        """The weight as [3, O, I, k, k], each tap dense in channels-last memory, oldest frame first."""
        self.lay_out()  # for networks that no Component has loaded
        return self.weight.movedim(2, 0)

    def forward(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        """[1, I, H, W] -> [1, O, H, W]; x stays in `past` and must not be changed afterwards."""
        return [self.total(self.frames(x, past), crop)]

    def frames(self, x: Tensor, past: Past) -> list[Tensor]:
        """This frame and those before it that are read with it, oldest first; x stays in `past`."""
        kept = past.setdefault(self, [])
        frames = [*kept, x]
        kept[:] = frames[-2:]
        return frames

    def total(self, frames: list[Tensor], crop: Crop, shortcut: Callable[[], Tensor] | None = None) -> Tensor:
        """crop(the sum of all taps) + shortcut(): dense [1, O, h, w]; empties `frames`."""
        return sum_of_taps(frames, self.taps(), self.bias, crop=crop, shortcut=shortcut, fused=self.fused)


def outputs_of_taps(frames: list[Tensor], taps: Tensor) -> list[Tensor]:
    """What the last taps [3, O, I, k, k] make of `frames` (oldest first), without a bias; empties `frames`."""
    taps = taps[-len(frames) :]
    # Nothing else refers to the oldest frame: once popped, it is free before the next tap needs memory.
    return [F.conv2d(frames.pop(0), tap, padding=taps.shape[-1] // 2) for tap in taps]


def sum_of_taps(
    frames: list[Tensor],
    taps: Tensor,
    bias: Tensor,
    *,
    crop: Crop,
    shortcut: Callable[[], Tensor] | None = None,
    fused: bool = True,
) -> Tensor:
    """crop(the sum of outputs_of_taps() and the bias) + shortcut(), dense; empties `frames`."""
    if fused and bias.is_cuda:
        from wan.networks.vae import kernels

        parts = outputs_of_taps(frames, taps)
        return kernels.total(parts, bias, crop, None if shortcut is None else shortcut())
    taps = taps[-len(frames) :]
    padding = taps.shape[-1] // 2
    # Added one by one, so that only one output waits for another.
    out = F.conv2d(frames.pop(0), taps[0], bias, padding=padding)
    for tap in taps[1:]:
        out += F.conv2d(frames.pop(0), tap, padding=padding)
    return dense(crop(out)) if shortcut is None else crop(out) + shortcut()


class PointConv(nn.Module):
    """A 1x1x1 convolution."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        nn.init.normal_(self.weight, std=in_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[T, I, H, W] -> [T, O, H, W]."""
        return F.conv2d(x, self.weight[:, :, 0], self.bias)


class NormSilu(nn.Module):
    """The norm and SiLU in front of a causal convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        """See norm_silu."""
        return norm_silu(x, self.gamma, fused=self.fused)


class ResidualBlock(Layer):
    """Two causal convolutions, each after a norm and SiLU, with a shortcut around them."""

    reach = Reach(before=2, after=2)

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # The numbers that are left out were SiLU and dropout.
        self.residual = nn.ModuleDict(
            {
                "0": NormSilu(in_dim),
                "2": CausalConv(in_dim, out_dim),
                "3": NormSilu(out_dim),
                "6": CausalConv(out_dim, out_dim),
            }
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else PointConv(in_dim, out_dim)

    def forward(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        """[1, I, H, W] -> [1, O, H, W], cropped by the addition itself."""
        norm1, conv1, norm2, conv2 = self._layers()
        frames = conv1.frames(norm1(x), past)
        if conv1.fused and x.is_cuda:
            from wan.networks.vae import kernels

            y = kernels.norm_silu(outputs_of_taps(frames, conv1.taps()), conv1.bias, norm2.gamma)
        else:
            y = norm2(conv1.total(frames, _whole))
        frames = conv2.frames(y, past)
        del y  # the frames alone hold it
        return [conv2.total(frames, crop, lambda: self.shortcut(crop(x)))]

    def _layers(self) -> tuple[NormSilu, CausalConv, NormSilu, CausalConv]:
        return cast(tuple[NormSilu, CausalConv, NormSilu, CausalConv], tuple(self.residual.values()))


def _whole(x: Tensor) -> Tensor:
    return x


class NarrowingConv(CausalConv):
    """A causal convolution to few channels, which remembers parts of later outputs instead of earlier inputs.

    It is for the heads: the head of the decoder remembers 2 x 3 channels at full size, not 2 x 96, and reads its input
    once.
    """

    def forward(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        """[1, I, H, W] -> [1, O, H, W]."""
        sums = F.conv2d(x, self.taps().flatten(0, 1), padding=self.weight.shape[-1] // 2)
        in_two, in_one, now = sums.chunk(3, dim=1)
        due, later = past.get(self) or (torch.zeros_like(now), torch.zeros_like(now))
        past[self] = [later + in_one, in_two]
        return [dense(crop(now + due + self.bias.view(-1, 1, 1)))]


class Head(Layer):
    """Norm, SiLU and the last convolution; built as official files name it: "0" and "2"."""

    reach = Reach(before=1, after=1)

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.add_module("0", NormSilu(in_dim))
        self.add_module("2", NarrowingConv(in_dim, out_dim))

    def forward(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        """[1, I, H, W] -> [1, O, H, W]."""
        norm, conv = self.children()
        made: list[Tensor] = conv(norm(x), past, crop)
        return made


class Attention(Layer):
    """Self-attention with one head among the pixels of a frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = _Gain(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        """[1, C, H, W] -> [1, C, H, W]; the whole frame, so nothing may be cropped before it."""
        _, dim, height, width = x.shape
        qkv = self.to_qkv(normalise(x, self.norm.gamma)).permute(0, 2, 3, 1).reshape(1, 1, -1, 3 * dim)
        y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        y = self.proj(y.reshape(1, height, width, dim).permute(0, 3, 1, 2))
        return [crop(y + x)]


class _Gain(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1))


class Upsample(Layer):
    """Doubles height and width and halves the channels; `in_time`: also makes two frames of each but the first."""

    fused = True

    def __init__(self, dim: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        if in_time:
            self.time_conv = CausalConv(dim, 2 * dim, kernel=1)
        self._in_time = in_time

    def steps(self) -> list[Step]:
        """Time first, while frames are small."""
        in_space = Step(self._double_size, Reach(before=1, after=1, zoom=2))
        return [Step(self._double_frames, Reach()), in_space] if self._in_time else [in_space]

    def _double_frames(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        if self not in past:
            # The first frame of the video is not doubled, and the convolution over time never sees it.
            past[self] = []
            return [x]
        frames = [*past[self], x]
        past[self] = frames[-2:]
        conv = self.time_conv
        halves = zip(conv.taps().chunk(2, dim=1), conv.bias.chunk(2), strict=True)
        return [
            sum_of_taps(frames.copy(), taps, bias, crop=_whole, fused=conv.fused) for taps, bias in halves
        ]

    def _double_size(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        conv = cast(nn.Conv2d, self.resample["1"])
        assert conv.bias is not None
        larger = [F.interpolate(x, scale_factor=2.0, mode="nearest-exact")]
        # A convolution of one tap, so that the bias and the crop take one pass.
        return [sum_of_taps(larger, conv.weight.unsqueeze(0), conv.bias, crop=crop, fused=self.fused)]


class Downsample(Layer):
    """Halves height and width; `in_time`: also makes one frame of every two, but keeps the first frame."""

    def __init__(self, dim: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2, padding=2)})
        if in_time:
            self.time_conv = CausalConv(dim, dim, kernel=1)
        self._in_time = in_time

    def steps(self) -> list[Step]:
        """Space first, so that time works on small frames."""
        in_space = Step(self._halve_size, Reach(after=2, stride=2))
        return [in_space, Step(self._halve_frames, Reach())] if self._in_time else [in_space]

    def _halve_size(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        # The network pads by one, on the right and below only. Padding by two on all sides gives the same outputs after
        # one row and one column too many, which are cut off, and needs no padded copy of the frame.
        return [dense(crop(self.resample["1"](x)[:, :, 1:, 1:]))]

    def _halve_frames(self, x: Tensor, past: Past, crop: Crop) -> list[Tensor]:
        frames = [*past.get(self, []), x]
        past[self] = frames
        if len(frames) == 1:
            return [x]
        if len(frames) == 2:
            return []
        past[self] = [x]
        return [self.time_conv.total(frames, _whole)]


class SlabPass:
    """One run of `steps` over the frames of a video, for the part of the image that makes `slab`.

    `slab` counts positions of the output along `dim`, `size` is the length of that side at the input. `read` is the
    part of the input that is read.
    """

    def __init__(self, steps: list[Step], slab: Window, *, size: int, dim: int) -> None:
        chain = [step.reach for step in steps]
        read = windows(chain, slab, size)
        self.read = read[0]
        self.cut: Crop = partial(_narrow, dim=dim, window=self.read)
        self._steps = steps
        self._crops = [partial(_narrow, dim=dim, window=window) for window in crops(chain, read)]
        self._past: Past = {}

    def __call__(self, frame: Tensor) -> Iterator[Tensor]:
        """Yield the frames that come of the next frame of the video, [1, C, H, W] and already cut.

        Depth first, so that beside the past only one frame of the largest size is being worked on.
        """
        waiting = [(0, dense(frame))]
        while waiting:
            depth, x = waiting.pop()
            if depth == len(self._steps):
                yield x
                continue
            made = self._steps[depth].run(x, self._past, self._crops[depth])
            waiting += [(depth + 1, y) for y in reversed(made)]
            # Frames that wait must have no other name, or a large one would stay alive until the next turn.
            del made


def _narrow(x: Tensor, dim: int, window: Window) -> Tensor:
    return x.narrow(dim, window.start, window.stop - window.start)
