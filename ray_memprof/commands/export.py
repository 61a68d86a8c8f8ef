"""ray-memprof export: writes a run in the format of another tool, or sends it to where other runs are looked at.

$ ray-memprof export latest --format perfetto
$ ray-memprof export latest --to tensorboard
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names, say_standing
from ray_memprof.errors import ConfigError
from ray_memprof.formats.trackers.services import Service


class Format(StrEnum):
    """The formats that `export` can write."""

    PERFETTO = "perfetto"
    SNAPSHOT = "snapshot"
    CSV = "csv"
    MEMORY_EVENTS = "memory_events"


_SUFFIXES = {
    ".trace.json.gz": Format.PERFETTO,
    ".trace.json": Format.PERFETTO,
    ".json": Format.MEMORY_EVENTS,
    ".pickle": Format.SNAPSHOT,
    ".csv": Format.CSV,
}


def export(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)],
    format: Annotated[  # noqa: A002 - the option's name
        Format | None,
        typer.Option(help=f"What to write. Default: as the end of --out says ({', '.join(_SUFFIXES)})."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Write only this rank.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write, or folder for several files.")] = None,
    to: Annotated[
        Service | None,
        typer.Option(help="Send it there instead: headlines, peaks, curves, findings and the report."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="csv: write this table or question instead of every table.")
    ] = None,
    output_dir: OutputDir = None,
) -> None:
    """Write a run in the format of another tool, or send it to another service."""
    from ray_memprof.store.find_run import find_run

    with errors_as_lines():
        if to is not None:
            _check_alone(to, {"--format": format, "--rank": rank, "--name": name})
            _send(find_run(run, output_dir), to, out)
            return
        form = format or _form_of(out)
        if name is not None and form is not Format.CSV:
            raise ConfigError(f"--name {name} goes with --format csv, not {form.value}")
        run_dir = find_run(run, output_dir)
        for path in _export(run_dir, form, rank, out, name):
            sys.stdout.write(f"{path}\n")


def _check_alone(to: Service, others: dict[str, object]) -> None:
    for flag, value in others.items():
        if value is not None:
            raise ConfigError(
                f"{flag} {value} does not go with --to {to.value}", hint="leave one of them out"
            )


def _send(run_dir: Path, to: Service, out: Path | None) -> None:
    from ray_memprof.formats.trackers.send import send

    if out is not None and to in (Service.WANDB, Service.MLFLOW):
        raise ConfigError(
            f"--out {out} does not go with --to {to.value}",
            hint=f"where it goes is said to {to.value} itself",
        )
    say_standing([run_dir])
    sys.stdout.write(f"{send(run_dir, to, out)}\n")


def _form_of(out: Path | None) -> Format:
    found = next(
        (form for end, form in _SUFFIXES.items() if out is not None and out.name.endswith(end)), None
    )
    if found is None:
        said = "" if out is None else f": {out} does not say it"
        raise ConfigError(f"which format is to be written{said}", hint=f"--format {', '.join(Format)}")
    return found


def _export(
    run_dir: Path, format: Format, rank: int | None, out: Path | None, name: str | None
) -> list[Path]:
    from ray_memprof.formats.csv import write_csv
    from ray_memprof.formats.memory_events import write_memory_events
    from ray_memprof.formats.perfetto import write_perfetto
    from ray_memprof.store.run_files import EVENTS_FILE

    stem = f"{run_dir.parent.name}-{run_dir.name}"
    of_rank = "" if rank is None else f"-rank{rank}"
    if format is Format.PERFETTO:
        return [write_perfetto(run_dir, out or Path(f"{stem}{of_rank}.trace.json.gz"), rank)]
    if format is Format.SNAPSHOT:
        return _snapshots(run_dir, rank, out, stem)
    if format is Format.CSV:
        default = f"{stem}{of_rank}-{name}.csv" if name else f"{stem}{of_rank}-csv"
        return [write_csv(run_dir, out or Path(default), name, rank)]
    if rank is not None:
        raise ConfigError("memory_events.json is of all ranks", hint="leave --rank out")
    return [write_memory_events(run_dir, out or run_dir / EVENTS_FILE)]


def _snapshots(run_dir: Path, rank: int | None, out: Path | None, stem: str) -> list[Path]:
    """Write one file for each rank, into the folder `out`; for a single `rank`, `out` is the file."""
    from ray_memprof.analysis.recorded_rank import recorded_ranks
    from ray_memprof.formats.torch_snapshot.write import write_snapshot

    if rank is not None:
        return [write_snapshot(run_dir, rank, out or Path(f"{stem}-rank{rank}.pickle"))]
    folder = out or Path(f"{stem}-snapshots")
    ranks = recorded_ranks(run_dir)
    return [write_snapshot(run_dir, one, folder / f"rank{one}.pickle") for one in ranks]
