"""One rank of a run that is predicted: wan's own code on fake tensors, recorded like any other.

    predicted = predict_rank(FakeRank(config=config, rank=0, num_ranks=4, run_dir=folder, gpu="H200", begun_ns=now))

Runs in a process of its own, for it changes torch. Leaves the tables of the rank and its log.
"""

import os
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.settings import given, settings_of
from ray_memprof.config.run_config import RunConfig
from ray_memprof.predictor.gpu_profile import gpu_profile
from ray_memprof.rank.log import open_log
from ray_memprof.rank.messages import Outcome
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.workload.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray_memprof.predictor.fake_device import FakeDevice
    from ray_memprof.predictor.repeats import Repeats
    from ray_memprof.recorder.recorder import Recorder

DEVICE = "cuda:0"
"""Each rank has a process of its own, and one device in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeRank:
    """What is predicted: plain data, so that it can be sent to a process."""

    config: RunConfig
    rank: int = 0
    num_ranks: int = 1
    run_dir: Path
    gpu: str
    begun_ns: int
    """When the run begins, in ns since 1970."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the rank would have: of the allocator and of NCCL."""
    packages: tuple[str, ...] = ()
    """Of attention kernels, as far as they are installed where the rank would run."""
    shapes: Path | None = None
    """The file through which the first rank tells the shapes of what it sends; None: there are no others."""
    replays: bool = True
    """Whether modules that run again are played back; the rows are the same without it, and come later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedRank:
    """How a predicted rank ended."""

    outcome: Outcome
    end_ns: int
    num_played: int
    """Calls of modules that were played back instead of computed."""


def predict_rank(plan: FakeRank) -> PredictedRank:
    """Run `plan` in this process, and record it."""
    try:
        return _predicted(plan)
    finally:
        if plan.rank == 0 and plan.shapes is not None:
            from ray_memprof.predictor.shapes import Shapes

            Shapes(plan.shapes).end()


def _predicted(plan: FakeRank) -> PredictedRank:
    from ray_memprof.predictor.fake_device import FakeDevice
    from ray_memprof.predictor.fake_meter import FakeMeter
    from ray_memprof.predictor.repeats import Repeats
    from ray_memprof.recorder.recording import recording

    open_log(plan.run_dir, plan.rank)
    logging, profile = plan.config.logging, gpu_profile(plan.gpu)
    options = RecordingOptions(
        run_dir=plan.run_dir,
        rank=plan.rank,
        device=DEVICE,
        level=logging.level,
        keeps_rows=logging.profile_memory,
        device_total_bytes=profile.total_bytes,
    )
    device = FakeDevice(profile, rules_of(plan.environment), keeps_events=options.has_events)
    meter = FakeMeter(device, events=options.has_events, begun_ns=plan.begun_ns)
    with faked(device, plan), recording(options, predicted=meter) as recorder:
        # Nothing is between two samples: one is taken whenever more of the device is in use.
        device.on_growth = lambda: recorder.tick(meter.sample())
        repeats = Repeats(device, recorder)
        outcome = _run(plan, recorder, device, repeats)
    outcome = replace(outcome, check=recorder.check(), problems=recorder.problems)
    return PredictedRank(outcome=outcome, end_ns=plan.begun_ns + device.now_ns, num_played=repeats.num_played)


def _run(plan: FakeRank, recorder: "Recorder", device: "FakeDevice", repeats: "Repeats") -> Outcome:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ray_memprof.predictor.operations import Operations
    from ray_memprof.predictor.shapes import FirstRankEnded
    from ray_memprof.rank.outcome import free_at_failure, outcome_of
    from ray_memprof.workload import wan_rank

    place = Place(rank=plan.rank, local_rank=0, num_ranks=plan.num_ranks)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, Operations(device, mode):
            with repeats.replaying(mode) if plan.replays else nullcontext():
                wan_rank.run(plan.config, place, recorder, device=DEVICE, run_dir=plan.run_dir)
    except FirstRankEnded:
        path, step, *_ = recorder.failure() or ("", -1)
        reason = "ended with the run: rank 0 has ended before"
        return Outcome(rank=plan.rank, status="interrupted", reason=reason, path=path, step=step)
    except Exception as error:
        traceback.print_exc()
        free_bytes = free_at_failure(recorder, device.profile.total_bytes)
        return outcome_of(error, plan.rank, recorder.failure(), free_bytes=free_bytes)
    return Outcome(rank=plan.rank, status="ok")


@contextmanager
def faked(device: "FakeDevice", plan: FakeRank) -> "Iterator[None]":
    """Let torch be about a device and ranks that are not there.

    Args:
        device: of this rank.
        plan: of this rank.
    """
    # Before torch is changed: it looks through itself when it is imported.
    import torch._dynamo
    from torch.autograd.profiler import record_function

    from ray_memprof.predictor.fake_cuda import fake_cuda
    from ray_memprof.predictor.fake_files import fake_files
    from ray_memprof.predictor.fake_group import fake_group
    from ray_memprof.predictor.fake_kernels import fake_kernels
    from ray_memprof.predictor.shapes import Shapes

    del torch
    with ExitStack() as stack:
        stack.enter_context(fake_cuda(device))
        for name in ("__enter__", "__exit__"):
            # torch marks its own work for its profiler, which nobody runs here.
            stack.enter_context(patch.object(record_function, name, _nothing))
        stack.enter_context(fake_kernels(device, plan.packages))
        stack.enter_context(fake_files())
        if plan.num_ranks > 1:
            assert plan.shapes is not None, "several ranks need a file for shapes"
            stack.enter_context(fake_group(device, Shapes(plan.shapes), plan.environment))
        yield


def _nothing(*_: object) -> None:
    return None


def rules_of(environment: Mapping[str, str]) -> Rules:
    """The allocator's rules under these variables. Raises ConfigError where torch would refuse them."""
    variable, text = given(environment)
    return Rules().under(settings_of(text, variable))


def environment_of(
    config: RunConfig, num_ranks: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables of a rank that its memory depends on, as a launch would set them."""
    from wan.levers import ALLOCATOR_SETTINGS
    from wan.parallel.environment import growing_segments, set_defaults

    names = (*ALLOCATOR_SETTINGS, "NCCL_BUFFSIZE")
    wanted = {name: environ[name] for name in names if name in environ}
    if num_ranks > 1:
        set_defaults(wanted)
    if config.optimization.expandable_segments:
        wanted |= growing_segments(wanted)
    return wanted
