"""An open run for SQL that a program wrote: the SQL sees the run and no file, and it ends in time.

    ask("FROM spans", [run_dir], bounds=Bounds(most_rows=200, limit_s=60))      # of ask.py, which calls guarded()

DuckDB's access to files, extensions and other databases is off while the block runs, and cannot be turned on again. So
nothing can be read but the tables in memory, and nothing be written anywhere: the large tables, which are else views
over files, are read before, if the SQL names them. The connection is of no use for anything else afterwards.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.query.database import LARGE_TABLES, keep
from ray_memprof.query.questions import named

_LOCKED = (
    "SET temp_directory = ''",  # nothing is laid down on disk while it is sorted
    "SET python_enable_replacements = false",  # a name in the SQL is no variable of this program
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much an answer may take."""

    most_rows: int
    """No further row is computed."""
    limit_s: float
    """Seconds until the statement is stopped."""


@contextmanager
def guarded(connection: duckdb.DuckDBPyConnection, sql: str, bounds: Bounds) -> Iterator[None]:
    """Shut the connection off from all files, and stop what takes longer than `bounds.limit_s`.

    Args:
        connection: to a single run, from database.open_run().
        sql: what will be asked.
        bounds: of the answer.

    Raises:
        ConfigError: it took too long.
    """
    timer = threading.Timer(bounds.limit_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        _read_large_tables(connection, sql)
        for statement in _LOCKED:
            connection.execute(statement)
        yield
    except duckdb.InterruptException as error:
        raise ConfigError(
            f"the SQL was stopped after {bounds.limit_s:g} s", hint="ask for fewer rows or ranks at a time"
        ) from error
    finally:
        timer.cancel()


def _read_large_tables(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Put the rows of views over files into tables of the same names, as far as `sql` reads them."""
    views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    # SQL may write a name in capitals.
    for name in sorted(named(sql.lower()).intersection(LARGE_TABLES, (row[0] for row in views))):
        keep(connection, name, f"FROM {name}")
