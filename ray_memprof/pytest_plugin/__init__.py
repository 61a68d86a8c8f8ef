"""A limit for GPU memory in pytest: on a test in its own process, or on a configuration that is launched for it.

    @pytest.mark.limit_gpu_peak("30 GiB")
    def test_decode(latents: Tensor) -> None:
        decode(latents)                                     # limits the peak on this process's GPUs in the test

    @pytest.mark.limit_gpu_peak("16 GiB", config="configs/ulysses4.yaml", rank="max")
    def test_four_ranks(gpu_run: Path) -> None: ...         # gpu_run: the folder of the run, launched before the test

pytest loads this plugin if the package is installed. It imports torch only when a marked test is set up, and never
imports Ray. Run folders stay below pytest's temporary folder. docs/tour.md explains the measures and every argument.
"""

import contextlib
import gc
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.installed import need
from ray_memprof.pytest_plugin.launched_run import run_launch
from ray_memprof.pytest_plugin.limit import Limit, limit_gpu_peak
from ray_memprof.wording import size_text

if TYPE_CHECKING:
    from ray_memprof.pytest_plugin.peaks import Measured

MARK = "limit_gpu_peak"
NO_GPU = "limit_gpu_peak needs a CUDA device: torch.cuda.is_available() is False here"
_SIGNATURE = "limit_gpu_peak(limit, *, rank='max', measure=None, config=None, overrides=(), timeout_s=3600.0)"
_LIMITS = pytest.StashKey[tuple[Limit, ...]]()
_REFUSED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    meaning = (
        "fail if the peak of GPU memory in the test, or in the run of a configuration, is above the limit"
    )
    config.addinivalue_line("markers", f"{_SIGNATURE}: {meaning}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Read the marks of the selected tests; a mark that cannot be used ends pytest before any test runs."""
    for item in items:
        marks = list(item.iter_markers(MARK))
        is_asking = "gpu_run" in getattr(item, "fixturenames", ())
        if not marks and not is_asking:
            continue
        try:
            with contextlib.chdir(item.config.rootpath):
                limits = tuple(_read(mark) for mark in marks)
            _check_together(item, limits, is_asking)
        except ConfigError as error:
            text = f"{item.nodeid}: {MARK}: {error}" + (f"\nhint: {error.hint}" if error.hint else "")
            if not hasattr(item.config, "workerinput"):
                raise pytest.UsageError(text) from error
            # In a worker of pytest-xdist a UsageError would end the controller with an internal error.
            item.stash[_REFUSED] = text
            continue
        item.stash[_LIMITS] = limits
        if limits[0].launch is not None and not is_asking:
            item.fixturenames.append("gpu_run")  # type: ignore[attr-defined]


def _read(mark: pytest.Mark) -> Limit:
    try:
        return limit_gpu_peak(*mark.args, **mark.kwargs)
    except TypeError as error:
        raise ConfigError(str(error), hint=_SIGNATURE) from error


def _check_together(item: pytest.Item, limits: Sequence[Limit], is_asking: bool) -> None:
    """Raise ConfigError if the limits of a test and its use of gpu_run cannot be combined."""
    launches = {limit.launch for limit in limits}
    if len(launches) > 1:
        raise ConfigError(
            "several limits of one test are for different runs",
            hint="the same config, overrides and timeout_s",
        )
    if is_asking and launches <= {None}:
        raise ConfigError(
            "the fixture gpu_run needs a run", hint=f'@pytest.mark.{MARK}("16 GiB", config="...")'
        )
    if launches != {None} and not isinstance(item, pytest.Function):
        raise ConfigError("a configuration can be launched for test functions only")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test, with the reason, if there are not enough GPUs for it."""
    if _REFUSED in item.stash:
        pytest.fail(item.stash[_REFUSED], pytrace=False)
    limits = item.stash.get(_LIMITS, ())
    if not limits:
        return
    launch = limits[0].launch
    if launch is not None and (launch.config.model.device != "cuda" or launch.config.ray.address is not None):
        return
    try:
        need(("torch",), MARK)
    except ConfigError as error:
        _skip(item, str(error))
        return
    import torch

    if launch is None:
        if not torch.cuda.is_available():
            _skip(item, NO_GPU)
        return
    needed, found = launch.config.num_ranks * launch.config.ray.gpus_per_rank, torch.cuda.device_count()
    if found < needed:
        _skip(item, f"{launch.path} needs {needed} CUDA devices, and there are {found} here")


def _skip(item: pytest.Item, reason: str) -> None:
    """Skip by a mark, which pytest checks next: then the report names the line of the test, not a line in this file."""
    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def gpu_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that limit_gpu_peak(config=...) launches, once for each test."""
    limits = request.node.stash.get(_LIMITS, ())
    if not limits or limits[0].launch is None:
        pytest.fail(f"the fixture gpu_run needs @pytest.mark.{MARK}(..., config=...)", pytrace=False)
    _empty_cache()
    return run_launch(limits[0].launch, tmp_path_factory.mktemp("gpu_run"), request.config.rootpath)


def _empty_cache() -> None:
    """Free what earlier tests left in this process's cache: it would be counted in the run, or fail its preflight."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Compare the peaks of the test, or of its run, with every limit; a test that fails by itself is not judged."""
    limits = item.stash.get(_LIMITS, ())
    if not limits:
        return (yield)
    from ray_memprof.pytest_plugin.peaks import of_run, watched

    if limits[0].launch is None:
        with watched() as watch:
            yield
        _judge(item, [(limit, watch.measured(limit.measure)) for limit in limits])
        return
    yield
    run_dir = item.funcargs["gpu_run"]  # type: ignore[attr-defined]
    try:
        found = [(limit, of_run(run_dir, limit.measure, limit.rank)) for limit in limits]
    except ConfigError as error:
        pytest.fail(f"{error}\nhint: {error.hint}", pytrace=False)
    _judge(item, found)


def _judge(item: pytest.Item, found: Sequence[tuple[Limit, "Measured"]]) -> None:
    """Fail with one or more lines for each limit that is exceeded; what was measured also goes into JUnit's file."""
    lines = []
    for limit, measured in found:
        item.user_properties.append((f"gpu_{limit.measure}_peak_bytes", measured.bytes))
        if measured.bytes > limit.bytes:
            over = size_text(measured.bytes - limit.bytes)
            lines.append(
                f"{measured.who}: {limit.measure} peaks at {_exact(measured.bytes)}, {over} over the limit of "
                f"{_exact(limit.bytes)}"
            )
            lines += [f"  {line}" for line in measured.details]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def _exact(num_bytes: int) -> str:
    return f"{size_text(num_bytes)} ({num_bytes:,} bytes)"
