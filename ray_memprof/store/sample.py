"""A small recorded run that comes with this package, for people who have none yet: two H200s, the 14B model at 720P.

    sample_run(Path("profiler_logs"))     # profiler_logs/sample/20261128-210842-ddae

Makes a copy among the runs of the user, so that every command takes it as `sample`; what is there already is kept.
"""

import shutil
import tempfile
from pathlib import Path

from ray_memprof.errors import ConfigError
from ray_memprof.store.run_files import TABLES_DIR
from ray_memprof.store.whole_file import is_full

NAME = "sample"
"""The folder of the copy; the run itself is called ulysses2."""
_PLACES = (Path(__file__).parent / NAME, Path(__file__).parents[2] / "docs" / NAME / "ulysses2")
"""Where the run lies in a wheel (hatch_build.py), and in the repository."""


def sample_run(output_dir: Path) -> Path:
    """The copy of the sample run below `output_dir`; makes it if it is not there.

    Raises:
        ConfigError: this installation came without it, or it cannot be copied there.
    """
    found = next((run for place in _PLACES for run in place.glob(f"*/{TABLES_DIR}")), None)
    if found is None:
        raise ConfigError("this installation has no sample run", hint="docs/sample of the repository has it")
    # As find_run() has it: a path that is whole, wherever it is used.
    target = output_dir.resolve() / NAME / found.parent.name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            whole = Path(folder) / "run"
            shutil.copytree(found.parent, whole)
            whole.rename(target)
    except OSError as error:
        room = "make room there" if is_full(error) else "name a folder of yours by --output-dir"
        raise ConfigError(f"the sample run cannot be copied to {target}: {error}", hint=room) from error
    return target
