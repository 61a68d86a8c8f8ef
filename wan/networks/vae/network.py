"""The causal video VAE: pixels to latents and back, one frame at a time, slab by slab, with official names.

    vae = WanVae(VaeConfig())
    latents = vae.encode(video)     # [3, F, H, W] in [-1, 1] -> [16, T', h, w]
    video = vae.decode(latents)     # and back, written to host memory as it is made

A causal 3x3x3 convolution is the sum of three 2-D convolutions, of this frame and of the two before it. So every tensor
here is one frame [1, C, H, W] in channels-last memory, and a frame runs through all layers before the next one enters.
The past of a convolution is a list of at most two frames: no zeros at the start of a video, nothing padded,
concatenated or copied. What remains is the past of all convolutions, 7.5 GB at 720P. It is smaller for a slab
(slabs.py): all frames of one slab are done before the next slab begins.

F = 4 (T' - 1) + 1 frames, T' latent frames, C channels, H x W pixels, h = H / 8, w = W / 8.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wan.config import VaeConfig
from wan.networks.vae.host_copies import HostWriter
from wan.networks.vae.layers import (
    Attention,
    CausalConv,
    Downsample,
    Head,
    Layer,
    NormSilu,
    PointConv,
    ResidualBlock,
    SlabPass,
    Step,
    Upsample,
    steps_of,
)
from wan.networks.vae.slabs import (
    DECODE_FRAMES,
    ENCODE_FRAMES,
    Window,
    choose_slabs,
    split,
)
from wan.spans import span

FIRST, LATER = 1, 4
"""Pixel frames of the first latent frame, and of each later one."""


def _blocks(in_dim: int, out_dim: int, count: int) -> list[Layer]:
    return [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(count)]


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), Attention(dim), ResidualBlock(dim, dim)])


class Encoder(nn.Module):
    """Pixels to the 2 * z_dim channels that hold mean and log-variance."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.base_dim * mult for mult in (1, *config.dim_mult)]
        layers: list[Layer] = []
        for level, (in_dim, out_dim) in enumerate(zip(dims, dims[1:], strict=False)):
            layers += _blocks(in_dim, out_dim, config.num_res_blocks)
            if level < len(config.temporal_downsample):
                layers.append(Downsample(out_dim, in_time=config.temporal_downsample[level]))
        self.conv1 = CausalConv(3, dims[0])
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1])
        self.head = Head(dims[-1], 2 * config.z_dim)
        self._cut = 1 + max(i for i, layer in enumerate(layers) if isinstance(layer, Downsample))

    def slab_steps(self) -> list[Step]:
        """From pixels to features at latent resolution: what may run on a slab."""
        return steps_of(self.conv1, *self.downsamples[: self._cut])

    def full_steps(self) -> list[Step]:
        """The rest, which attends to the whole frame."""
        return steps_of(*self.downsamples[self._cut :], *self.middle, self.head)


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.base_dim * mult for mult in reversed(config.dim_mult)]
        in_time = config.temporal_downsample[::-1]
        layers: list[Layer] = []
        in_dim = dims[0]
        for level, dim in enumerate(dims):
            # One block more than the encoder has; each upsampling halves the channels.
            layers += _blocks(in_dim, dim, config.num_res_blocks + 1)
            if level < len(in_time):
                layers.append(Upsample(dim, in_time=in_time[level]))
                in_dim = dim // 2
        self.conv1 = CausalConv(config.z_dim, dims[0])
        self.middle = _middle(dims[0])
        self.upsamples = nn.ModuleList(layers)
        self.head = Head(dims[-1], 3)
        self._cut = min(i for i, layer in enumerate(layers) if isinstance(layer, Upsample))

    def full_steps(self) -> list[Step]:
        """Everything at latent resolution, which attends to the whole frame."""
        return steps_of(self.conv1, *self.middle, *self.upsamples[: self._cut])

    def slab_steps(self) -> list[Step]:
        """From features at latent resolution to pixels: what may run on a slab."""
        return steps_of(*self.upsamples[self._cut :], self.head)


class WanVae(nn.Module):
    """Encoder and decoder with the parameter names of the official file; either may be left out.

    `fused`: on CUDA, sums of taps, norm and SiLU in one pass each (kernels.py).
    """

    def __init__(
        self, config: VaeConfig, *, encoder: bool = True, decoder: bool = True, fused: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        if encoder:
            self.encoder = Encoder(config)
            self.conv1 = PointConv(2 * config.z_dim, 2 * config.z_dim)
        if decoder:
            self.conv2 = PointConv(config.z_dim, config.z_dim)
            self.decoder = Decoder(config)
        for module in self.modules():
            if isinstance(module, NormSilu | CausalConv | Upsample):
                module.fused = fused

    @torch.no_grad()
    def decode(self, z: Tensor, slabs: int = 0, out: Tensor | None = None) -> Tensor:
        """Latents z [16, T', h, w], normalised, to a video [3, F, H, W] fp32 in [-1, 1] on the host.

        `slabs`: 0 chooses by size, 1 is the whole image at once. `out` receives the video where given. The pixels of
        each latent frame of each slab leave the device as soon as they are made.
        """
        _, num_latents, height, width = z.shape
        scale = self.config.stride[1]
        if out is None:
            num_frames = FIRST + LATER * (num_latents - 1)
            out = torch.empty(3, num_frames, height * scale, width * scale, dtype=torch.float32)
        slabs = slabs or self.num_slabs(height * scale, width * scale, DECODE_FRAMES)
        features = self.decode_features(z)
        dim = cut_dim(features)
        with HostWriter() as writer:
            for index, window in enumerate(split(features.shape[dim], slabs)):
                target = out.narrow(dim, scale * window.start, scale * (window.stop - window.start))
                with span("vae.slab", index=index):
                    for first, pixels in self.decode_slab(features, window):
                        writer.put(target.narrow(1, first, pixels.shape[1]), pixels)
        return out

    @torch.no_grad()
    def decode_features(self, z: Tensor) -> Tensor:
        """Latents [16, T', h, w] to what every slab is made from: features [T', C, h, w] on the device."""
        with span("vae.features"):
            z = z.to(self._like().device, torch.float32)
            z = z * self._statistic(self.config.std) + self._statistic(self.config.mean)
            z = self.conv2(z.to(self.dtype).movedim(1, 0))
            full = _full_pass(self.decoder.full_steps(), z)
            return torch.cat([x for frame in z.split(1) for x in full(frame)])

    @torch.no_grad()
    def decode_slab(
        self, features: Tensor, slab: Window, dim: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The pixels of one slab, latent frame by latent frame, independent of other slabs.

        `slab` counts columns of `features` (rows where the image is upright: cut_dim, or `dim` where it is given).
        Yields the index of the first frame and the pixels [3, 1 or 4, H, 8 * columns] in [-1, 1], on the device.
        """
        dim = cut_dim(features) if dim is None else dim
        part = self._decode_pass(features.shape[dim], slab, dim)
        first = 0
        for index, frame in enumerate(features.split(1)):
            with span("vae.chunk", index=index):
                pixels = torch.cat(list(part(part.cut(frame)))).clamp_(-1, 1).movedim(1, 0)
            yield first, pixels
            first += pixels.shape[1]

    def cut_features(self, features: Tensor, slab: Window) -> tuple[Tensor, Window]:
        """What decode_slab() reads of `features`, in memory of its own, and `slab` counted from where it starts."""
        dim = cut_dim(features)
        read = self._decode_pass(features.shape[dim], slab, dim).read
        cut = features.narrow(dim, read.start, read.stop - read.start)
        return cut.clone(memory_format=torch.channels_last), Window(
            slab.start - read.start, slab.stop - read.start
        )

    def _decode_pass(self, size: int, slab: Window, dim: int) -> SlabPass:
        scale = self.config.stride[1]
        made = Window(scale * slab.start, scale * slab.stop)
        return SlabPass(self.decoder.slab_steps(), made, size=size, dim=dim)

    @torch.no_grad()
    def encode(self, video: Tensor, slabs: int = 0) -> Tensor:
        """A video [3, F, H, W] in [-1, 1], F = 4n + 1, to its normalised mode latents [16, T', h, w] fp32.

        The video may be on the host: four frames of a slab at a time are moved to the parameters' device, and
        there the latents stay. `slabs` as in decode.
        """
        slabs = slabs or self.num_slabs(video.shape[2], video.shape[3], ENCODE_FRAMES)
        features = self.empty_features(video)
        dim = cut_dim(features)
        for index, window in enumerate(split(features.shape[dim], slabs)):
            with span("vae.slab", index=index):
                target = features.narrow(dim, window.start, window.stop - window.start)
                self.encode_slab(video, window, target, dim=dim)
        return self.encode_latents(features)

    def empty_features(self, video: Tensor, slab: Window | None = None, dim: int = 3) -> Tensor:
        """Memory for what encode_slab() makes of `video`: [T', C, h, w], or the columns `slab` of it along `dim`."""
        scale = self.config.stride[1]
        sides = [video.shape[2] // scale, video.shape[3] // scale]
        if slab is not None:
            sides[dim - 2] = slab.stop - slab.start
        num_latents = 1 + (video.shape[1] - FIRST) // LATER
        width = self.config.base_dim * self.config.dim_mult[-2]
        return self._like().new_empty(num_latents, *sides, width).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode_slab(self, video: Tensor, slab: Window, target: Tensor, *, dim: int) -> None:
        """Fill `target`, the columns `slab` along `dim` of the features [T', C, h, w] of `video`."""
        part = SlabPass(self.encoder.slab_steps(), slab, size=video.shape[dim], dim=dim)
        start = 0
        for index, made in enumerate(target.split(1)):
            stop = start + (FIRST if index == 0 else LATER)
            with span("vae.chunk", index=index):
                frames = part.cut(video[:, start:stop]).to(self._like()).movedim(1, 0)
                for frame in frames.split(1):
                    for features in part(frame):
                        made.copy_(features)
            start = stop

    @torch.no_grad()
    def encode_latents(self, features: Tensor) -> Tensor:
        """Whole features [T', C, h, w] to normalised mode latents [16, T', h, w] fp32."""
        with span("vae.latents"):
            full = _full_pass(self.encoder.full_steps(), features)
            moments = torch.cat([x for frame in features.split(1) for x in full(frame)])
            mode: Tensor = self.conv1(moments)[:, : self.config.z_dim].movedim(1, 0)
            mode = mode.to(torch.float32)
            return (mode - self._statistic(self.config.mean)) / self._statistic(self.config.std)

    def num_slabs(self, height: int, width: int, num_frames: int) -> int:
        """Slabs of an image of height x width pixels, of which `num_frames` frames are worked on at a time."""
        frame_bytes = self.config.base_dim * height * width * self._like().element_size()
        return choose_slabs(frame_bytes, num_frames)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that all parameters and frames have; latents and the video are fp32."""
        return self._like().dtype

    def _like(self) -> Tensor:
        """A parameter, for the device and dtype that all parameters have."""
        return next(self.parameters())

    def _statistic(self, values: tuple[float, ...]) -> Tensor:
        return self._like().new_tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def cut_dim(frames: Tensor) -> int:
    """The dimension of `frames` [T, C, H, W] that slabs cut: the longer side."""
    return 3 if frames.shape[3] >= frames.shape[2] else 2


def _full_pass(steps: list[Step], frames: Tensor) -> SlabPass:
    return SlabPass(steps, Window(0, frames.shape[3]), size=frames.shape[3], dim=3)
