"""Which configurations fit on these GPUs, the fastest first; without a GPU.

    python -m ray_memprof.plan --task t2v-14B --size '1280*720' --gpu "RTX 4090" --gpus 2 --limit '22 GiB'

Every legal layout and lever is judged: by a lower bound of its memory, or by a whole prediction (planner/search.py).
The exit code is 0 with a row, 1 where nothing fits, 2 for what cannot be.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ray_memprof.config.flags import Set
from ray_memprof.errors import EXIT_NOTHING_FITS, EXIT_OK, ConfigError
from ray_memprof.wording import parse_size, size_text, visible

MOST_GPUS = 128
"""More than any host has."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, typer.Option(help="A task of wan, such as t2v-14B.")],
    size: Annotated[str | None, typer.Option(help="width*height in pixels; default: of the task.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1; default: of the task.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoise steps; default: of the task.")] = None,
    gpu: Annotated[
        str, typer.Option(help="The GPU model, or here: the one at hand. Default: that, else H200.")
    ] = "",
    gpus: Annotated[int, typer.Option(min=1, max=MOST_GPUS, help="GPUs, all on one host.")] = 1,
    limit: Annotated[
        str | None, typer.Option(help="What each rank may use: '22 GiB'; default: all of the GPU.")
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Host memory of all ranks together; default: it does not matter.")
    ] = None,
    inexact: Annotated[
        bool, typer.Option("--inexact/--exact-only", help="Propose levers that change the result (fp8), too.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="The most rows.")] = 3,
    overrides: Set = [],  # noqa: B006 - typer copies it
    flags: Annotated[
        list[str], typer.Option("--flag", help="As --set, by a flag of wan.generate: ffn_chunks=16.")
    ] = [],  # noqa: B006 - typer copies it
    write: Annotated[Path | None, typer.Option(help="A folder for a YAML file of each row.")] = None,
    html: Annotated[Path | None, typer.Option(help="A page with the rows, and time against memory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")] = False,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the predicted runs below it; default: nowhere.")
    ] = None,
) -> None:
    """Say which layouts and levers fit on these GPUs, the fastest first."""
    from ray_memprof.planner.search import Predictions, search
    from ray_memprof.planner.space import Asked, key_of_flag, model_of
    from ray_memprof.planner.table import check_folder, facts_of, points_of, text_of, write_rows
    from ray_memprof.predictor.command_end import ends_as_codes
    from ray_memprof.report.plan_page import write_plan_page
    from ray_memprof.store.whole_file import check_target

    code = EXIT_OK
    with ends_as_codes():
        check_target(html)
        check_folder("--write", write)
        check_folder("--output-dir", output_dir)
        model = model_of(gpu)
        with TemporaryDirectory(prefix="ray-memprof-plan-") as folder:
            asked = Asked(
                task=task,
                gpu=model,
                num_gpus=gpus,
                limit_bytes=_limit(model, limit),
                host_limit_bytes=_size("--host-memory", host_memory),
                allows_inexact=inexact,
                size=size,
                frame_num=frames,
                sample_steps=steps,
                overrides=(*overrides, *map(key_of_flag, flags)),
                folder=output_dir or Path(folder),
                keeps_runs=output_dir is not None,
            )
            with Predictions(asked) as tools:
                plan = search(asked, num_rows=rows, say=_say, tools=tools)
        files = [] if write is None else write_rows(plan, write)
        facts = facts_of(plan, files)
        sys.stdout.write(json.dumps(facts, indent=2) + "\n" if as_json else visible(text_of(plan)))
        for file in files:
            _say(f"row: {file}")
        if html is not None:
            _say(f"page: {write_plan_page(facts, points_of(plan), html).absolute()}")
        code = EXIT_OK if plan.rows else EXIT_NOTHING_FITS
    raise typer.Exit(code)


def _limit(model: str, text: str | None) -> int:
    """What each rank may use: no more than the GPU has, which is told where more is asked for."""
    from ray_memprof.predictor.gpu_profile import gpu_profile

    profile = gpu_profile(model)
    wanted = _size("--limit", text)
    if wanted is None:
        return profile.total_bytes
    if wanted > profile.total_bytes:
        _say(f"note: --limit {text}: {profile.name} has {size_text(profile.total_bytes)}, which is the limit")
    return min(wanted, profile.total_bytes)


def _size(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}", hint=error.hint) from None


def _say(line: str) -> None:
    """On the standard error, for the answer is on the other."""
    sys.stderr.write(visible(f"{line}\n"))
    sys.stderr.flush()


if __name__ == "__main__":
    app()
