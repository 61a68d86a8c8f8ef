"""A plan to try things on: choices with made-up numbers, so that a search takes no time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray_memprof.planner.full import Predicted
from ray_memprof.planner.probe import Measured, Stage
from ray_memprof.planner.space import Asked, Choice
from ray_memprof.planner.stages import Key

GIB = 2**30


def asked(**changed: object) -> Asked:
    given: dict[str, object] = {"task": "t2v-tiny", "gpu": "RTX 4090", "limit_bytes": 10 * GIB}
    return Asked(**(given | changed))  # type: ignore[arg-type]


def measured(floor: float, *, used: float = 0.0, seconds: float = 1.0, **changed: object) -> Measured:
    given: dict[str, object] = {
        "floor_bytes": int(floor * GIB), "weights_bytes": GIB, "used_bytes": int((used or floor) * GIB),
        "resident_bytes": 0, "host_bytes": 0, "kept_host_bytes": 0, "seconds": seconds,
    }  # fmt: skip
    return Measured(**(given | changed))  # type: ignore[arg-type]


def predicted(
    used: float, *, run_s: float = 1.0, stage: str = "denoise", exit_code: int = 0, error: float = 0.0
) -> Predicted:
    size = int(used * GIB)
    return Predicted(
        exit_code=exit_code, device_used_bytes=size, error_bytes=int(error * GIB), rank=0, stage=stage,
        stage_bytes={stage: size}, step_s=run_s, run_s=run_s, folder=Path("run"),
    )  # fmt: skip


class Told:
    """Numbers from functions; it notes what was predicted."""

    def __init__(
        self,
        of_probe: Callable[[Choice, Stage], Measured],
        of_prediction: Callable[[Choice], Predicted],
    ) -> None:
        self._of_probe, self._of_prediction = of_probe, of_prediction
        self.predicted: list[Choice] = []
        self.probed: list[Key] = []

    def probes(
        self, plans: Mapping[Key, tuple[Choice, Stage]], say: Callable[[str], None]
    ) -> dict[Key, Measured]:
        self.probed += plans
        return {key: self._of_probe(*plan) for key, plan in plans.items()}

    def predictions(self, chosen: Sequence[Choice]) -> list[Predicted]:
        self.predicted += chosen
        return [self._of_prediction(choice) for choice in chosen]
