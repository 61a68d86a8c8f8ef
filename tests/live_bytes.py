"""Live tensor bytes without a device: every storage made while tracking, until it is freed.

with FakeTensorMode(), LiveBytes() as live:
    model(x)
live.peak
"""

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from ray_memprof.predictor.results import Results
from ray_memprof.recorder.meters.tensors import tensors_of


class LiveBytes(TorchDispatchMode):
    """Counts storages that operations inside the block return; those that existed before are not counted.

    Enter it after FakeTensorMode, so that it sees the fake tensors. Bytes allocated and freed inside one
    operation (workspace) are not seen.

    Args:
        ignored: tensors that are not counted, whatever comes of them.
        remembers: results are remembered by the shapes of the arguments: a tenth of FakeTensorMode's time.
    """

    def __init__(self, *ignored: torch.Tensor, remembers: bool = True) -> None:
        super().__init__()
        self._remembers = remembers
        self._results: Results | None = None
        self.current = 0
        self.peak = 0
        self._seen = weakref.WeakSet[torch.UntypedStorage]()
        for tensor in ignored:
            self._seen.add(tensor.untyped_storage())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nobody compiles here, and torch would guard each operation against it."""
        return False

    def __enter__(self) -> "LiveBytes":
        fake = [one for one in _get_current_dispatch_mode_stack() if isinstance(one, FakeTensorMode)]
        self._results = Results(fake[-1]) if fake and self._remembers else None
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        # What goes in and was not seen yet is older than the block.
        for value in tensors_of((*args, *kwargs.values())):
            self._seen.add(value.untyped_storage())
        result = func(*args, **kwargs) if self._results is None else self._results.of(func, args, kwargs)
        for value in tensors_of((result,)):
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
