"""How much is recorded of a run; docs/profiling.md says what each level keeps and costs."""

from typing import Literal

Level = Literal["stage", "event", "stack", "torch_profiler"]
