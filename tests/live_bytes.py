"""Live tensor bytes without a device: every storage made while tracking, until it is freed.

with FakeTensorMode(), LiveBytes() as live:
    model(x)
live.peak
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts storages that operations inside the block return; those that existed before are not counted.

    Enter it after FakeTensorMode, so that it sees the fake tensors. Bytes allocated and freed inside one
    operation (workspace) are not seen.
    """

    def __init__(self, *ignored: torch.Tensor) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._seen = weakref.WeakSet[torch.UntypedStorage]()
        for tensor in ignored:
            self._seen.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What goes in and was not seen yet is older than the block.
        for value in tree_iter((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._seen.add(value.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.current -= size
