"""Tables and questions of a run as CSV files, written by DuckDB.

    csv.write_csv(run_dir, Path("tables"))                            # every table, tables/<table>.csv
    csv.write_csv(run_dir, Path("peaks.csv"), "peak_by_stage")        # a table or a question

The first line names the columns; only values that need quotes have them; null is empty. A text that a spreadsheet would
compute (it begins with = + - @, a tab or a carriage return) gets an apostrophe in front.
"""

from pathlib import Path

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.query import questions
from ray_memprof.query.answers import without_formulas
from ray_memprof.query.database import open_run
from ray_memprof.store.schema import TABLES
from ray_memprof.store.whole_file import check_target, whole_file


def write_csv(run_dir: Path, path: Path, name: str | None = None, rank: int | None = None) -> Path:
    """Write table or question `name` to the file `path`, or without a name every table into the folder `path`.

    Args:
        run_dir: the run.
        path: the file or folder to write.
        name: of a table or a question.
        rank: write only the rows of this rank; None: all rows.

    Raises:
        ConfigError: no such run, table or question, its rows have no rank, or no file can be written at `path`.
        DiskFull: no room for the file.
    """
    check_target(path if name else path / "runs.csv")
    with open_run(run_dir) as connection:
        if name is not None:
            if name not in TABLES:
                questions.question(name)  # refuses unknown names
            return _copy(connection, name, path, rank)
        for table in TABLES:
            _copy(connection, table, path / f"{table}.csv", None if table == "runs" else rank)
    return path


def _copy(connection: duckdb.DuckDBPyConnection, name: str, path: Path, rank: int | None) -> Path:
    columns = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
    if rank is not None and "rank" not in columns:
        raise ConfigError(
            f"{name} has no column rank: its rows are of the whole run", hint="leave --rank out"
        )
    chosen = without_formulas(connection, name)
    condition = "" if rank is None else f" WHERE rank = {rank:d}"
    with whole_file(path) as temporary:
        # An absolute path: DuckDB would take `file:x.csv` and `s3:/x.csv` for addresses.
        target = str(temporary.absolute()).replace("'", "''")
        try:
            connection.execute(f"COPY ({chosen}{condition}) TO '{target}' (FORMAT csv, HEADER)")
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
    return path
