"""Values that are not finite, told with the stage that made them first.

    check = FirstNotFinite()
    check("denoise", latents)         # warning: denoise made values that are not finite ...
    check("decode", video)            # says nothing more

A network in fp16 that overflows, or damaged weights, make NaN, and NaN spreads to every frame. The video is written
all the same (such values are black in it), for what was measured on the way is true; but not without a word.
Each look is one pass over a tensor and waits for its device once, so it is made at the end of a stage only.
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
        """Look at what `stage` made."""
        if self._is_done or all(is_finite(tensor) for tensor in made if tensor is not None):
            return
        self._is_done = True
        sys.stderr.write(
            f"warning: {stage} made values that are not finite (NaN or infinite): the video will be black there. "
            "Of --precision, bf16 and fp32 overflow last; else compare the checkpoint with the published one\n"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; True of a tensor that has no values to look at (fake, meta, empty)."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta or not tensor.numel():
        return True
    # Not isfinite(tensor): that would hold a second and a third tensor of its size.
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all().item())


def num_not_finite_frames(video: Tensor) -> int:
    """Frames of `video` [C, F, H, W] with a value that is not finite."""
    if is_finite(video):
        return 0
    return sum(not is_finite(frame) for frame in video.unbind(1))
