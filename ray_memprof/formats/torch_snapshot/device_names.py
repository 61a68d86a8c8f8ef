"""What kind of device a snapshot is of: cuda, xpu, npu ... as the file itself says.

    numbered_device("xpu:1")                                        # ("xpu", 1)
    kind_of({"PYTORCH_ALLOC_CONF": "", "max_split_size": -1}, [])   # "device": the file does not say

torch numbers devices and names their kind nowhere. What tells it: a segment whose device is a text, as some backends
write it, and the variable of the allocator's settings (PYTORCH_CUDA_ALLOC_CONF; torch.xpu writes PYTORCH_ALLOC_CONF,
which any device may have). Files without settings are of torch before 2.1, which recorded nothing but CUDA.
"""

import re
from collections.abc import Collection
from typing import Any

from ray_memprof.formats.torch_snapshot.snapshot_parts import as_whole, shown

CUDA = "cuda"
NOT_TOLD = "device"
"""In place of the kind, where the file does not say it."""
_NAME = re.compile("([a-z][a-z0-9_]{0,31})(?::([0-9]{1,4}))?")
_VARIABLE = re.compile("PYTORCH_(?:([A-Z][A-Z0-9]{0,31})_)?ALLOC_CONF")
_AS_TORCH_SAYS = {"hip": CUDA}
"""torch calls the devices of ROCm cuda, too."""


def numbered_device(value: object) -> tuple[str | None, int]:
    """The kind and the number of a segment's device; the kind is None for a bare number.

    Raises:
        TypeError: it is neither a number nor a text.
        ValueError: it is a text that names no device.
    """
    if type(value) is not str:
        return None, as_whole(value)
    found = _NAME.fullmatch(value)
    if found is None:
        raise ValueError(f"{shown(value)} names no device")
    return found[1], int(found[2] or 0)


def kind_of(settings: Any, kinds: Collection[str]) -> str:
    """The kind of all devices of a file, or NOT_TOLD.

    Args:
        settings: `allocator_settings` of the file; anything but a dictionary has no settings.
        kinds: that segments name.

    Raises:
        ValueError: they name more than one: events belong to a number alone.
    """
    if len(kinds) > 1:
        listed = " and on ".join(sorted(kinds))
        raise ValueError(f"it has segments on {listed}, and its events do not say on which of them they were")
    if kinds:
        return next(iter(kinds))
    if not isinstance(settings, dict) or not settings:
        return CUDA
    found = [one[1] for key in settings if isinstance(key, str) and (one := _VARIABLE.fullmatch(key))]
    named = sorted({kind.lower() for kind in found if kind})
    if len(named) == 1:
        return _AS_TORCH_SAYS.get(named[0], named[0])
    return NOT_TOLD if found or named else CUDA
