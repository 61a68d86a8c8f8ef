"""What a workload tells the recorder in addition to its spans."""

from typing import Protocol


class StepListener(Protocol):
    """The part of the recorder that a workload calls; the recorder learns everything else from spans."""

    def on_step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done."""

    def problem(self, text: str) -> None:
        """Something is wrong with the recording."""
