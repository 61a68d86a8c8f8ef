"""Questions to one run or several, by name or in SQL.

    $ ray-memprof query peak_by_rank                              # of the newest run
    $ ray-memprof query "SELECT rank, MAX(reserved_peak_bytes) FROM spans GROUP BY rank" baseline
    $ ray-memprof query imbalance --runs 'profiler_logs/*/latest' --format csv > imbalance.csv

With --runs every row says which run it is from (run_id, name). answers.py writes the rows; this module writes no file.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from ray_memprof.errors import ConfigError
from ray_memprof.query import database, questions
from ray_memprof.query.guard import Bounds, guarded
from ray_memprof.store.find_run import find_run, run_at, runs_folder
from ray_memprof.store.run_files import TABLES_DIR
from ray_memprof.store.schema import TABLES
from ray_memprof.wording import first_line


def runs_of(pattern: str, output_dir: Path | None = None) -> list[Path]:
    """The run folders that a pattern of the shell matches, each once, sorted by name.

    Args:
        pattern: of paths, as find_run() takes them. If it matches none, it is one of names or of ids of runs.
        output_dir: where names are looked for; None: as runs_folder() has it.

    Raises:
        ConfigError: the pattern matches none.
    """
    folder = glob.escape(str(runs_folder(output_dir)))
    for one in (pattern, f"{folder}/{pattern}", f"{folder}/*/{pattern}"):
        # A folder with exactly this name is meant, even if the name has characters that are special in a pattern.
        paths = [one] if Path(one, TABLES_DIR).is_dir() else sorted(glob.glob(one))
        runs = dict.fromkeys(run for path in paths if (run := run_at(Path(path))) is not None)
        if runs:
            return list(runs)
    raise ConfigError(
        f"--runs {pattern!r} matches no run folder",
        hint="put it in quotes, so that the shell leaves it alone: --runs 'profiler_logs/*/latest'",
    )


def ask(
    text: str, run_dirs: Sequence[Path], *, is_named: bool = False, bounds: Bounds | None = None
) -> pa.Table:
    """The rows that a question, a table or an SQL statement returns for the given runs.

    Args:
        text: the name of a question or a table, or one statement.
        run_dirs: the run folders.
        is_named: begin the rows of a single run with run_id and name, too; rows of several runs always do.
        bounds: the SQL may read nothing but this single run, and its answer has bounds; None: a person asks.

    Raises:
        ConfigError: no such question, no such run, SQL that DuckDB refuses, or SQL that took too long.
    """
    if not database.is_utf8(text):
        raise ConfigError("the SQL is refused: it is not UTF-8", hint="write the letter as chr(number)")
    name = text.strip()
    is_name = re.fullmatch(r"\w+", name) is not None
    if is_name and name not in TABLES:
        questions.question(name)  # refuses a name that is no question
    is_apart = len(run_dirs) == 1 and not is_named
    sql = text
    if is_name:
        # The question's own text and not a FROM of its view: only the text is sure to keep the order of the rows.
        sql = questions.question(name) if is_apart and name in questions.QUESTIONS else f"FROM {name}"
    only = sql if is_name else None
    # SQL of one's own may be about a single rank, of which DuckDB then computes no more than it must.
    shared_by = sql if is_name and bounds is None else ""
    runs = (
        database.open_run(run_dirs[0], only, shared_by=shared_by)
        if is_apart
        else database.open_runs(run_dirs, only, shared_by=shared_by)
    )
    with runs as connection:
        try:
            if bounds is None:
                return _statement(connection, sql).to_arrow_table()
            with guarded(connection, sql, bounds):
                return _statement(connection, sql).limit(bounds.most_rows).to_arrow_table()
        except duckdb.Error as error:
            raise _refused(error) from error


def _statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The single statement of `sql`; it must be one that reads, because nothing may change the tables."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise ConfigError("there is no SQL to run", hint="begin with SELECT, WITH or FROM")
    if len(statements) > 1:
        raise ConfigError(f"{len(statements)} statements are too many: one at a time")
    (statement,) = statements
    is_question = statement.expected_result_type == [duckdb.ExpectedResultType.QUERY_RESULT]
    # DuckDB makes several statements of a PIVOT; the last one returns rows.
    if not is_question and statement.type != duckdb.StatementType.MULTI:
        raise ConfigError(f"{statement.type.name} is no question", hint="begin with SELECT, WITH or FROM")
    return connection.sql(sql)


def _refused(error: duckdb.Error) -> ConfigError:
    """An error with DuckDB's message in one line, and with DuckDB's own suggestion as the hint."""
    lines = [line.strip() for line in str(error).splitlines()]
    suggested = next((line for line in lines if line.startswith(("Did you mean", "Candidate"))), "")
    return ConfigError(
        f"the SQL is refused: {first_line(error)}",
        hint=suggested
        or "`ray-memprof query --list` lists the questions and tables; docs/schema.md has the columns",
    )


def began_ns(run_dirs: Sequence[Path]) -> int | None:
    """When the recording of the run began, in nanoseconds since 1970: where the pictures of its report begin, too.

    None: there are several runs, or nothing was recorded.
    """
    if len(run_dirs) != 1:
        return None
    rows = database.query(run_dirs[0], "time_slices").to_pylist()
    return rows[0]["first_ns"] if rows else None


def sql_of(name: str) -> str:
    """The SQL of a question, its header included.

    Raises:
        ConfigError: there is no such question.
    """
    name = name.strip()
    if name in TABLES:
        raise ConfigError(f"{name} is a table, not a question", hint=f"a row of it is {TABLES[name].row}")
    return questions.question(name)


def question_lines() -> list[str]:
    """Every question with what it asks, then every table with what one row of it is."""
    width = max(map(len, (*questions.QUESTIONS, *TABLES)))
    lines = [f"{name:<{width}}  {questions.headline(name)}" for name in questions.QUESTIONS]
    return [*lines, "", *(f"{table.name:<{width}}  one row = {table.row}" for table in TABLES.values())]


def find_runs(run: str | None, pattern: str | None, output_dir: Path | None = None) -> list[Path]:
    """The run folders that the command line names: one run, or all runs that a pattern matches.

    Args:
        run: as find_run() takes it; None: the newest.
        pattern: as runs_of() takes it; None: a single run is asked.
        output_dir: where names are looked for; None: as runs_folder() has it.

    Raises:
        ConfigError: both are given, or there is no such run.
    """
    if pattern is None:
        return [find_run(run or "latest", output_dir)]
    if run is not None:
        raise ConfigError(f"either a run ({run}) or --runs, not both")
    return runs_of(pattern, output_dir)
