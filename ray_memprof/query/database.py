"""A run as a database: its tables, and one view for each question in sql/.

    build(run_dir)                                        # writes run.duckdb, for any DuckDB client
    query(run_dir, "peak_by_rank").to_pylist()            # no run.duckdb needed
    $ duckdb profiler_logs/baseline/latest/run.duckdb "FROM peak_by_rank"

run.duckdb holds the tables themselves, except the large ones (allocs, stacks: 2 to 6 bytes a row in Parquet, 24 here),
which are views over the Parquet files beside it. A view with a relative path would look in the client's working
directory and one with an absolute path would break when the folder moves. The one thing that tells a view where its
database lies is the setting temp_directory, whose default is the path of the database that the client opened, plus
".tmp". So a client must open run.duckdb itself to read allocs and stacks. If run.duckdb is only attached to another
database, everything else still works.

The place of a run changes no answer: nothing is read from the names of the folders above it. DuckDB itself cannot open
a database below a folder with a backslash in its name; every command of this program can still ask such a run.
"""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa

from ray_memprof.errors import ConfigError
from ray_memprof.query.questions import (
    MACROS,
    QUESTIONS,
    SHARED,
    SQL_DIR,
    headline,
    macro,
    named,
    question,
)
from ray_memprof.store.run_files import DATABASE_FILE, PART_SUFFIX, TABLES_DIR
from ray_memprof.store.schema import OLDEST_SCHEMA_VERSION, SCHEMA_VERSION, TABLES, Table
from ray_memprof.store.standing import run_row
from ray_memprof.store.whole_file import disk_error, run_file
from ray_memprof.wording import first_line

LARGE_TABLES = ("allocs", "stacks")
_LACKING = {"ranks": "clock_offset_ns IS NULL OR cfg IS NULL", "spans": "device_used_bound_bytes IS NULL"}
"""By table: which rows an older run left without a value. sql/older_runs/<table>.sql fills them."""
_BESIDE_DATABASE = r"regexp_replace(parse_dirpath(current_setting('temp_directory')), '\.tmp\?', '?')"
"""SQL for the folder of the database file. DuckDB puts .tmp before the first question mark, where parameters begin."""
_AS_GLOB = r"regexp_replace({}, '([\[*?])', '[\1]', 'g')"
"""SQL for a pattern that matches only the folder that the SQL expression in {} gives."""
_BYTES_A_THREAD = 2**20
"""Parquet files of one thread: DuckDB shares out 122,880 rows at a time, and starting more threads takes longer."""
_RANK = "regexp_extract(filename, '/rank=([0-9]+)/[^/]*$', 1)::BIGINT"
_PARTS_FOLDERS, _PARTS_PARAMETERS = "\\", "?"
"""Characters that DuckDB never takes as part of a name: the first in any path, the second in that of a database."""
_TYPES = {
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.string(): "VARCHAR",
}


def build(run_dir: Path) -> Path:
    """Write run.duckdb anew from the tables of a run; returns its path.

    Raises:
        ConfigError: `run_dir` is no run, one of a newer version, or one that cannot be read.
        DiskFull: no room for the file.
    """
    path = run_dir / DATABASE_FILE
    try:
        with run_file(path) as temporary:
            temporary.unlink(
                missing_ok=True
            )  # a process that was killed may have left it; DuckDB would open it
            _write(run_dir.absolute(), temporary.absolute())
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and "No space left" in str(error):
            raise disk_error("the driver", path, OSError(str(error))) from error
        raise _unreadable([run_dir], error) from error
    return path


def _write(run_dir: Path, target: Path) -> None:
    """Make the database in the folder of the run: DuckDB tries the views over files there when they are made."""
    folder = _plain(run_dir, _PARTS_FOLDERS + _PARTS_PARAMETERS)
    database = target if folder == run_dir else folder / DATABASE_FILE
    try:
        with duckdb.connect(str(database)) as connection:
            _fill(connection, run_dir, _BESIDE_DATABASE)
        if database != target:
            shutil.copyfile(database, target)
    finally:
        if database != target:
            database.unlink(missing_ok=True)


def what_clients_cannot(run_dir: Path) -> list[str]:
    """Lines for people on what other clients cannot do with run.duckdb in its present folder; most often none."""
    if _PARTS_FOLDERS not in str(run_dir.absolute()):
        return []
    return [
        f"DuckDB opens no database below a folder with a backslash in its name: {run_dir / DATABASE_FILE} is whole "
        "and can be opened once it is moved; ray-memprof can ask the run in its present folder"
    ]


def _plain(run_dir: Path, letters: str = _PARTS_FOLDERS) -> Path:
    """A folder with the run's tables and none of `letters` in its path: the run's own, or one with a link to them."""
    if not set(letters) & set(str(run_dir)):
        return run_dir
    # Views read the files whenever they are asked, so the link must stay until the process ends.
    folder = Path(tempfile.mkdtemp(prefix="ray-memprof-")).resolve()
    atexit.register(_remove, str(folder), os.getpid())
    os.symlink(run_dir / TABLES_DIR, folder / TABLES_DIR)
    return folder


@contextmanager
def open_run(
    run_dir: Path, only: str | None = None, *, shared_by: str = ""
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a run in memory, with the same tables and views, from its Parquet files; needs no run.duckdb, locks none.

    Args:
        run_dir: of the run.
        only: the SQL that will be asked: a table that it does not name stays empty, and a view that it does not name
            need not be there. This saves most of the time that opening takes.
        shared_by: SQL or names of questions. What they read of SHARED is computed now, once, and not anew wherever a
            question names it.

    Raises:
        ConfigError: `run_dir` is no run, one of a newer version, or one that cannot be read.
    """
    with duckdb.connect() as connection:
        with _reading([run_dir]):
            _use_few_threads(connection, [run_dir])
            _fill(connection, run_dir, _literal(str(_plain(run_dir.resolve()))), only)
            _share(connection, shared_by)
        yield connection


@contextmanager
def open_runs(
    run_dirs: Sequence[Path], only: str | None = None, *, shared_by: str = ""
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open several runs side by side: every table and view begins with the columns run_id and name of the run.

    The tables and views of each single run are also in a database of its own: run0, run1 and so on, in the order given.

    Args:
        run_dirs: of the runs.
        only: the SQL that will be asked of all together: of them, a table or view that it does not name is not made.
        shared_by: see open_run(), of each single run.

    Raises:
        ConfigError: one of them is no run, one of another version, or one that cannot be read.
    """
    with duckdb.connect() as connection:
        with _reading(run_dirs):
            _use_few_threads(connection, run_dirs)
            _fill_side_by_side(connection, run_dirs, only, shared_by)
        yield connection


def _use_few_threads(connection: duckdb.DuckDBPyConnection, run_dirs: Sequence[Path]) -> None:
    """No more threads than the files of these runs keep busy; for a small run a question takes a quarter less."""
    ((most,),) = connection.execute("SELECT current_setting('threads')").fetchall()
    left = most * _BYTES_A_THREAD
    for run_dir in run_dirs:
        for part in (run_dir / TABLES_DIR).rglob(f"*{PART_SUFFIX}"):
            with suppress(FileNotFoundError):  # of a run that is being recorded
                left -= part.stat().st_size
            if left <= 0:
                return
    connection.execute(f"SET threads = {max(1, most - left // _BYTES_A_THREAD)}")


def _share(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Compute what questions share: of a view, DuckDB plans and computes all anew at each place that names it."""
    read = named(text)
    for name in QUESTIONS:
        if name in SHARED and name in read:
            keep(connection, name, question(name))


def keep(connection: duckdb.DuckDBPyConnection, view: str, text: str) -> None:
    """Put the rows of `text` into a table in the place of a view, for whatever reads it."""
    connection.execute(f"CREATE TABLE {view}_rows AS\n{text}")
    connection.execute(f"DROP VIEW {view}")
    connection.execute(f"ALTER TABLE {view}_rows RENAME TO {view}")


def _fill_side_by_side(
    connection: duckdb.DuckDBPyConnection, run_dirs: Sequence[Path], only: str | None, shared_by: str
) -> None:
    for number, run_dir in enumerate(run_dirs):
        _add_run(connection, run_dir, f"run{number}", shared_by)
    asked = {*TABLES, *QUESTIONS} if only is None else named(only)
    for name in (*TABLES, *QUESTIONS):
        if name not in asked:
            continue
        columns = [row[0] for row in connection.execute(f"DESCRIBE run0.{name}").fetchall()]
        parts = " UNION ALL ".join(
            _of_run(f"run{number}.{name}", columns, run_dir) for number, run_dir in enumerate(run_dirs)
        )
        connection.execute(f"CREATE VIEW main.{name} AS {parts}")


@contextmanager
def _reading(run_dirs: Sequence[Path]) -> Iterator[None]:
    """Turn an error of DuckDB into a ConfigError in one line: the files are at fault, for no SQL of a user has run."""
    for run_dir in run_dirs:
        if not is_utf8(str(run_dir.resolve())):
            raise ConfigError(
                f"{str(run_dir)!r} cannot be read: its name is not UTF-8", hint="rename the folder"
            )
    try:
        yield
    except duckdb.Error as error:
        raise _unreadable(run_dirs, error) from error


def _unreadable(run_dirs: Sequence[Path], error: duckdb.Error) -> ConfigError:
    return ConfigError(
        f"{', '.join(map(str, run_dirs))} cannot be read: {first_line(error)}",
        hint="if it is a copy, copy the whole folder again",
    )


def is_utf8(text: str) -> bool:
    """Whether a text is UTF-8, as DuckDB needs it; Python keeps other bytes of arguments and names as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _add_run(connection: duckdb.DuckDBPyConnection, run_dir: Path, database: str, shared_by: str) -> None:
    """Put the tables and views of a run into a database of its own in memory; the current one stays current."""
    ((current,),) = connection.execute("SELECT current_database()").fetchall()
    connection.execute(f"ATTACH ':memory:' AS {database}")
    # A view looks for what it reads in the database in which it is made.
    connection.execute(f"USE {database}")
    _fill(connection, run_dir, _literal(str(_plain(run_dir.resolve()))))
    _share(connection, shared_by)
    connection.execute(f"USE {_quoted(current)}")


def _of_run(source: str, columns: Sequence[str], run_dir: Path) -> str:
    """A SELECT that adds to every row which run it is from."""
    listed = list(map(_quoted, columns))
    if "run_id" not in columns:  # a table or view about runs has the column already
        folder = run_dir.resolve()
        # A span has a name too: there the column for the run's name is run_name.
        title = "run_name" if "name" in columns else "name"
        facts = (f"{_literal(folder.name)} AS run_id", f"{_literal(folder.parent.name)} AS {title}")
        listed = [*facts, *listed]
    return f"SELECT {', '.join(listed)} FROM {source}"


def query(run_dir: Path, name: str) -> pa.Table:
    """The rows of a question.

    Raises:
        ConfigError: no such question, or no such run.
    """
    text = question(name)
    with open_run(run_dir, text, shared_by=text) as connection:
        return connection.sql(text).to_arrow_table()


def _fill(connection: duckdb.DuckDBPyConnection, run_dir: Path, folder: str, only: str | None = None) -> None:
    """Make every table and view; `folder` is the run folder as an SQL expression, for views over files."""
    if not (run_dir / TABLES_DIR).is_dir():
        raise ConfigError(
            f"{run_dir} is no run: it has no folder {TABLES_DIR}",
            hint="a run folder is profiler_logs/<name>/<run_id>, or profiler_logs/<name>/latest",
        )
    wanted = {*TABLES, *QUESTIONS} if only is None else {"runs", *named(only)}
    if only is None or _definitions.cache_info().currsize:
        _copy_definitions(connection)
    else:  # one question of one run is asked, most likely: few views take less time than all
        _define(connection, wanted, has_comments=False)
    for table in TABLES.values():
        if table.name in wanted:
            _load(connection, run_dir, table, folder, has_comments=only is None)
    _insert_standing(connection, run_dir)
    # fetchall, not fetchone: a result that is not fetched to its end would disturb the next statement.
    ((newest,),) = connection.execute("SELECT MAX(schema_version) FROM runs").fetchall()
    if newest is not None and newest < OLDEST_SCHEMA_VERSION:
        raise ConfigError(
            f"{run_dir} was recorded with schema version {newest}; this program reads {OLDEST_SCHEMA_VERSION} "
            f"to {SCHEMA_VERSION}",
            hint="use the ray_memprof that recorded it",
        )
    if newest is not None and newest > SCHEMA_VERSION:
        raise ConfigError(
            f"{run_dir} was recorded with schema version {newest}; this program knows {SCHEMA_VERSION}",
            hint="use a newer ray_memprof",
        )
    _complete(connection, run_dir, folder, wanted)


def _define(connection: duckdb.DuckDBPyConnection, wanted: set[str], *, has_comments: bool) -> None:
    """Make every table, without rows, every macro, and the wanted views."""
    for table in TABLES.values():
        listed = ", ".join(f"{_quoted(name)} {kind}" for name, kind in _columns(table).items())
        connection.execute(f"CREATE TABLE {table.name} ({listed})")
        if has_comments:
            _comment(connection, table, "TABLE")
    for name in MACROS:
        connection.execute(macro(name))
    for name in QUESTIONS:
        if name in wanted:
            connection.execute(f"CREATE VIEW {name} AS\n{question(name)}")
            if has_comments:
                connection.execute(f"COMMENT ON VIEW {name} IS {_literal(headline(name))}")


def _comment(connection: duckdb.DuckDBPyConnection, table: Table, kind: str) -> None:
    """Say what a row and each column is."""
    said = [f"COMMENT ON {kind} {table.name} IS {_literal(f'One row = {table.row}')}"]
    for column in table.columns:
        unit = f" ({column.unit})" if column.unit else ""
        name = f"{table.name}.{_quoted(column.name)}"
        said.append(f"COMMENT ON COLUMN {name} IS {_literal(column.meaning + unit)}")
    connection.execute(";\n".join(said))


def _copy_definitions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every table, macro and view, with comments. DuckDB takes 0.3 s to make them and 0.01 s to copy them."""
    try:
        path = _definitions()
    except (OSError, duckdb.IOException):  # no room for a file
        _define(connection, {*TABLES, *QUESTIONS}, has_comments=True)
        return
    ((current,),) = connection.execute("SELECT current_database()").fetchall()
    connection.execute(f"ATTACH {_literal(str(path))} AS definitions (READ_ONLY)")
    connection.execute(f"COPY FROM DATABASE definitions TO {_quoted(current)} (SCHEMA)")
    connection.execute("DETACH definitions")


@functools.cache
def _definitions() -> Path:
    """A database of a run without rows; made once in a process."""
    folder = tempfile.mkdtemp(prefix="ray-memprof-")
    atexit.register(_remove, folder, os.getpid())
    path = Path(folder) / "definitions.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.begin()  # else each statement would wait for the disk
        _define(connection, {*TABLES, *QUESTIONS}, has_comments=True)
        connection.commit()
    return path


def _remove(folder: str, pid: int) -> None:
    """Remove a folder, unless this is a forked child of the process that made it."""
    if pid == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _insert_standing(connection: duckdb.DuckDBPyConnection, run_dir: Path) -> None:
    """Add the row of the table runs for a run that has not ended: its driver writes that row only at the end."""
    if connection.execute("SELECT COUNT(*) FROM runs").fetchall() != [(0,)]:
        return
    row = run_row(run_dir)
    if row is not None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", list(row.values()))


def _complete(connection: duckdb.DuckDBPyConnection, run_dir: Path, folder: str, wanted: set[str]) -> None:
    """Fill the columns that an older run did not record, as far as its other columns tell."""
    for table, condition in _LACKING.items():
        asked = f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {condition})"
        if connection.execute(asked).fetchall() == [(False,)]:
            continue
        if table == "spans" and "samples" not in wanted:
            _load(connection, run_dir, TABLES["samples"], folder, has_comments=False)
        connection.execute(_of_older_runs(table))
    if "ledger" in wanted:  # no newer run has an account below zero, which is all that this looks for
        connection.execute(_of_older_runs("ledger"))


def _of_older_runs(table: str) -> str:
    """The SQL that completes a table of an older run."""
    return (SQL_DIR / "older_runs" / f"{table}.sql").read_text(encoding="utf-8")


def _load(
    connection: duckdb.DuckDBPyConnection, run_dir: Path, table: Table, folder: str, *, has_comments: bool
) -> None:
    """Put the rows of a run into a table that is there, or a view over its files in the place of a large one."""
    pattern = (
        f"{table.name}/*{PART_SUFFIX}" if table.name == "runs" else f"{table.name}/rank=*/*{PART_SUFFIX}"
    )
    if next((run_dir / TABLES_DIR).glob(pattern), None) is None:
        return
    columns = _columns(table)
    if table.name not in LARGE_TABLES:
        _insert(connection, table.name, columns, _files(folder, pattern))
        return
    connection.execute(f"DROP TABLE {table.name}")
    # The files of an older run may lack a column, which a view cannot add: then this raises ConfigError.
    _view_files(connection, run_dir, table.name, columns, _files(folder, pattern))
    if has_comments:
        _comment(connection, table, "VIEW")


def _view_files(
    connection: duckdb.DuckDBPyConnection, run_dir: Path, table: str, columns: dict[str, str], source: str
) -> None:
    """Make a view over Parquet files. They must have every column: a view cannot add a missing one."""
    # Other views read it by these types, whatever the files have.
    listed = ", ".join(f"{_quoted(name)}::{kind} AS {_quoted(name)}" for name, kind in columns.items())
    try:
        connection.execute(
            f"CREATE VIEW {table} AS SELECT {listed} FROM (SELECT {_read(columns)} FROM {source})"
        )
    except duckdb.BinderException as error:
        found = _found(connection, source)
        lacking = [name for name in columns if name not in found]
        if not lacking:
            raise
        raise ConfigError(
            f"{run_dir} was recorded by an older version: its table {table} has no column {', '.join(lacking)}",
            hint="use the ray_memprof that recorded it",
        ) from error


def _insert(connection: duckdb.DuckDBPyConnection, table: str, columns: dict[str, str], source: str) -> None:
    """Copy the columns that the files have; columns that an older version did not write stay null."""
    found = _found(connection, source)
    known = [name for name in columns if name in found]
    connection.execute(f"INSERT INTO {table} BY NAME SELECT {_read(known)} FROM {source}")


def _found(connection: duckdb.DuckDBPyConnection, source: str) -> set[str]:
    """The columns that can be read from files."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    return {"rank", *(row[0] for row in described)}


def _read(columns: Iterable[str]) -> str:
    """What to select from files; the rank is only in the name of their folder."""
    return ", ".join(f"{_RANK} AS rank" if name == "rank" else _quoted(name) for name in columns)


def _columns(table: Table) -> dict[str, str]:
    """DuckDB's types, by column; rank comes from the folder's name, and only the table runs has no rank."""
    types = {}
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        types[field.name] = _TYPES[kind]
    return types if table.name == "runs" else {"rank": "BIGINT", **types}


def _files(folder: str, pattern: str) -> str:
    """SQL for the rows of a table's Parquet files, with the file names; `folder`: the run folder as SQL expression."""
    below = _literal(f"/{TABLES_DIR}/{pattern}")
    # Without hive_partitioning: it would make a column of every folder key=value above the run.
    options = "union_by_name = true, hive_partitioning = false, filename = true"
    listed = f"read_parquet({_AS_GLOB.format(folder)} || {below}, {options})"
    return f"{listed} WHERE starts_with(filename, {folder} || '/')"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
