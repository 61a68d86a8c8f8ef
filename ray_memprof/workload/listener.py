"""What a workload tells the recorder in addition to its spans."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ray_memprof.recorder.rows import Owner


class StepListener(Protocol):
    """The part of the recorder that a workload calls; the recorder learns everything else from spans."""

    @property
    def hears_claims(self) -> bool:
        """Whether owners of tensors are of use."""

    def on_step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done."""

    def claim(self, tensor: "Tensor", owner: "Owner") -> None:
        """Name the owner of a tensor's storage."""

    def problem(self, text: str) -> None:
        """Something is wrong with the recording."""
