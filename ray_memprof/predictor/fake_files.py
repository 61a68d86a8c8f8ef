"""Files for a rank that has no numbers: of a checkpoint only headers are read, and no video is written.

    with fake_files():
        ...                          # wan reads its weights and saves its video, inside a FakeTensorMode

Files of torch.save need nothing here: torch.load reads them as fake tensors by itself.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from wan.inputs import media
from wan.weights import checkpoint


@contextmanager
def fake_files() -> Iterator[None]:
    """Let wan find tensors without numbers in safetensors files, and write no video."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(checkpoint.SafetensorsFile, "tensor", _unread))
        # There are no frames, and the folder of the video may be on another machine.
        for name in ("save", "_check_place"):
            stack.enter_context(patch.object(media, name, _nothing))
        yield


def _unread(file: checkpoint.SafetensorsFile, key: str) -> Tensor:
    """A tensor of the file in host memory, where the pages are that a copy of it reads."""
    header = file.header(key)
    return torch.empty(header.shape, dtype=getattr(torch, header.dtype))


def _nothing(*_: Any, **__: Any) -> None:
    return None
