"""The command line: one command for each thing to do with a run; each does no more than call its module.

    $ ray-memprof launch configs/baseline.yaml
    $ ray-memprof query peak_by_rank
    $ ray-memprof compare baseline memory_opt
    $ ray-memprof export latest --format perfetto
    $ ray-memprof import dump/rank*.pickle --name theirs

What a user got wrong ends in one line and a hint, with the exit code of errors.py.
"""

import re
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof import launch
from ray_memprof.cli_answers import compare, diagnose, query, report, told
from ray_memprof.errors import ConfigError
from ray_memprof.wording import visible

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__.split("\n")[0]
)
app.command("launch")(launch.main)
for answer in (query, diagnose, report, compare):
    app.command()(answer)


class Format(StrEnum):
    """What `export` writes."""

    PERFETTO = "perfetto"
    SNAPSHOT = "snapshot"
    CSV = "csv"
    MEMORY_EVENTS = "memory_events"


@app.command("export")
def export(
    run: Annotated[str, typer.Argument(help="A run folder, <name>, <name>/<run_id>, <run_id> or latest.")],
    format: Annotated[Format, typer.Option(help="What to write.")],  # noqa: A002 - the name of the option
    rank: Annotated[int | None, typer.Option(min=0, help="Of one rank only.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write, or folder for several.")] = None,
    name: Annotated[str | None, typer.Option(help="csv: a table or question instead of every table.")] = None,
) -> None:
    """Write a run in the format of another tool."""
    from ray_memprof.find_run import find_run

    with told():
        if name is not None and format is not Format.CSV:
            raise ConfigError(f"--name {name} goes with --format csv, not {format.value}")
        run_dir = find_run(run)
        for path in _export(run_dir, format, rank, out, name):
            sys.stdout.write(f"{path}\n")


def _export(
    run_dir: Path, format: Format, rank: int | None, out: Path | None, name: str | None
) -> list[Path]:
    from ray_memprof.exporters import csv, memory_events, perfetto
    from ray_memprof.store import EVENTS_FILE

    stem = f"{run_dir.parent.name}-{run_dir.name}"
    of_rank = "" if rank is None else f"-rank{rank}"
    if format is Format.PERFETTO:
        return [perfetto.write(run_dir, out or Path(f"{stem}{of_rank}.trace.json.gz"), rank)]
    if format is Format.SNAPSHOT:
        return _snapshots(run_dir, rank, out, stem)
    if format is Format.CSV:
        default = f"{stem}{of_rank}-{name}.csv" if name else f"{stem}{of_rank}-csv"
        return [csv.write(run_dir, out or Path(default), name, rank)]
    if rank is not None:
        raise ConfigError("memory_events.json is of all ranks", hint="leave --rank out")
    return [memory_events.write(run_dir, out or run_dir / EVENTS_FILE)]


def _snapshots(run_dir: Path, rank: int | None, out: Path | None, stem: str) -> list[Path]:
    """One file a rank; all ranks go into the folder `out`."""
    from ray_memprof.exporters import torch_snapshot

    if rank is not None:
        return [torch_snapshot.write(run_dir, rank, out or Path(f"{stem}-rank{rank}.pickle"))]
    folder = out or Path(f"{stem}-snapshots")
    ranks = torch_snapshot.recorded_ranks(run_dir)
    return [torch_snapshot.write(run_dir, one, folder / f"rank{one}.pickle") for one in ranks]


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="Snapshots of torch's allocator, one a rank.")],
    name: Annotated[str, typer.Option(help="Name of the run to make.")],
    output_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("profiler_logs"),
) -> None:
    """Make a run of memory snapshots that torch.cuda.memory._dump_snapshot wrote."""
    from ray_memprof import db
    from ray_memprof.importers.torch_snapshot import import_snapshots
    from ray_memprof.run_folder import new_run_id, point
    from ray_memprof.store import LATEST_LINK, REPORT_FILE

    with told():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"--name {name!r} names a folder: letters, digits, '.', '-' and '_'")
        run_dir = (output_dir / name / new_run_id()).absolute()
        told_lines = import_snapshots(files, run_dir, name, tell=_to_stderr)
        for line in (*told_lines, *db.limits(run_dir)):
            _to_stderr(f"warning: {line}")
        point(run_dir.parent / LATEST_LINK, run_dir.name)
        sys.stdout.write(f"report: {run_dir / REPORT_FILE}\n")


def _to_stderr(line: str) -> None:
    with suppress(BrokenPipeError):
        # A name of a file may have ends of lines: it is told in one.
        sys.stderr.write(visible(line.replace("\n", "\\n")) + "\n")


@app.command("finish")
def finish(
    run: Annotated[str, typer.Argument(help="A run folder, <name>, <name>/<run_id>, <run_id> or latest.")],
    copies: Annotated[
        list[Path],
        typer.Option("--from", metavar="FOLDER", help="A copy of a host's scratch folder of this run."),
    ] = [],  # noqa: B006 - typer copies it
    address: Annotated[
        str | None, typer.Option(help="Of the Ray that reaches its hosts. Default: the one it had joined.")
    ] = None,
) -> None:
    """Bring in what other hosts still hold of a run, or what a killed launcher left, and write its report."""
    from ray_memprof.find_run import find_run

    with told():
        from ray_memprof.finish import finish as make_whole

        for line in make_whole(find_run(run), copies, address=address):
            sys.stdout.write(visible(f"{line}\n"))


if __name__ == "__main__":
    app()
