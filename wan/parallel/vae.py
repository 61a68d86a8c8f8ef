"""The VAE over ranks: every rank makes slabs of the image, exactly, and the first one puts them together.

    video = decode(vae, latents, ranks)            # on the first rank's host; None on the others
    latents = encode(vae, video, ranks)            # on every rank

A slab reads a little of its neighbours (networks/vae/slabs.py) and is independent of them otherwise, so ranks
communicate only to hand over what they made: the pixels of one latent frame of a slab at a time, which leave the first
rank's device at once. The layers that attend to whole frames, at latent resolution, are computed by every rank before
decoding, and by the first rank after encoding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from wan.networks.vae.host_copies import HostWriter
from wan.networks.vae.network import FIRST, LATER, WanVae, cut_dim
from wan.networks.vae.slabs import DECODE_FRAMES, ENCODE_FRAMES, Window, split
from wan.parallel.ranks import Pending, Ranks
from wan.spans import span

Share = list[Window | None]
"""The slab of each rank; None for a rank that has none in this round."""


def rounds(length: int, slabs: int, num_ranks: int) -> list[Share]:
    """At least `slabs` slabs of `length` positions, as many for each rank, side by side; a Share for each round."""
    turns = -(-slabs // num_ranks)
    windows: list[Window | None] = [*split(length, turns * num_ranks)]
    turns = -(-len(windows) // num_ranks)
    windows += [None] * (turns * num_ranks - len(windows))
    return [windows[turn::turns] for turn in range(turns)]


@torch.no_grad()
def decode(vae: WanVae, z: Tensor, ranks: Ranks, slabs: int = 0) -> Tensor | None:
    """WanVae.decode over ranks: z [16, T', h, w] on all of them, the video [3, F, H, W] on the first rank's host.

    `slabs`: of the whole image; 0 chooses by size. Raised to a multiple of the ranks.
    """
    scale = vae.config.stride[1]
    _, num_latents, height, width = z.shape
    slabs = slabs or vae.num_slabs(height * scale, width * scale, DECODE_FRAMES)
    features = vae.decode_features(z)
    dim = cut_dim(features)
    shares = rounds(features.shape[dim], slabs, ranks.size)
    # A rank's slabs lie side by side: it keeps what they read, and the rest of the features is freed.
    own = [share[ranks.rank] for share in shares]
    reads = [None if window is None else vae.cut_features(features, window) for window in own]
    del features
    video = None
    if ranks.rank == 0:
        num_frames = FIRST + LATER * (num_latents - 1)
        video = torch.empty(3, num_frames, height * scale, width * scale, dtype=torch.float32)
    for index, share in enumerate(shares):
        read, reads[index] = reads[index], None
        with span("vae.slab", index=index):
            made = iter(()) if read is None else vae.decode_slab(*read, dim=dim)
            del read
            if video is None:
                _hand_over(made, ranks)
            else:
                slabs_of = [None if w is None else _part(video, dim, w, scale) for w in share]
                _put_together(made, slabs_of, ranks, vae.dtype)
    return video


def _part(video: Tensor, dim: int, window: Window, scale: int) -> Tensor:
    """The slab `window`, in latent positions, of a video [3, F, H, W]."""
    return video.narrow(dim, scale * window.start, scale * (window.stop - window.start))


def _hand_over(made: Iterator[tuple[int, Tensor]], ranks: Ranks) -> None:
    """Send pixels to the first rank as they are made, one latent frame under way at a time."""
    pending = Pending([])
    for _, pixels in made:
        pending.wait()
        pending = ranks.send_to_first(pixels.contiguous())
    pending.wait()


def _put_together(
    made: Iterator[tuple[int, Tensor]], targets: list[Tensor | None], ranks: Ranks, dtype: torch.dtype
) -> None:
    """On the first rank: its own pixels and those of the others into `targets`, on the host, one a rank.

    Pixels are in `dtype` until they are there.
    """
    own, *others = targets
    assert own is not None, "the first rank has the first slab"
    with HostWriter() as writer:
        start, num_frames = 0, FIRST
        while start < own.shape[1]:
            parts = [
                (rank, target.narrow(1, start, num_frames))
                for rank, target in enumerate(others, start=1)
                if target is not None
            ]
            # Posted before this rank's own work, so that no other rank waits for that work.
            buffers = [
                (rank, part.new_empty(part.shape, dtype=dtype, device=ranks.device)) for rank, part in parts
            ]
            pending = ranks.receive(buffers)
            first, pixels = next(made)
            assert first == start, "every rank makes the same frames"
            writer.put(own.narrow(1, start, num_frames), pixels)
            pending.wait()
            for (_, part), (_, buffer) in zip(parts, buffers, strict=True):
                writer.put(part, buffer)
            start, num_frames = start + num_frames, LATER


@torch.no_grad()
def encode(vae: WanVae, video: Tensor, ranks: Ranks, slabs: int = 0) -> Tensor:
    """WanVae.encode over ranks: a video [3, F, H, W] to latents [16, T', h, w], both on every rank."""
    slabs = slabs or vae.num_slabs(video.shape[2], video.shape[3], ENCODE_FRAMES)
    whole = vae.empty_features(video)
    dim, size = cut_dim(whole), whole.shape
    if ranks.rank:
        del whole
    for index, share in enumerate(rounds(size[dim], slabs, ranks.size)):
        own = share[ranks.rank]
        with span("vae.slab", index=index):
            if ranks.rank == 0:
                assert own is not None, "the first rank has the first slab"
                buffers = [
                    (rank, vae.empty_features(video, window, dim))
                    for rank, window in enumerate(share)
                    if rank and window is not None
                ]
                # Channels last, as the buffer is in memory.
                pending = ranks.receive([(rank, buffer.permute(0, 2, 3, 1)) for rank, buffer in buffers])
                vae.encode_slab(video, own, _columns(whole, dim, own), dim=dim)
                pending.wait()
                for rank, buffer in buffers:
                    window = share[rank]
                    assert window is not None
                    _columns(whole, dim, window).copy_(buffer)
            elif own is not None:
                features = vae.empty_features(video, own, dim)
                vae.encode_slab(video, own, features, dim=dim)
                ranks.send_to_first(features.permute(0, 2, 3, 1)).wait()
    return ranks.once(lambda: vae.encode_latents(whole))


def _columns(features: Tensor, dim: int, window: Window) -> Tensor:
    return features.narrow(dim, window.start, window.stop - window.start)
