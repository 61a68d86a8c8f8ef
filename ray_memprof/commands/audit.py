"""ray-memprof audit: a recorded run is predicted, and both are set side by side.

$ ray-memprof audit latest
$ ray-memprof query predicted_vs_measured latest
"""

import sys
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names, say_standing
from ray_memprof.wording import visible


def audit(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    gpu: Annotated[
        str, typer.Option(help="GPU model, or a file of `ray-memprof calibrate`; default: that of the run.")
    ] = "",
    output_dir: OutputDir = None,
) -> None:
    """Predict a recorded run of wan without a GPU, and say how far what was measured is from that."""
    with errors_as_lines():
        from ray_memprof.installed import need
        from ray_memprof.store.find_run import find_run
        from wan.options_here import PACKAGES

        need(PACKAGES, "a prediction")
        from ray_memprof.predictor.audit import audited

        run_dir = find_run(run, output_dir)
        say_standing([run_dir])
        for line in audited(run_dir, gpu):
            sys.stdout.write(visible(f"{line}\n"))
            sys.stdout.flush()
