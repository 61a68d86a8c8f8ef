"""Weights from anywhere, one tensor at a time: the Source contract, random weights, filling a meta module.

    source = RandomSource()                       # or checkpoint.open_dit(task, ckpt_dir)
    dit = on_meta(lambda: WanDit(task.dit), torch.bfloat16)
    load(dit, source, device)                     # or piece by piece: materialize(..., prefix="blocks.3.")

Nothing here holds a second copy of a model.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wan.weights.keymap import (
    KeyMap,
    clip_origin,
    dit_origin,
    text_origin,
    vae_origin,
)

Module = TypeVar("Module", bound=nn.Module)

# A prime, which never divides the length of a row: so the rows of a matrix never repeat one another.
POOL_SIZE = 2**24 + 43


class Source(Protocol):
    """Where the parameters of one module come from, asked for by our names."""

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Refuse with WeightsError what is not exactly `expected` (our names and shapes); loads nothing."""

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Fill `target` with parameter `name`, cast to its dtype, on its device."""

    def read_rows(self, name: str, target: torch.Tensor, *, start: int, shape: torch.Size) -> None:
        """Fill `target` with rows from `start` on of parameter `name`, of `shape`; the others are not read."""

    def release(self) -> None:
        """Give back the memory that makes the next read faster; reading still works afterwards."""


class RandomSource:
    """Random weights that depend on official name, shape and seed, and on nothing else.

    A tensor is a stretch of one pool of normal numbers. It starts where a hash of its name says, and is scaled so that
    the values of a deep network neither vanish nor overflow. Values pass through the dtype of the official file, so
    that a folder written from this source and the source itself give the same model. `origin` says which official
    tensor a name stands for; without it names are official ones.
    """

    def __init__(self, seed: int = 0, *, origin: KeyMap = vae_origin) -> None:
        self._seed = seed
        self._origin = origin
        self._pools: dict[torch.device, torch.Tensor] = {}

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Accept every name and shape."""

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Fill the contiguous `target` (any float dtype, any device)."""
        self.read_rows(name, target, start=0, shape=target.shape)

    def read_rows(self, name: str, target: torch.Tensor, *, start: int, shape: torch.Size) -> None:
        """Fill the contiguous `target` with rows from `start` on of a parameter of `shape`."""
        origin = self._origin(name)
        mean, std = _spread(origin.key, origin.official_shape(shape))
        pool = self._pool(target.device)
        flat = target.view(-1)
        before = origin.part * shape.numel() + start * shape[1:].numel()
        where = (zlib.crc32(origin.key.encode()) + before) % POOL_SIZE
        done = 0
        while done < flat.numel():
            num = min(POOL_SIZE - where, flat.numel() - done)
            # Multiply and add separately, each with a rounding in fp32: a fused operation would differ between devices.
            chunk = pool[where : where + num] * std
            if mean:
                chunk += mean
            flat[done : done + num].copy_(chunk.to(origin.dtype))
            done, where = done + num, 0

    def release(self) -> None:
        """Drop the copies of the pool on devices, 64 MiB each."""
        self._pools.clear()

    def _pool(self, device: torch.device) -> torch.Tensor:
        if device not in self._pools:
            self._pools[device] = torch.from_numpy(_normal_numbers(self._seed)).to(device)
        return self._pools[device]


# An array, not a tensor: made under FakeTensorMode, a cached tensor would be fake for ever. And numpy draws
# by table look-up, where torch takes logarithms whose last bit depends on the CPU.
@lru_cache(maxsize=1)
def _normal_numbers(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(POOL_SIZE, dtype=np.float32)


def _spread(key: str, shape: torch.Size) -> tuple[float, float]:
    """Mean and standard deviation of the official tensor `key`."""
    if key.endswith(".gamma") or (key.endswith(".weight") and len(shape) == 1):
        return 1.0, 0.02
    if key.endswith(".bias"):
        return 0.0, 0.02
    if key.endswith(".weight"):
        return 0.0, float(shape[1:].numel() ** -0.5)
    return 0.0, float(shape[-1] ** -0.5) if shape else 1.0


def random_dit(seed: int = 0) -> RandomSource:
    """Random weights for a WanDit."""
    return RandomSource(seed, origin=dit_origin)


def random_vae(seed: int = 0) -> RandomSource:
    """Random weights for a WanVae."""
    return RandomSource(seed, origin=vae_origin)


def random_text(seed: int = 0) -> RandomSource:
    """Random weights for a TextEncoder."""
    return RandomSource(seed, origin=text_origin)


def random_clip(seed: int = 0) -> RandomSource:
    """Random weights for an ImageEncoder."""
    return RandomSource(seed, origin=clip_origin)


def on_meta(build: Callable[[], Module], dtype: torch.dtype) -> Module:
    """What `build` makes, on the meta device with parameters of `dtype`, for inference only."""
    before = torch.get_default_dtype()
    # Not module.to(dtype) afterwards: under FakeTensorMode it cannot replace the parameters.
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            module = build()
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def expected_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Name and shape of every parameter of `module`, which may be on the meta device."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def put(module: nn.Module, name: str, tensor: torch.Tensor) -> nn.Parameter:
    """Make `tensor` the parameter `name` (dotted) of `module`, without gradients; returns the parameter."""
    owner, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(module.get_submodule(owner), leaf, parameter)
    return parameter


def materialize(
    module: nn.Module,
    source: Source,
    device: torch.device | str,
    *,
    dtype: torch.dtype | None = None,
    prefix: str = "",
) -> None:
    """Give every parameter of `module` memory on `device` and its values, one parameter at a time.

    `dtype` None keeps the dtypes the module was built with. `prefix` is the place of `module` in the model
    that `source` belongs to, such as "blocks.3.". The parameters take no gradients.
    """
    for name, placeholder in list(module.named_parameters()):
        target = torch.empty(placeholder.shape, dtype=dtype or placeholder.dtype, device=device)
        source.read_into(prefix + name, target)
        put(module, name, target)
    source.release()


def load(
    module: nn.Module, source: Source, device: torch.device | str, *, dtype: torch.dtype | None = None
) -> None:
    """Fill the whole `module`, once everything is known to fit.

    Raises:
        WeightsError: a key is missing, unknown, or of another shape or dtype; nothing has been loaded then.
    """
    source.check(expected_shapes(module))
    materialize(module, source, device, dtype=dtype)
