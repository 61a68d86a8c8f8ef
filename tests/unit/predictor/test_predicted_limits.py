"""compare --fail-if on predicted runs: a change that raises the predicted peak fails, and needs no GPU for that."""

import shutil
from pathlib import Path

import pytest
from measured import as_measured
from typer.testing import CliRunner
from warm_processes import keep_warm

from ray_memprof.cli import app
from ray_memprof.errors import EXIT_LIMIT, EXIT_OK

TINY = """
model_config: {task: t2v-tiny, weights: random}
generation: {size: 64*48, frame_num: 9, sample_steps: 2, prompt: a boat}
"""
LIMITS = ("peak_device_used > +1%", "denoise.peak_allocated > +100 KiB")
"""Of the whole run, whose peak is in the decoder, and of the stage that the change is in."""


@pytest.fixture(scope="module")
def warm_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predicted before and after a change that needs more memory, and the same as if both were measured."""
    folder = tmp_path_factory.mktemp("runs")
    for name, precision in (("before", "bf16"), ("after", "fp32")):
        config = folder / f"{name}.yaml"
        config.write_text(f"name: {name}{TINY}", encoding="utf-8")
        given = ["--gpu", "H200", "--set", f"model_config.precision={precision}", "--output-dir", str(folder)]
        with pytest.MonkeyPatch.context() as patch:
            keep_warm(patch)
            result = CliRunner().invoke(app, ["predict", str(config), *given])
        assert result.exit_code == EXIT_OK, result.output
        (run_dir,) = (one for one in (folder / name).iterdir() if not one.is_symlink())
        as_measured(Path(shutil.copytree(run_dir, folder / f"measured-{name}" / run_dir.name)))
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("base", ["before", "measured-before"])
@pytest.mark.parametrize("other", ["after", "measured-after"])
def test_limits_hold_or_not_whoever_is_predicted(base: str, other: str, warm_runs: Path) -> None:
    def compared(*names: str) -> tuple[int, list[str]]:
        limits = [word for limit in LIMITS for word in ("--fail-if", limit)]
        result = CliRunner().invoke(app, ["compare", *names, *limits, "--output-dir", str(warm_runs)])
        return result.exit_code, [line.split(":")[0] for line in result.stderr.splitlines()]

    assert compared(base, other) == (EXIT_LIMIT, ["limit holds", "limit exceeded", "error"])
    assert compared(other, base) == (EXIT_OK, ["limit holds"] * 2)
    assert compared(base, base) == (EXIT_OK, ["limit holds"] * 2)
