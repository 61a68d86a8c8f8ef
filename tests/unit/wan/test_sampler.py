"""wan.sampler against formulae written again here and against diffusers' own step()."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wan.config import Solver
from wan.errors import InputError
from wan.sampler import Sampler, wan_sigmas

SHIFTS = (1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 12.0, 16.0)
SOLVERS: tuple[Solver, ...] = ("unipc", "dpm++")


def velocity_field(sample: Tensor) -> Tensor:
    """Something smooth and non-linear that stands for a model."""
    return torch.sin(3 * sample) + sample - 0.3


def expected_schedule(solver: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    start = float(np.float32(0.999)) if solver == "unipc" else 1.0
    grid = np.linspace(start, 0, steps + 1)[:steps]
    shifted = (shift * grid) / (1.0 + (shift - 1.0) * grid)
    return np.concatenate([shifted, [0.0]]).astype(np.float32), (1000 * shifted).astype(np.int64)


def diffusers_scheduler(sampler: Sampler, solver: str, steps: int, shift: float):
    """The scheduler as the release is reproduced with it, independent of the sampler's probing."""
    import diffusers

    name = {"unipc": "UniPCMultistepScheduler", "dpm++": "DPMSolverMultistepScheduler"}[solver]
    scheduler = getattr(diffusers, name)(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    if solver == "unipc":
        scheduler.set_timesteps(sigmas=np.linspace(0.9990000128746033, 0.0, steps + 1)[:-1])
        assert torch.equal(scheduler.sigmas, sampler.sigmas)
        assert torch.equal(scheduler.timesteps, sampler.timesteps)
    else:
        scheduler.set_timesteps(steps)
        scheduler.sigmas, scheduler.timesteps = sampler.sigmas.clone(), sampler.timesteps.clone()
    scheduler.set_begin_index(0)
    return scheduler


def run(sampler: Sampler, sample: Tensor) -> Tensor:
    for index in range(len(sampler.timesteps)):
        sample = sampler.step(velocity_field(sample), index, sample)
    return sample


@pytest.mark.parametrize("solver", SOLVERS)
def test_schedule_is_the_formula_to_the_bit(solver: Solver) -> None:
    for steps in range(1, 101):
        for shift in SHIFTS:
            sigmas, timesteps = expected_schedule(solver, steps, shift)
            ours = wan_sigmas(solver, steps, shift)
            assert ours.dtype == np.float64
            assert np.array_equal(ours.astype(np.float32), sigmas), (steps, shift)
            assert np.array_equal((ours[:-1] * 1000).astype(np.int64), timesteps), (steps, shift)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("steps", "shift"), [(1, 5.0), (2, 3.0), (3, 1.0), (14, 8.0), (50, 5.0), (100, 16.0)]
)
def test_sampler_holds_the_schedule(solver: Solver, steps: int, shift: float) -> None:
    sampler = Sampler(solver, steps, shift, "cpu")
    sigmas, timesteps = expected_schedule(solver, steps, shift)
    assert torch.equal(sampler.sigmas, torch.from_numpy(sigmas))
    assert torch.equal(sampler.timesteps, torch.from_numpy(timesteps))
    assert sampler.timesteps.dtype == torch.int64


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("steps", "shift"), [(1, 5.0), (2, 3.0), (3, 5.0), (14, 8.0), (15, 5.0), (50, 5.0), (50, 16.0)]
)
def test_trajectory_is_that_of_diffusers(solver: Solver, steps: int, shift: float) -> None:
    # GIVEN the same noise and the same velocity field
    sampler = Sampler(solver, steps, shift, "cpu")
    scheduler = diffusers_scheduler(sampler, solver, steps, shift)
    noise = torch.randn(16, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    # WHEN both run to the end
    theirs = noise[None]
    for timestep in sampler.timesteps:
        theirs = scheduler.step(velocity_field(theirs), timestep, theirs, return_dict=False)[0]
    ours = run(sampler, noise)
    # THEN they end at the same place, up to the rounding of a different order of sums
    torch.testing.assert_close(ours, theirs[0], rtol=0, atol=2e-5)
    assert ours.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [0.01, 1000.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 50, 200])
def test_the_bounds_of_the_shift_work(solver: Solver, shift: float, steps: int) -> None:
    assert torch.isfinite(run(Sampler(solver, steps, shift, "cpu"), torch.randn(4, 5))).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_last_step_is_the_clean_prediction(solver: Solver) -> None:
    sampler = Sampler(solver, 7, 5.0, "cpu")
    sample = torch.randn(4, 5)
    for index in range(6):
        sample = sampler.step(velocity_field(sample), index, sample)
    velocity = velocity_field(sample)
    assert sampler.sigmas[-1] == 0
    torch.testing.assert_close(sampler.step(velocity, 6, sample), sample - sampler.sigmas[-2] * velocity)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [68, 80, 100])
def test_equal_first_timesteps_are_both_taken(solver: Solver, steps: int) -> None:
    sampler = Sampler(solver, steps, 16.0, "cpu")
    if solver == "unipc":
        assert sampler.timesteps[0] == sampler.timesteps[1]
    result = run(sampler, torch.randn(4, 5))
    assert torch.isfinite(result).all()
    with pytest.raises(IndexError):
        sampler.step(result, steps, result)


@pytest.mark.parametrize("solver", SOLVERS)
def test_exact_for_a_straight_path(solver: Solver) -> None:
    # A constant velocity v leads from x to x - sigma_0 * v, whatever the steps.
    sampler = Sampler(solver, 12, 3.0, "cpu")
    noise, velocity = torch.randn(2, 6), torch.randn(2, 6)
    sample = noise
    for index in range(12):
        sample = sampler.step(velocity, index, sample)
    torch.testing.assert_close(sample, noise - sampler.sigmas[0] * velocity, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("solver", "most"), [("unipc", 3), ("dpm++", 1)])
def test_state_is_small_and_dropped_at_the_end(solver: Solver, most: int) -> None:
    sampler = Sampler(solver, 6, 5.0, "cpu")
    sample = torch.randn(8)
    held = []
    for index in range(6):
        sample = sampler.step(velocity_field(sample), index, sample)
        state = (sampler._last_sample, *sampler._history)
        held.append(sum(tensor is not None for tensor in state))
    assert max(held) == most
    assert held[-1] == 0


def test_a_second_run_starts_afresh() -> None:
    sampler = Sampler("unipc", 5, 5.0, "cpu")
    noise = torch.randn(8)
    once = run(sampler, noise)
    sampler.step(noise, 0, noise)  # an interrupted run
    assert torch.equal(run(sampler, noise), once)


def test_inputs_are_left_as_they_were() -> None:
    sampler = Sampler("unipc", 5, 5.0, "cpu")
    sample, velocity = torch.ones(3), torch.full((3,), 2.0)
    sampler.step(velocity, 0, sample)
    assert torch.equal(sample, torch.ones(3))
    assert torch.equal(velocity, torch.full((3,), 2.0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("inside", [True, False])
def test_runs_on_fake_tensors(solver: Solver, inside: bool) -> None:
    # A device that this machine does not have: only a fake tensor can be there.
    sampler = None if inside else Sampler(solver, 4, 5.0, "cpu")
    with FakeTensorMode():
        sampler = sampler or Sampler(solver, 4, 5.0, "cuda")
        sample = torch.empty(16, 21, 90, 160, device="cuda")
        for index in range(4):
            sample = sampler.step(torch.empty_like(sample), index, sample)
    assert sample.shape == (16, 21, 90, 160)
    assert sample.device.type == "cuda"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("euler", 5, 5.0), "unknown solver 'euler'"),
        (("unipc", 0, 5.0), "at least 1, got 0"),
        (("dpm++", 5, 0.0), "from 0.01 to 1000, got 0.0"),
        (("unipc", 5, 1e-300), "from 0.01 to 1000, got 1e-300"),
        (("dpm++", 5, 1e30), r"from 0.01 to 1000, got 1e\+30"),
        (("unipc", 5, float("nan")), "from 0.01 to 1000, got nan"),
    ],
)
def test_bad_settings(arguments: tuple[Solver, int, float], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        Sampler(*arguments, device="cpu")
    assert caught.value.hint
