"""Copies to host memory that let the device go on working.

    with HostWriter() as writer:
        writer.put(video[:, 0:4], frames)

The copy is complete when the block ends.
"""

from types import TracebackType

import torch
from torch import Tensor


class HostWriter:
    """Writes device tensors into host tensors, one copy behind: put() waits for the copy before its own.

    A plain copy into a part of a tensor in pageable memory would make the device wait each time.
    """

    def __init__(self) -> None:
        self._under_way: tuple[Tensor, Tensor, torch.cuda.Event] | None = None

    def __enter__(self) -> "HostWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def put(self, target: Tensor, source: Tensor) -> None:
        """Let `target`, any part of a tensor, hold `source` (same shape) by the end of the next call."""
        if not (source.is_cuda and torch.cuda.is_available()) or target.is_cuda:
            target.copy_(source)
            return
        staged = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        staged.copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(source.device))
        self._finish()
        self._under_way = (target, staged, event)

    def _finish(self) -> None:
        if self._under_way is not None:
            target, staged, event = self._under_way
            event.synchronize()
            target.copy_(staged)
            self._under_way = None
