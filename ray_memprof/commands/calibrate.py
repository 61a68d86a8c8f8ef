"""ray-memprof calibrate: measures the profile of this machine's GPU, for predictions of runs on that model.

$ ray-memprof calibrate --out my_gpu.yaml
$ python -m ray_memprof.predict configs/ulysses4.yaml --gpu my_gpu.yaml
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import OUT, errors_as_lines, say
from ray_memprof.wording import visible


def calibrate(out: Annotated[Path | None, typer.Option(help=OUT)] = None) -> None:
    """Measure GPU 0 of this machine, in about two minutes, and write a profile for --gpu of predict and audit."""
    with errors_as_lines():
        from ray_memprof.installed import need
        from ray_memprof.store.whole_file import check_target, write_whole_text

        need(("torch",), "a calibration")
        check_target(out)
        from ray_memprof.predictor.calibrate import calibrated

        text = calibrated(lambda line: say(visible(f"{line}\n")))
        if out is None:
            sys.stdout.write(text)
        else:
            write_whole_text(out, text)
            say(f"profile: {out}\n")
