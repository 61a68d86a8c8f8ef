"""Warns of values that are not finite, and names the first stage that made them.

    check = FirstNotFinite()
    check("denoise", latents)         # warning: denoise made values that are not finite ...
    check("decode", video)            # says nothing more

A network in fp16 that overflows, or damaged weights, make NaN, and NaN spreads to every frame. The video is still
written (such values are black or white in it), because what was measured on the way is true, but there is a warning.
Each check is one pass over a tensor and waits for its device once, so checks are made only at the end of a stage.
"""

import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class FirstNotFinite:
    """Warns on stderr of the first stage whose values are not finite; later stages only pass them on."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._is_done = quiet

    def __call__(self, stage: str, *made: Tensor | None) -> None:
        """Check what `stage` made."""
        if self._is_done or all(is_finite(tensor) for tensor in made if tensor is not None):
            return
        self._is_done = True
        sys.stderr.write(
            f"warning: {stage} made values that are not finite (NaN or infinite): the video will be black or white "
            "there. Use --precision bf16 or fp32, which overflow last, or compare the checkpoint with the "
            "published one\n"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; True for a tensor that has no values (fake, meta, empty)."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta or not tensor.numel():
        return True
    # Not isfinite(tensor): that would hold a second and a third tensor of its size.
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all().item())


def num_not_finite_frames(video: Tensor) -> int:
    """Frames of `video` [C, F, H, W] with a value that is not finite."""
    if is_finite(video):
        return 0
    return sum(not is_finite(frame) for frame in video.unbind(1))
