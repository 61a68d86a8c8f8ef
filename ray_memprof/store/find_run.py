"""Finds the folder of a run from the name or path that a user gives.

    find_run("latest")                       # the newest run of all
    find_run("baseline")                     # the newest of that name
    find_run("baseline/20260102-030405-ab12")
    find_run("/data/run17")                  # any run folder, wherever it lies

Names are looked for in profiler_logs of the working directory; a run folder with that path is taken first.
"""

from pathlib import Path

from ray_memprof.errors import ConfigError
from ray_memprof.store.run_files import LATEST_LINK, TABLES_DIR
from ray_memprof.wording import did_you_mean

OUTPUT_DIR = Path("profiler_logs")
"""Default of logging.output_dir."""
_MOST_LISTED = 8


def find_run(text: str, output_dir: Path = OUTPUT_DIR) -> Path:
    """The run folder that `text` means, links followed.

    Raises:
        ConfigError: there is none; the hint lists the runs there are.
    """
    if text == LATEST_LINK:
        runs = list_runs(output_dir)
        candidates = [runs[-1]] if runs else []
    else:
        candidates = [Path(text), output_dir / text]
        # Newest first; where runs were copied, the link `latest` of a name may be missing.
        candidates += [run for run in reversed(list_runs(output_dir)) if text in (run.name, run.parent.name)]
    for folder in candidates:
        for place in (folder, folder / LATEST_LINK):
            if (place / TABLES_DIR).is_dir():
                return place.resolve()
    raise ConfigError(f"there is no run {text!r}", hint=_hint(text, output_dir))


def list_runs(output_dir: Path = OUTPUT_DIR) -> list[Path]:
    """Every run folder, the newest last: run ids sort by time."""
    found = [
        tables.parent for tables in output_dir.glob(f"*/*/{TABLES_DIR}") if not tables.parent.is_symlink()
    ]
    return sorted(found, key=lambda run: (run.name, run.parent.name))


def _hint(text: str, output_dir: Path) -> str:
    runs = [f"{run.parent.name}/{run.name}" for run in list_runs(output_dir)]
    if not runs:
        return f"there are no runs in {output_dir.absolute()}; give the path of a run folder"
    names = dict.fromkeys(run.split("/")[0] for run in runs)
    near = did_you_mean(text, [*names, *runs])
    listed = ", ".join(runs[: -_MOST_LISTED - 1 : -1])
    more = f" and {len(runs) - _MOST_LISTED} older ones" if len(runs) > _MOST_LISTED else ""
    return (f"{near} " if near else "") + f"runs: {listed}{more}"
