"""A run that is predicted: its folder, a process for each kind of rank, the tables, the report.

    code, folder = predict(config, gpu="H200", say=print)
    with Processes() as processes:                       # for many runs
        for config in configs:
            predict(config, gpu="H200", say=print, processes=processes)

Leaves a run folder as a launch does, with runs.source = predicted.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray_memprof.config.load import effective_yaml
from ray_memprof.config.rules import warnings
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    ConfigError,
    StartFailed,
    Terminated,
)
from ray_memprof.installed import need
from ray_memprof.predictor.alike import alike
from ray_memprof.predictor.fake_rank import (
    FakeRank,
    PredictedRank,
    environment_of,
    rules_of,
)
from ray_memprof.predictor.gpu_profile import GpuProfile, gpu_profile
from ray_memprof.predictor.processes import NUM_PROCESSES, Processes
from ray_memprof.rank.layout_columns import layout_columns
from ray_memprof.rank.messages import Outcome, RankFacts
from ray_memprof.rank.rank_rows import rank_columns
from ray_memprof.report.derive import derive
from ray_memprof.report.last_lines import ended_lines, first_line
from ray_memprof.store.copied_rank import copy_rank
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import LOGS_DIR
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import run_columns, write_driver_tables
from wan.options_here import PACKAGES, packages_of

Say = Callable[[str], None]


def predict(
    config: RunConfig,
    *,
    gpu: str,
    say: Say,
    packages: Sequence[str] = (),
    processes: Processes | None = None,
    is_derived: bool = True,
) -> tuple[int, Path]:
    """Predict one run; returns the exit code of the run that is predicted, and the folder.

    Args:
        config: of the run.
        gpu: a GPU model that has a profile.
        say: is told how far it is, a line each.
        packages: of attention kernels that are installed there: `attention_kernel: auto` takes the fastest that fits.
        processes: that predict the ranks; None: new ones. Who predicts several runs keeps them warm.
        is_derived: whether run.duckdb and the report are made, too, for people who look at the run.

    Raises:
        ConfigError: what the configuration runs cannot be predicted, or there is no such profile.
    """
    profile = gpu_profile(gpu)
    check(config)
    environment = environment_of(config, config.num_ranks)
    rules_of(environment)
    folder = RunFolder.create(
        config.logging.output_dir,
        config.name,
        config_text=effective_yaml(config),
        num_ranks=config.num_ranks,
    )
    say(f"{config.name}: {config.num_ranks} x {profile.name} ({profile.source})")
    say(f"  into {folder.path}")
    for line in (*warnings(config), *_unused(config)):
        say(f"warning: {line}")
    with _noted_if_cut_off(folder, processes):
        ended = predict_tables(config, folder, gpu, environment, packages, say, processes)
    if not is_derived:
        return ended.exit_code, folder.path
    measured = derive(folder.path, ended.problems)
    if ended.failed is not None:
        say(f"error: {ended.reason}")
        if ended.failed.hint:
            say(f"hint: {ended.failed.hint}")
    for line in ended_lines(folder.path, first_line(folder.facts), ended.problems, measured):
        say(line)
    return ended.exit_code, folder.path


@contextmanager
def _noted_if_cut_off(folder: RunFolder, processes: Processes | None) -> Iterator[None]:
    """Write down in the folder of a run why it will never be whole."""

    def note(status: str, exit_code: int, reason: str) -> None:
        folder.note(status=status, exit_code=exit_code, reason=reason, end_ns=time.time_ns())

    try:
        yield
    except KeyboardInterrupt as error:
        code, name = (
            (EXIT_TERMINATED, "SIGTERM") if isinstance(error, Terminated) else (EXIT_INTERRUPTED, "SIGINT")
        )
        note("interrupted", code, f"interrupted by {name}")
        raise
    except (BrokenProcessPool, CancelledError) as error:
        if processes is not None and processes.is_stopped:
            note("interrupted", EXIT_INTERRUPTED, "interrupted")
            raise
        killed = StartFailed(
            f"a process that predicts a rank was killed: see {folder.path / LOGS_DIR}",
            hint="is host memory short? Predicting a rank takes 1 to 2 GiB",
        )
        note("failed", killed.exit_code, str(killed))
        raise killed from error


def predict_tables(
    config: RunConfig,
    folder: RunFolder,
    gpu: str,
    environment: Mapping[str, str],
    packages: Sequence[str],
    say: Say,
    processes: Processes | None = None,
) -> "Ended":
    """Only the tables of a predicted run, in a folder that is there; nothing is derived from them.

    Args:
        config: of the run; see check().
        folder: of the prediction.
        gpu: a GPU model that has a profile, or the path of one.
        environment: the variables of the ranks that their memory depends on.
        packages: see predict().
        say: is told how far it is, a line each.
        processes: see predict().
    """
    with nullcontext(processes) if processes else Processes(_num_processes(config)) as running:
        ranks = _predict_ranks(_first(config, folder, gpu, environment, packages), say, running)
    return _write_tables(config, folder, gpu_profile(gpu), environment, ranks)


def check(config: RunConfig) -> None:
    """Refuse what cannot be predicted. Raises ConfigError."""
    is_wan = config.workload == "wan"
    need(packages_of(config.generation, None) if is_wan else PACKAGES, "a prediction")
    if not is_wan:
        raise ConfigError(
            f"workload is {config.workload}: only runs of wan are predicted",
            hint="workload: wan; a program of your own must run to be measured",
        )
    if config.model.device == "cpu":
        raise ConfigError(
            "model_config.device is cpu: a prediction is of GPUs", hint="model_config.device: cuda"
        )
    if not config.logging.profile_memory:
        raise ConfigError(
            "logging.profile_memory is false: a prediction without it has no figures",
            hint="--set logging.profile_memory=true",
        )
    if config.generation.use_prompt_extend:
        raise ConfigError(
            "generation.use_prompt_extend is true: what extends the prompt is not predicted",
            hint="--set generation.use_prompt_extend=false predicts all the rest",
        )
    if config.parallel.backend == "xfuser" and config.num_ranks > 1:
        raise ConfigError(
            "parallel.backend is xfuser, which cannot be imported without a GPU",
            hint="parallel.backend: native",
        )


def _unused(config: RunConfig) -> Iterator[str]:
    """A line for what is set and changes a launch, and not its prediction."""
    missing = {"stack": "no Python stacks", "torch_profiler": "no traces of torch.profiler"}
    if (level := config.logging.level) in missing:
        yield f"logging.level {level}: a prediction has {missing[level]}, its rows are those of level event"
    keys = [f"ray.{key}" for key in config.ray.model_dump(exclude_defaults=True, exclude={"timeouts"})]
    keys += ["logging.ray_metrics"] if config.logging.ray_metrics else []
    if keys:
        yield f"{', '.join(keys)}: no effect on a prediction, which needs no Ray"


def _first(
    config: RunConfig, folder: RunFolder, gpu: str, environment: Mapping[str, str], packages: Sequence[str]
) -> FakeRank:
    return FakeRank(
        config=config,
        num_ranks=config.num_ranks,
        run_dir=folder.path,
        gpu=gpu,
        begun_ns=folder.facts["start_ns"],
        environment=environment,
        packages=tuple(packages),
    )


def _predict_ranks(first: FakeRank, say: Say, processes: Processes) -> list[PredictedRank]:
    """Every rank, in order; the first one begins first, for the others need the shapes of what it sends."""
    groups = alike(first.config)
    found: dict[int, PredictedRank] = {}
    began = time.monotonic()
    with TemporaryDirectory() as shared:
        plan = replace(first, shapes=Path(shared) / "shapes")
        waiting = {processes.submit(replace(plan, rank=ranks[0])): ranks for ranks in groups}
        for done in as_completed(waiting):
            ranks, one = waiting[done], done.result()
            found[ranks[0]] = one
            say(f"{_ranks_text(ranks)}: {one.outcome.status}, {time.monotonic() - began:.0f} s")
    for ranks in groups:
        for rank in ranks[1:]:
            copy_rank(first.run_dir, ranks[0], rank)
            one = found[ranks[0]]
            found[rank] = replace(one, outcome=replace(one.outcome, rank=rank))
    return [found[rank] for rank in sorted(found)]


def _num_processes(config: RunConfig) -> int:
    # One more than cores: of three kinds of ranks, as most layouts have, the third does not begin after the others.
    return min(NUM_PROCESSES + 1, len(alike(config)))


def _ranks_text(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} alike"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a predicted run ended."""

    failed: Outcome | None
    """The first rank that did not end well."""
    exit_code: int
    reason: str
    problems: list[str]


def _write_tables(
    config: RunConfig,
    folder: RunFolder,
    profile: GpuProfile,
    environment: Mapping[str, str],
    ranks: list[PredictedRank],
) -> Ended:
    """Write the tables of the driver, beside those of the ranks."""
    failed = next((one.outcome for one in ranks if one.outcome.status != "ok"), None)
    status, code = ("ok", EXIT_OK) if failed is None else (failed.status, failed.exit_code)
    reason = "" if failed is None else f"rank {failed.rank}: {failed.reason}"
    problems = list(dict.fromkeys(line for one in ranks for line in one.outcome.problems))
    problems += gather(folder.path, config.recorded_ranks).problems
    folder.note(
        status=status,
        exit_code=code,
        reason=reason,
        source="predicted",
        end_ns=max(one.end_ns for one in ranks),
        versions=_versions(profile),
        environment=dict(environment),
        problems=problems,
    )
    row = run_columns(folder.facts, config.model_dump(mode="json", by_alias=True))
    write_driver_tables(folder.path, row, [_rank_row(config, profile, one.outcome) for one in ranks])
    return Ended(failed=failed, exit_code=code, reason=reason, problems=problems)


def _versions(profile: GpuProfile) -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "device": profile.name,
        "profile": profile.source,
    }


def _rank_row(config: RunConfig, profile: GpuProfile, outcome: Outcome) -> dict[str, Any]:
    facts = RankFacts(
        node_id="",
        host="",
        node_ip="",
        pid=os.getpid(),
        gpu_index=outcome.rank,
        gpu_name=profile.name,
        device_total_bytes=profile.total_bytes,
    )
    return {
        **rank_columns(facts, outcome),
        "node": 0,
        "local_rank": outcome.rank,
        "clock_offset_ns": 0,
        **layout_columns(config, outcome.rank),
    }
