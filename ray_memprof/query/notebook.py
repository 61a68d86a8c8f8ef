"""Runs and their answers for Python and notebooks; the package offers runs() and open_run() themselves.

    import ray_memprof

    run = ray_memprof.open_run("ulysses4")
    run.ask("peak_by_rank").to_pandas()
    ray_memprof.runs("ulysses*").sql("SELECT run_name, rank, MAX(step) FROM spans GROUP BY ALL")

In a notebook, a run and an answer show themselves as tables. Each call reads the tables anew and holds no file open.
Imports neither torch nor Ray.
"""

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from ray_memprof.errors import ConfigError, RunError
from ray_memprof.query.answers import MOST_ROWS, Shown, shown_columns, table_text
from ray_memprof.query.ask import ask
from ray_memprof.query.questions import QUESTIONS, headline
from ray_memprof.query.run_table import run_columns
from ray_memprof.store.find_run import find_run, runs_folder
from ray_memprof.store.run_list import ListedRun, listed, listed_runs
from ray_memprof.wording import visible


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """The rows of an answer. Whatever takes an Arrow stream (polars, pandas, DuckDB) takes it as it is."""

    table: pa.Table
    """The rows as an Arrow table; bytes are integers, times are ns."""

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame. Raises ModuleNotFoundError where pandas is not installed."""
        _need("pandas")
        return self.table.to_pandas()

    def to_polars(self) -> Any:
        """The rows as a polars.DataFrame. Raises ModuleNotFoundError where polars is not installed."""
        return _need("polars").from_arrow(self.table)

    def to_pylist(self) -> list[dict[str, Any]]:
        """The rows as dictionaries."""
        return self.table.to_pylist()  # type: ignore[no-any-return]

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return table_text(self.table)

    def _repr_html_(self) -> str:
        more = len(self) - MOST_ROWS
        note = f"<p>{more:,} more rows: to_pylist() and .table have all of them</p>" if more > 0 else ""
        return _html_table(shown_columns(self.table.slice(0, MOST_ROWS))) + note


@dataclass(frozen=True, slots=True)
class Run:
    """A run in its folder, finished or not."""

    path: Path

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.path.parent.name

    @property
    def run_id(self) -> str:
        """Its id, which no other run has."""
        return self.path.name

    @property
    def facts(self) -> ListedRun:
        """Its status, ranks, times, peaks and size, as they are now."""
        return listed(self.path)

    def ask(self, question: str) -> Answer:
        """The answer to a question, by its name; questions() has the names.

        Raises:
            ConfigError: there is no such question or table.
        """
        return self.sql(question)

    def sql(self, statement: str) -> Answer:
        """The rows of one SQL statement that reads; every table and every question is a table in it.

        Raises:
            ConfigError: DuckDB refuses it, or it is no question.
        """
        with _hints():
            return Answer(ask(statement, [self.path]))

    def _repr_html_(self) -> str:
        return Runs((self.facts,))._repr_html_()


@dataclass(frozen=True, slots=True, repr=False)
class Runs(Sequence[Run]):
    """Several runs, the newest first; a slice of them is one too."""

    facts: tuple[ListedRun, ...]
    """What is known of each without its tables."""

    if TYPE_CHECKING:  # typing keeps overloads, and with them DuckDB, beyond the end of the interpreter

        @overload
        def __getitem__(self, index: int) -> Run: ...

        @overload
        def __getitem__(self, index: slice) -> "Runs": ...

    def __getitem__(self, index: int | slice) -> "Run | Runs":
        return Runs(self.facts[index]) if isinstance(index, slice) else Run(self.facts[index].path)

    def __len__(self) -> int:
        return len(self.facts)

    def ask(self, question: str) -> Answer:
        """The answer of every run to a question; each row begins with run_id and name. Raises as that of one run."""
        return self.sql(question)

    def sql(self, statement: str) -> Answer:
        """The rows of one SQL statement over all these runs, whose tables begin with run_id and name.

        Raises:
            ConfigError: there is no run, DuckDB refuses the statement, or it is no question.
        """
        if not self.facts:
            raise ConfigError("there is no run to ask")
        with _hints():
            return Answer(ask(statement, [one.path for one in self.facts], is_named=True))

    def to_arrow(self) -> pa.Table:
        """A row for each run: name, run_id, path, status, peaks in bytes, age_s and so on."""
        return pa.Table.from_pylist([one.facts() for one in self.facts])

    def __repr__(self) -> str:
        return "".join(f"{one.name}/{one.run_id}: {one.status}\n" for one in self.facts) or "no runs\n"

    def _repr_html_(self) -> str:
        if not self.facts:
            return "<p>no runs</p>"
        return _html_table(run_columns(self.facts))


def runs(pattern: str = "*", output_dir: str | Path | None = None) -> Runs:
    """The runs whose name matches a pattern, the newest first.

    Args:
        pattern: of names; * stands for any letters.
        output_dir: where runs are kept; None: RAY_MEMPROF_DIR of the environment, else profiler_logs.
    """
    folder = runs_folder(None if output_dir is None else Path(output_dir))
    return Runs(tuple(one for one in listed_runs(folder) if fnmatchcase(one.name, pattern)))


def open_run(run: str | Path = "latest", output_dir: str | Path | None = None) -> Run:
    """One run.

    Args:
        run: its name (the newest of that name), <name>/<run_id>, its id, its folder, a file in it, or latest.
        output_dir: as for runs().

    Raises:
        ConfigError: there is no such run.
    """
    with _hints():
        return Run(find_run(str(run), None if output_dir is None else Path(output_dir)))


def questions() -> dict[str, str]:
    """What can be asked by name, each with what it asks."""
    return {name: headline(name) for name in QUESTIONS}


@contextmanager
def _hints() -> Iterator[None]:
    """Show the hint of an error below it, as the command line does."""
    try:
        yield
    except RunError as error:
        if error.hint:
            error.add_note(f"hint: {error.hint}")
        raise


def _need(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install {package}", name=package
        ) from error


def _html_table(columns: Sequence[Shown]) -> str:
    """Columns as a table of HTML that needs no style of its own."""

    def row(tag: str, cells: Sequence[str]) -> str:
        sides = ["right" if column.is_number else "left" for column in columns]
        texts = [html.escape(visible(cell)) for cell in cells]
        made = (
            f'<{tag} style="text-align: {side}">{text}</{tag}>'
            for side, text in zip(sides, texts, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = [row("td", cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    head = row("th", [column.name for column in columns])
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
