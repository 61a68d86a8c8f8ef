"""ray-memprof what-if: a recorded run under other settings of torch's allocator, or on another device.

$ ray-memprof what-if baseline --no-expandable-segments --device-memory '24 GiB'
"""

from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import (
    BY_SUFFIX,
    OUT,
    RUN,
    OutputDir,
    errors_as_lines,
    flush,
    run_names,
    say_standing,
    unread_is_fine,
)
from ray_memprof.errors import ConfigError, LimitExceeded
from ray_memprof.query.answers import Form, form_of, write_answer
from ray_memprof.wording import parse_size, rank_text


def what_if(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    expandable_segments: Annotated[
        bool | None,
        typer.Option(
            "--expandable-segments/--no-expandable-segments", help="Segments grow, or not; as recorded."
        ),
    ] = None,
    max_split_size: Annotated[
        str | None, typer.Option(help="Blocks from this size on are never split: '128 MiB'; as recorded.")
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option(help="Memory of the device: '24 GiB'; by default, of the recorded one.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Answer only for this rank.")] = None,
    format: Annotated[Form | None, typer.Option(help=f"How to write the answer. {BY_SUFFIX} table.")] = None,  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    output_dir: OutputDir = None,
) -> None:
    """Say how high the peak of a recorded run would be, whether it would have run, and on which device it just does.

    The recorded requests are put to a model of torch's caching allocator, in the same order; memory outside the
    allocator is as recorded. Exit code 30 if a rank would not have run.
    """
    with errors_as_lines():
        from ray_memprof.analysis.what_if import Asked, what_if
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.whole_file import check_target

        check_target(out)
        asked = Asked(
            expandable_segments=expandable_segments,
            max_split_bytes=_size("--max-split-size", max_split_size),
            device_bytes=_size("--device-memory", device_memory),
        )
        run_dir = find_run(run, output_dir)
        say_standing([run_dir])
        rows = what_if(run_dir, asked, rank)
        with unread_is_fine():
            write_answer(rows, format or form_of(out), out)
            flush()
        failed = [row["rank"] for row in rows.to_pylist() if not row["runs"]]
        if failed:
            raise LimitExceeded(
                f"{rank_text(failed)} would not have run", hint="smallest_device_bytes says on which it does"
            )


def _size(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}", hint=error.hint) from None
