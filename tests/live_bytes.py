"""Bytes of live tensor storages while a block runs, real or fake: how tests see what a lever saves."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation inside the block makes, until the storage dies.

    What existed before (weights, inputs) is not counted, even where operations inside return views of it:
    hand it over as `known`, or let it be first seen as an argument.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; storages among its arguments are old, others among its results are new."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf, count=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf, count=True)
        self.peak = max(self.peak, self.current)
        return result

    def _watch(self, tensor: torch.Tensor, *, count: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes() if count and tensor.device.type != "meta" else 0
        self.current += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.current -= size
