"""Finds the folder of a run from the name or path that a user gives.

    find_run("latest")                       # the newest run of all
    find_run("baseline")                     # the newest of that name
    find_run("baseline/20260102-030405-ab12")
    find_run("/data/run17")                  # any run folder, wherever it lies

Names are looked for in the folder of runs: --output-dir of the command, else RAY_MEMPROF_DIR of the environment, else
profiler_logs of the working directory. A run folder with that path is taken first.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ray_memprof.errors import ConfigError
from ray_memprof.store.run_files import LATEST_LINK, RUN_FILE, TABLES_DIR
from ray_memprof.wording import did_you_mean

OUTPUT_DIR = Path("profiler_logs")
"""Default of logging.output_dir."""
OUTPUT_DIR_VARIABLE = "RAY_MEMPROF_DIR"
"""Of the environment: where runs are kept if nothing else names a folder."""
_MOST_LISTED = 8


def runs_folder(output_dir: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are kept: the folder that a user named, else that of RAY_MEMPROF_DIR, else profiler_logs."""
    return output_dir or Path(environ.get(OUTPUT_DIR_VARIABLE) or OUTPUT_DIR)


def find_run(text: str, output_dir: Path | None = None, *, begun: bool = False) -> Path:
    """The run folder that `text` means, links followed.

    Args:
        text: latest, the name of a run, its id, both, its folder, or any file in it.
        output_dir: where names are looked for; None: as runs_folder() has it.
        begun: find also a run that has only begun, whose ranks have recorded nothing so far.

    Raises:
        ConfigError: there is none; the hint lists the runs there are.
    """
    output_dir = runs_folder(output_dir)
    if text == LATEST_LINK:
        runs = list_runs(output_dir, begun=begun)
        candidates = [runs[-1]] if runs else []
    else:
        candidates = [Path(text), output_dir / text]
        # Newest first; where runs were copied, the link `latest` of a name may be missing.
        runs = list_runs(output_dir, begun=begun)
        candidates += [run for run in reversed(runs) if text in (run.name, run.parent.name)]
    for folder in candidates:
        if (found := _run_of(folder, _marks(begun))) is not None:
            return found
    if text and (within := _run_around(Path(text))) is not None:
        return within
    raise ConfigError(f"there is no run {text!r}", hint=_hint(text, output_dir))


def run_at(path: Path) -> Path | None:
    """The run that a path leads to: a run folder, the folder of a name, or anything in a run; None: to none."""
    return _run_of(path, _marks(False)) or _newest_in(path) or _run_around(path)


def _newest_in(folder: Path) -> Path | None:
    """The newest run in the folder of a name, where the link `latest` is missing, as in a copy; None: there is none."""
    runs = {mark.parent for mark in folder.glob(f"*/{RUN_FILE}")}
    runs |= {mark.parent.parent for mark in folder.glob(f"*/{TABLES_DIR}/runs")}
    whole = [run for run in runs if (run / TABLES_DIR).is_dir()]
    return max(whole, key=lambda run: run.name).resolve() if whole else None


def _marks(begun: bool) -> tuple[str, ...]:
    """What lies in the folder of a run, and only there; of one that has only begun, too."""
    return (TABLES_DIR, RUN_FILE) if begun else (TABLES_DIR,)


def _run_of(folder: Path, marks: tuple[str, ...]) -> Path | None:
    """The run that is this folder, or the newest of the name that it is of; None: it is neither."""
    places = (folder, folder / LATEST_LINK)
    return next((one.resolve() for one in places if any((one / mark).exists() for mark in marks)), None)


def _run_around(path: Path) -> Path | None:
    """The run that a file or folder lies in; None: in none, or there is nothing of that path."""
    try:
        full = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, no path at all, or links in a circle
        return None
    # A folder "tables" alone may be anybody's.
    marks = (RUN_FILE, f"{TABLES_DIR}/runs")
    return next((folder for folder in full.parents if any((folder / mark).exists() for mark in marks)), None)


def list_runs(output_dir: Path | None = None, *, begun: bool = False) -> list[Path]:
    """Every run folder, the newest last: run ids sort by time; with `begun` also those without a record so far."""
    output_dir = runs_folder(output_dir)
    found = {mark.parent for name in _marks(begun) for mark in output_dir.glob(f"*/*/{name}")}
    return sorted((run for run in found if not run.is_symlink()), key=lambda run: (run.name, run.parent.name))


def _hint(text: str, output_dir: Path) -> str:
    runs = [f"{run.parent.name}/{run.name}" for run in list_runs(output_dir)]
    if not runs:
        return f"there are no runs in {output_dir.absolute()}; give the path of a run folder"
    names = dict.fromkeys(run.split("/")[0] for run in runs)
    near = did_you_mean(text, [*names, *runs])
    listed = ", ".join(runs[: -_MOST_LISTED - 1 : -1])
    more = f" and {len(runs) - _MOST_LISTED} older ones" if len(runs) > _MOST_LISTED else ""
    return (f"{near} " if near else "") + f"runs: {listed}{more}"
