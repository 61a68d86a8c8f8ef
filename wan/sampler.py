"""The denoising schedule and solver: Wan's exact sigmas, diffusers' UniPC and DPM++ coefficients.

    sampler = Sampler("unipc", steps=50, shift=5.0, device="cuda")
    for index in range(50):
        velocity = model(latents, sampler.timesteps[index])
        latents = sampler.step(velocity, index, latents)

Both solvers are linear in the latents: with the sigmas known, a step is a few sums of tensors times numbers. So
diffusers is run only once, when the sampler is made, on unit vectors on the CPU. The results are these numbers, and
step() only adds. This avoids what diffusers' own step() does on a device (a copy of a sigma at each use and a linear
solve, both of which wait for the device) and its temporary tensors, and it works with fake tensors. The formulae of the
schedule are those of the public Wan2.1 release; they differ from diffusers' own (see wan_sigmas).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from wan.config import MAX_SHIFT, MAX_STEPS, MIN_SHIFT, Solver
from wan.errors import InputError

NUM_TRAIN_TIMESTEPS = MAX_STEPS
# 1 - 1/1000 as Wan stores it, in float32, before it goes on computing in float64.
UNIPC_SIGMA_MAX = 0.9990000128746033

# What a step reads, in the order of the unit vectors: the sample, the clean video predicted from it
# (x - sigma * v), the corrected sample that the previous step started from, and the two previous predictions.
NUM_INPUTS = 5


def wan_sigmas(solver: Solver, steps: int, shift: float) -> npt.NDArray[np.float64]:
    """The noise levels of a run, [steps + 1] float64, falling to exactly 0; timesteps are int(1000 * sigma).

    UniPC starts at 0.999 and DPM++ at 1.0. Both end one step before 0; then 0 is appended. diffusers' own schedules end
    at 0.001 or start at 0.999 and give other timesteps.
    """
    first = UNIPC_SIGMA_MAX if solver == "unipc" else 1.0
    sigmas = np.linspace(first, 0.0, steps + 1)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return np.append(sigmas, 0.0)


class Sampler:
    """One run's schedule and solver state; index 0 starts a new trajectory, the last index drops the state.

    timesteps: [steps] int64 on `device`. sigmas: [steps + 1] float32 on the CPU.
    Between steps it holds two predictions and a sample (unipc) or one prediction (dpm++), of latent size.
    Raises InputError for an unknown solver, steps out of 1 .. MAX_STEPS, or a shift out of MIN_SHIFT .. MAX_SHIFT.
    """

    def __init__(self, solver: Solver, steps: int, shift: float, device: torch.device | str) -> None:
        check(solver, steps, shift)
        sigmas = wan_sigmas(solver, steps, shift)
        # A fake mode around us would turn the coefficients into tensors without values.
        with unset_fake_temporarily():
            self.sigmas = torch.from_numpy(sigmas.astype(np.float32))
            self._rules = _probe(_SCHEDULERS[solver](), self.sigmas)
            self._levels: list[float] = self.sigmas.tolist()
        timesteps = (sigmas[:-1] * NUM_TRAIN_TIMESTEPS).astype(np.int64)
        # The values are filled in, not copied: a fake mode would really copy known values to the device, which may not
        # exist.
        each = [torch.full((), value, dtype=torch.int64, device=device) for value in timesteps.tolist()]
        self.timesteps = torch.stack(each)
        self._last_sample: Tensor | None = None
        self._history: tuple[Tensor | None, Tensor | None] = (None, None)

    def step(self, velocity: Tensor, t_index: int, sample: Tensor) -> Tensor:
        """The sample one noise level down; any shape, fp32 in and out, no synchronisation.

        Args:
            velocity: the model's (guided) output at `timesteps[t_index]`.
            t_index: 0, 1, .. steps - 1, in this order.
            sample: what the previous step returned, or pure noise.
        """
        if t_index == 0:
            self._forget()
        rule = self._rules[t_index]
        clean = sample.add(velocity, alpha=-self._levels[t_index])
        inputs = (sample, clean, self._last_sample, *self._history)
        result = _weighted_sum(rule.next_sample, inputs)
        if t_index + 1 == len(self._rules):
            self._forget()
        elif rule.corrected_sample is not None:
            self._last_sample = _weighted_sum(rule.corrected_sample, inputs)
            self._history = (clean, self._history[0])
        else:
            self._history = (clean, None)
        return result

    def _forget(self) -> None:
        self._last_sample, self._history = None, (None, None)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One step as numbers: a weight for each of the NUM_INPUTS tensors."""

    next_sample: tuple[float, ...]
    corrected_sample: tuple[float, ...] | None
    """UniPC first corrects the sample it starts from, and keeps it for the next step; DPM++ does not."""


def check(solver: str, steps: int, shift: float) -> None:
    """Refuse with InputError what Sampler could not work with."""
    if solver not in _SCHEDULERS:
        raise InputError(
            f"sample_solver: unknown solver {solver!r}", hint=f"use one of {', '.join(_SCHEDULERS)}"
        )
    if steps < 1:
        raise InputError(f"sample_steps must be at least 1, got {steps}", hint="50 is the usual number")
    if steps > MAX_STEPS:
        raise InputError(
            f"sample_steps must be at most {MAX_STEPS}, the noise levels that the model knows, got {steps}",
            hint="50 is the usual number",
        )
    if not MIN_SHIFT <= shift <= MAX_SHIFT:
        raise InputError(
            f"sample_shift must be from {MIN_SHIFT:g} to {MAX_SHIFT:g}, got {shift}",
            hint="3 to 16 are usual values",
        )


# prediction_type "sample": the schedulers are given the clean prediction itself, which step() makes, so that this
# prediction is an input with a weight of its own.
def _unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(solver_order=2, prediction_type="sample", use_flow_sigmas=True)


def _dpm() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(solver_order=2, prediction_type="sample", use_flow_sigmas=True)


_SCHEDULERS: dict[str, Callable[[], Any]] = {"unipc": _unipc, "dpm++": _dpm}


def _probe(scheduler: Any, sigmas: Tensor) -> list[_Rule]:
    """Runs `scheduler` over `sigmas` on unit vectors and reads off the weights of every step."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas
    # With a begin index diffusers counts steps instead of searching the timestep, which would skip one where
    # two integer timesteps are equal (shift 16 from 68 steps on).
    scheduler.set_begin_index(0)
    has_corrector = hasattr(scheduler, "last_sample")
    # [1, 5] float64 each: a batch of one with the five weights as its content.
    sample, clean, last, before, before_that = torch.eye(NUM_INPUTS, dtype=torch.float64).unsqueeze(1)
    rules = []
    for index in range(steps):
        scheduler.model_outputs = [before_that if index > 1 else None, before if index > 0 else None]
        if has_corrector:
            scheduler.last_sample = last if index > 0 else None
        result = scheduler.step(clean, scheduler.timesteps[index], sample, return_dict=False)[0]
        corrected = _weights(scheduler.last_sample) if has_corrector else None
        rules.append(_Rule(_weights(result), corrected))
    return rules


def _weights(result: Tensor) -> tuple[float, ...]:
    return tuple(result.flatten().tolist())


def _weighted_sum(weights: tuple[float, ...], inputs: tuple[Tensor | None, ...]) -> Tensor:
    """sum(weight * tensor), the tensors of weight 0 left out (before the first steps they do not exist)."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, inputs, strict=True) if weight != 0.0]
    (weight, tensor), *rest = terms
    assert tensor is not None
    total = tensor * weight
    for weight, tensor in rest:
        assert tensor is not None
        total.add_(tensor, alpha=weight)
    return total
