"""Predict a run without a GPU: the peak of every rank, in a run folder like any other.

    python -m ray_memprof.predict configs/ulysses4.yaml --gpu H200 --set generation.sample_steps=2

The same code, tables, questions, diagnosis, report and comparison as a launch, on any machine; of a matrix, row by row.
The exit code is that of the run that is predicted: 11 if it would run out of memory (errors.py).
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_memprof.config.flags import OutputDir, Set
from ray_memprof.errors import EXIT_OK
from ray_memprof.wording import visible

if TYPE_CHECKING:
    from ray_memprof.config.run_config import RunConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEFAULT_GPU = "H200"


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="YAML file; with a matrix, one run for each row.")],
    overrides: Set = [],  # noqa: B006 - typer copies it
    gpu: Annotated[
        str,
        typer.Option(
            help="The GPU model that every rank has, or a file of `ray-memprof calibrate`; "
            f"default: the one at hand, else {DEFAULT_GPU}."
        ),
    ] = "",
    output_dir: OutputDir = None,
) -> None:
    """Predict the memory of a run of CONFIG, without a GPU."""
    from ray_memprof.config.matrix import expand
    from ray_memprof.config.rules import check_files
    from ray_memprof.config.yaml_file import short_forms
    from ray_memprof.predictor.command_end import ends_as_codes
    from ray_memprof.predictor.gpu_profile import gpu_at_hand
    from ray_memprof.predictor.processes import Processes
    from ray_memprof.predictor.run import predict
    from ray_memprof.report.comparison_page import set_side_by_side
    from ray_memprof.store.find_run import runs_folder

    code = EXIT_OK
    with ends_as_codes():
        overrides = [*overrides, *short_forms([], output_dir)]
        expanded = expand(config, overrides, output_dir=runs_folder())
        for one in expanded.runs:
            check_files(one)
        folders = []
        # Of a matrix, all runs are predicted by the same processes.
        with Processes() if len(expanded.runs) > 1 else nullcontext() as processes:
            for one in expanded.runs:
                ended, folder = predict(
                    one, gpu=gpu or gpu_at_hand() or DEFAULT_GPU, say=_say, processes=processes
                )
                code = ended or code
                folders.append(folder)
                _export(one, folder)
        if expanded.page is not None:
            set_side_by_side(folders, expanded.page)
    raise typer.Exit(code)


def _export(config: "RunConfig", run_dir: Path) -> None:
    """Send the run to the services of logging.export, as a launch does; what fails is a line and nothing more."""
    from ray_memprof.driver.exporting import exported

    limit_s = config.ray.timeouts.export_s
    for line in exported(run_dir, config.logging.export, limit_s=limit_s, is_stopped=lambda: False):
        _say(line)


def _say(line: str) -> None:
    sys.stdout.write(visible(f"{line}\n"))
    sys.stdout.flush()


if __name__ == "__main__":
    app()
