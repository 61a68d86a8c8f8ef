"""What i2v, flf2v and vace feed the transformer besides noise and text, from pixels and an encoder.

    height, width = i2v_size(1080, 1920, max_area=832 * 480)
    y = i2v_latents(image, frame_num=81, size=(height, width), encode=vae_encode)    # [20, 21, h, w]

`encode` takes one host video [3, F, H, W], fp32 in [-1, 1], and returns its latents [16, T', h, w] on the device where
it works; it moves the video there chunk by chunk, so the device never holds a whole video in pixels. Shapes: F frames
(4n+1), H and W pixels; T' = (F - 1) / 4 + 1, h = H / 8, w = W / 8. Sizes are (height, width). The formulae are those of
the public Wan2.1 release, with two known differences, both in flf2v: a last frame of another size is cropped to the
ratio of the first (fit_last_frame), and the mask follows frame_num, where the release takes 81 for granted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wan.errors import InputError

Encode = Callable[[Tensor], Tensor]
Size = tuple[int, int]

STRIDE_T, STRIDE = 4, 8
"""Frames and pixels per latent."""
PATCH = 2
"""Latents per token, in height and in width."""


def i2v_size(image_height: int, image_width: int, max_area: int) -> Size:
    """The (height, width) in pixels of a video that keeps the image's aspect ratio.

    Its area is at most about `max_area` (pixels, e.g. 1280 * 720); both sides are multiples of 16. As in the release,
    both divisions round down before round() is called, so a side that a rounding error makes a little less than 480
    becomes 464. Raises InputError for an image so long and narrow that one side would be 0.
    """
    ratio = image_height / image_width
    latent_height = math.sqrt(max_area * ratio) // STRIDE // PATCH * PATCH
    latent_width = math.sqrt(max_area / ratio) // STRIDE // PATCH * PATCH
    if not latent_height or not latent_width:
        longest = max_area // (STRIDE * PATCH) ** 2
        raise InputError(
            f"the picture to start from has {image_width}x{image_height} pixels, too narrow for a video of {max_area}",
            hint=f"crop it: the longer side may be {longest} times the shorter",
        )
    return round(latent_height) * STRIDE, round(latent_width) * STRIDE


def first_frame_mask(latents: Tensor, *, also_last: bool = False) -> Tensor:
    """[4, T', h, w] like `latents` [C, T', h, w]: 1 where a pixel frame is given, 0 where it is to be made.

    The four channels of a latent frame are its four pixel frames. The first latent frame covers one pixel
    frame only and repeats it; the last pixel frame is the last channel of the last latent frame.
    """
    mask = latents.new_zeros(STRIDE_T, *latents.shape[1:])
    # Not mask[:, 0] = 1: indexing starts the device, which a CPU build of torch refuses even on fake tensors.
    mask.select(1, 0).fill_(1)
    if also_last:
        mask.select(0, -1).select(0, -1).fill_(1)
    return mask


def i2v_latents(image: Tensor, frame_num: int, size: Size, encode: Encode) -> Tensor:
    """Latents y [20, T', h, w]: mask and latents of a video that shows `image` and then grey (zeros).

    Args:
        image: [3, H, W] fp32 in [-1, 1] on the host, any size.
        frame_num: 4n+1.
        size: height and width of the video, from i2v_size.
        encode: see the top of this file.
    """
    latents = encode(_grey_video_with({0: image}, frame_num, size))
    return torch.cat([first_frame_mask(latents), latents])


def flf2v_latents(first: Tensor, last: Tensor, frame_num: int, size: Size, encode: Encode) -> Tensor:
    """Latents y [20, T', h, w]: like i2v_latents, with a last frame too.

    `last` comes from fit_last_frame and is not cut again: CLIP reads the same picture. Where its ratio is not
    that of `size`, it is stretched. Raises InputError for fewer than 5 frames: first and last would share a
    latent frame.
    """
    if frame_num <= STRIDE_T:
        raise InputError(
            f"frame_num: a first and a last frame need at least {STRIDE_T + 1} frames, got {frame_num}",
            hint="81 is the length the model was made for",
        )
    latents = encode(_grey_video_with({0: first, frame_num - 1: last}, frame_num, size))
    return torch.cat([first_frame_mask(latents, also_last=True), latents])


def fit_last_frame(last: Tensor, first: Tensor) -> Tensor:
    """`last` [3, H, W] cut around its centre to the aspect ratio of `first`; itself where they agree.

    CLIP and the VAE both see the result. (The release computes the scale that makes the frames match, then crops to the
    scaled size without scaling, which pads small images with grey; the code here does what the release intends.)
    """
    height, width = last.shape[-2:]
    scale = max(first.shape[-2] / height, first.shape[-1] / width)
    # At least one row: if the last frame is far smaller than the first, less than half a pixel may be left.
    size = tuple(max(1, round(side / scale)) for side in first.shape[-2:])
    return _centre_crop(last, (size[0], size[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class VaceInputs:
    """The control video, mask and reference images of vace, all on the host, fp32 and of one size."""

    video: Tensor | None
    """[3, F, H, W] in [-1, 1]; None: no control, everything is to be made."""
    mask: Tensor | None
    """[1, F, H, W], 1 where the video is to be made; None: everywhere."""
    refs: tuple[Tensor, ...]
    """[3, 1, H, W] each, in [-1, 1]."""
    frame_num: int
    size: Size


def vace_size(video_height: int, video_width: int, max_area: int) -> Size:
    """The (height, width) that a control video is scaled to: its own ratio, and at most `max_area` and its own area.

    Both sides are multiples of 16; the area is counted in tokens of 16 x 16 pixels.
    """
    step = STRIDE * PATCH
    area = min(max_area / step**2, (video_height // step) * (video_width // step))
    height = round(math.sqrt(area * video_height / video_width))
    if height < 1 or area < height:
        raise InputError(
            f"src_video: {video_width}x{video_height} pixels are too few", hint=f"use at least {step}x{step}"
        )
    return height * step, int(area / height) * step


def vace_frame_num(video_frames: int, frame_num: int) -> int:
    """How many frames vace makes of a control video: all that it has, down to 4n+1, and at most `frame_num`."""
    return (min(video_frames, frame_num) - 1) // STRIDE_T * STRIDE_T + 1


def vace_inputs(
    video: Tensor | None, mask: Tensor | None, refs: Sequence[Tensor], *, size: Size, frame_num: int
) -> VaceInputs:
    """Control video, mask and reference images brought to one size and to 4n+1 frames.

    Args:
        video: [3, F, H, W] in [-1, 1] or None. Its own ratio is kept (vace_size with the area of `size`); its length is
            cut to 4n+1 frames and to `frame_num`.
        mask: [1, F, H, W] in [0, 1] or None; one frame holds for all. It is scaled and cropped as the video.
        refs: [3, H, W] each, in [-1, 1], any size: they are letterboxed on white.
        size: height and width; where there is a video, only their area counts.
        frame_num: 4n+1.

    Raises:
        InputError: a mask without a video, or shorter than it.
    """
    if video is None:
        if mask is not None:
            raise InputError(
                "src_mask is given without src_video", hint="give the video that the mask belongs to"
            )
        boxed = tuple(letterbox(ref, size)[:, None] for ref in refs)
        return VaceInputs(video=None, mask=None, refs=boxed, frame_num=frame_num, size=size)
    frame_num = vace_frame_num(video.shape[1], frame_num)
    size = vace_size(video.shape[-2], video.shape[-1], max_area=size[0] * size[1])
    return VaceInputs(
        video=_cover(video[:, :frame_num], size),
        mask=None if mask is None else _fit_mask(mask, frame_num, size),
        refs=tuple(letterbox(ref, size)[:, None] for ref in refs),
        frame_num=frame_num,
        size=size,
    )


def vace_latents(inputs: VaceInputs, encode: Encode) -> Tensor:
    """Latents z [96, r + T', h, w]: 32 channels of what is kept and what is to change, 64 of mask.

    The first r = len(inputs.refs) latent frames are the reference images; they are cut off before decoding.
    """
    latents = _vace_video_latents(inputs, encode)
    mask = _vace_mask_latents(inputs, latents)
    parts = [torch.cat([latents, mask])]
    if inputs.refs:
        # A reference is kept whole: nothing of it is to change, and its mask is 0.
        refs = torch.cat([encode(ref) for ref in inputs.refs], dim=1)
        parts.insert(0, F.pad(refs, (0, 0, 0, 0, 0, 0, 0, 96 - refs.shape[0])))
    return torch.cat(parts, dim=1)


def letterbox(image: Tensor, size: Size) -> Tensor:
    """`image` [3, H, W] in [-1, 1] scaled to fit into `size` and centred on white, [3, *size]."""
    if image.shape[-2:] == size:
        return image
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, int(height * scale)), max(1, int(width * scale)))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = image.new_ones(image.shape[0], *size)
    scaled = F.interpolate(image[None], size=inner, mode="bilinear", align_corners=False)[0]
    canvas[:, top : top + inner[0], left : left + inner[1]] = scaled
    return canvas


def _grey_video_with(images: dict[int, Tensor], frame_num: int, size: Size) -> Tensor:
    """A host video of zeros [3, F, H, W] with images, scaled to fill the frame, at the given frames."""
    video = torch.zeros(3, frame_num, *size)
    for index, image in images.items():
        # Not antialiased: that is how the model's training inputs were scaled.
        video[:, index] = F.interpolate(image[None], size=size, mode="bicubic")[0]
    return video


def _vace_video_latents(inputs: VaceInputs, encode: Encode) -> Tensor:
    """[32, T', h, w]: the part outside the mask, then the part inside, each encoded as a video of its own."""
    if inputs.video is None:
        # Without a video both parts are the same zeros: one encode instead of two.
        kept = encode(torch.zeros(3, inputs.frame_num, *inputs.size))
        return torch.cat([kept, kept])
    if inputs.mask is None:
        kept = encode(torch.zeros_like(inputs.video))
        return torch.cat([kept, encode(inputs.video)])
    inside = inputs.mask > 0.5  # however soft the mask, a pixel belongs to one of the two parts
    kept = encode(inputs.video.masked_fill(inside, 0.0))
    return torch.cat([kept, encode(inputs.video.masked_fill(~inside, 0.0))])


def _vace_mask_latents(inputs: VaceInputs, latents: Tensor) -> Tensor:
    """[64, T', h, w] on the device of `latents` [32, T', h, w]: the 8x8 pixels of a latent as its channels.

    In time the nearest frame is taken, the centre of a latent frame falling on the pixel frame under it
    (nearest-exact): frame (2i + 1) * F / (2 T'), which is never a tie because F is odd.
    """
    num_latents = latents.shape[1]
    if inputs.mask is None:
        return latents.new_ones(STRIDE * STRIDE, *latents.shape[1:])
    frames = [(2 * index + 1) * inputs.frame_num // (2 * num_latents) for index in range(num_latents)]
    mask = torch.stack([inputs.mask[:, frame] for frame in frames]).to(latents)  # [T', 1, H, W]
    return F.pixel_unshuffle(mask, STRIDE).transpose(0, 1)


def _fit_mask(mask: Tensor, frame_num: int, size: Size) -> Tensor:
    if mask.shape[1] == 1:
        return _cover(mask, size).clamp_(0, 1).expand(1, frame_num, *size)
    if mask.shape[1] < frame_num:
        raise InputError(
            f"src_mask has {mask.shape[1]} frames, src_video has {frame_num}",
            hint="make the mask as long as the video, or give one image that holds for every frame",
        )
    return _cover(mask[:, :frame_num], size).clamp(0, 1)  # a new tensor: the mask is the caller's


def _cover(video: Tensor, size: Size) -> Tensor:
    """`video` [C, F, H, W] scaled (bicubic, antialiased) to cover `size`; what goes beyond it is cut off evenly."""
    if video.shape[-2:] == size:
        return video
    height, width = video.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled_size = (round(height * scale), round(width * scale))
    covered = video.new_empty(*video.shape[:2], *size)
    for index in range(video.shape[1]):  # frame by frame: the whole scaled video would be one more copy
        frame = F.interpolate(video[None, :, index], size=scaled_size, mode="bicubic", antialias=True)
        covered[:, index] = _centre_crop(frame[0], size)
    return covered


def _centre_crop(image: Tensor, size: Size) -> Tensor:
    """The middle [C, *size] of `image` [C, H, W], a view."""
    top, left = (image.shape[-2] - size[0]) // 2, (image.shape[-1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]
