"""A whole prediction of a choice, and what a plan needs of it. The only file of this room that calls predict().

    predicted = predict_in_full(asked, choice)
    predicted.device_used_bytes, predicted.stage, predicted.rank

Leaves a run folder like any other below asked.folder.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ray_memprof.errors import EXIT_DEVICE_OOM, EXIT_OK, ConfigError
from ray_memprof.planner.space import Asked, Choice, config_of
from ray_memprof.predictor.processes import Processes
from ray_memprof.predictor.run import predict
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import rows_of
from ray_memprof.store.run_json import run_facts

MOST_STEPS = 3
"""Steps that are predicted. With more, reserved memory has been seen 0.4 % lower, and never higher."""
_AT_A_TIME = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A choice, predicted from the prompt to the last frame on every rank."""

    exit_code: int
    """Of the run: 11 if a rank would run out of memory."""
    device_used_bytes: int
    """The most of any rank; where a rank ran out of memory, until then."""
    error_bytes: int
    """The error that is stated for it: so much more may be measured (query/sql/macros/stated_errors.sql)."""
    rank: int
    """The rank with the most, the first of several."""
    stage: str
    """In which it had it: a stage, or "start" before the first."""
    stage_bytes: dict[str, int]
    """The most of any rank by stage."""
    step_s: float
    run_s: float
    folder: Path

    @property
    def most_bytes(self) -> int:
        """What the device must have for it to fit surely."""
        return self.device_used_bytes + self.error_bytes


def predict_all(
    asked: Asked, chosen: Sequence[Choice], processes: Processes | None = None
) -> list[Predicted]:
    """Whole predictions, two at a time. Raises ConfigError for what cannot be predicted."""
    # A thread for each of two, so that what is written of one does not keep the processes waiting.
    with (
        nullcontext(processes) if processes else Processes() as running,
        ThreadPoolExecutor(_AT_A_TIME) as pool,
    ):
        try:
            return list(pool.map(lambda choice: predict_in_full(asked, choice, running), chosen))
        except BaseException:
            running.stop()  # else the pool waits until the other prediction is done
            raise


def predict_in_full(asked: Asked, choice: Choice, processes: Processes | None = None) -> Predicted:
    """A whole prediction. Raises ConfigError for what cannot be predicted, or fails for more than lack of memory."""
    config = config_of(asked, choice)
    steps = config.generation.sample_steps or 1
    generation = config.generation.model_copy(
        update={"sample_steps": min(steps, MOST_STEPS), "save_file": None}
    )
    logging = config.logging.model_copy(update={"level": "stage", "output_dir": asked.folder})
    shortened = config.model_copy(update={"generation": generation, "logging": logging})
    code, folder = predict(
        shortened,
        gpu=asked.gpu,
        say=lambda line: None,
        processes=processes,
        is_derived=asked.keeps_runs,
    )
    if code not in (EXIT_OK, EXIT_DEVICE_OOM):
        # Of the files that every configuration reads, for example: no other one will do better.
        facts = run_facts(folder) or {}
        raise ConfigError(
            f"no configuration can be predicted: {facts.get('reason', f'exit code {code}')}",
            hint="what is set must be so that a run can do its work: check the files that it names",
        )
    return _answers(folder, code, steps)


def _answers(folder: Path, code: int, steps: int) -> Predicted:
    with open_run(folder) as connection:
        peaks = rows_of(connection, "peak_by_rank")
        stages = rows_of(connection, "peak_by_stage")
        taken = rows_of(connection, "steps")
        ((fraction,),) = connection.execute(
            "SELECT fraction FROM stated_errors() WHERE account = 'device_used' AND NOT is_stage"
        ).fetchall()
    worst = max(peaks, key=lambda row: (row["device_used_peak_bytes"] or 0, -row["rank"]))
    own = [row for row in stages if row["rank"] == worst["rank"]]
    by_stage: dict[str, int] = {}
    for row in stages:
        by_stage[row["stage"]] = max(by_stage.get(row["stage"], 0), row["device_used_peak_bytes"] or 0)
    step_s = _step_seconds(taken)
    left = steps - len({row["step"] for row in taken})
    return Predicted(
        exit_code=code,
        device_used_bytes=worst["device_used_peak_bytes"] or 0,
        error_bytes=ceil(fraction * (worst["device_used_peak_bytes"] or 0)),
        rank=worst["rank"],
        stage=max(own, key=lambda row: row["device_used_peak_bytes"] or 0)["stage"] if own else "start",
        stage_bytes=by_stage,
        step_s=step_s,
        run_s=_run_seconds(stages) + left * step_s,
        folder=folder,
    )


def _step_seconds(taken: Sequence[dict[str, Any]]) -> float:
    """Of the last step of the slowest rank; 0: there was none."""
    last = max((row["step"] for row in taken), default=-1)
    return max((row["duration_ns"] for row in taken if row["step"] == last), default=0) / 1e9


def _run_seconds(stages: Sequence[dict[str, Any]]) -> float:
    """Of all stages of the slowest rank."""
    totals: dict[int, int] = {}
    for row in stages:
        totals[row["rank"]] = totals.get(row["rank"], 0) + row["duration_ns"]
    return max(totals.values(), default=0) / 1e9
