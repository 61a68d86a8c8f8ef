"""Questions by name: each is a file of sql/<topic>/, and each comes after the questions that it reads.

    question("peak_by_rank")              # its SQL, with the header
    rows_of(connection, "imbalance")      # its rows as dicts; the connection is to an open run

Takes the files of sql/ and its macros; leaves nothing.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.store.schema import TABLES
from ray_memprof.wording import did_you_mean

SQL_DIR = Path(__file__).parent / "sql"
TOPICS = ("peaks", "tensors", "device", "time", "runs")
"""Folders of sql/ with a file for each question; macros/ has what questions share, older_runs/ what completes rows."""


def _in_order(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by name, each after the files that it reads."""
    texts = {path.stem: _code(path.read_text(encoding="utf-8")) for path in paths}
    files = {path.stem: path for path in paths}
    ordered: dict[str, Path] = {}

    def place(name: str) -> None:
        if name in ordered:
            return
        for other in sorted(_words(texts[name]) & texts.keys() - {name}):
            place(other)
        ordered[name] = files[name]

    for name in files:
        place(name)
    return ordered


def _code(text: str) -> str:
    return re.sub("--.*", "", text)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


_FILES = _in_order([path for topic in TOPICS for path in sorted((SQL_DIR / topic).glob("*.sql"))])
_MACRO_FILES = _in_order(sorted((SQL_DIR / "macros").glob("*.sql")))
QUESTIONS = tuple(_FILES)
"""Names of all questions, by topic, each after the questions whose views it reads."""
MACROS = tuple(_MACRO_FILES)
"""Names of the macros, which several questions share."""
SHARED = (
    "activation_by_step",
    "base_memory",
    "books_at_peak",
    "component_visits",
    "fragmentation",
    "imbalance_by_component",
    "peak_by_rank",
    "peak_event",
    "time_slices",
)
"""Questions that others read, whose answers have few rows however many events there are."""
EVERY_QUESTION = " ".join(QUESTIONS)
"""For database.open_run(), where most of them will be asked."""


def question(name: str) -> str:
    """The SQL of a question, its header included.

    Raises:
        ConfigError: there is no such question.
    """
    if name not in QUESTIONS:
        hint = did_you_mean(name, QUESTIONS, otherwise=f"there are {', '.join(QUESTIONS)}")
        raise ConfigError(f"there is no question {name!r}", hint=hint)
    return _FILES[name].read_text(encoding="utf-8")


def headline(name: str) -> str:
    """What a question asks, in one line: its header up to "One row"."""
    text = " ".join(
        line.removeprefix("--").strip() for line in question(name).split("-- One row")[0].splitlines()
    )
    return text.strip()


def macro(name: str) -> str:
    """The SQL that makes a macro, its header included."""
    return _MACRO_FILES[name].read_text(encoding="utf-8")


def named(text: str) -> set[str]:
    """The tables, questions and macros that `text` reads, also through others; too many if a column has such a name."""
    names = {*TABLES, *QUESTIONS, *MACROS}
    found: set[str] = set()
    waiting = [text]
    while waiting:
        words = _words(_code(waiting.pop())) & names - found
        found |= words
        waiting += [question(word) for word in words if word in QUESTIONS]
        waiting += [macro(word) for word in words if word in MACROS]
    return found


def rows_of(
    connection: duckdb.DuckDBPyConnection, name: str, ranks: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The rows of a question that is asked of an open run, in its order.

    Args:
        connection: to the run.
        name: of the question.
        ranks: only rows of these ranks; nothing is computed for the others. None: of all.

    Raises:
        ConfigError: there is no question of that name.
    """
    text = question(name)
    if ranks is None:
        return fetched(connection, text)
    listed = ", ".join(map(str, ranks))
    return fetched(connection, f"SELECT * FROM ({text}\n) WHERE rank IN ({listed})") if ranks else []


def fetched(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The rows that `sql` returns."""
    # Not connection.sql(): it looks up all that the SQL names once more, which takes a third of a short answer's time.
    answer = connection.execute(sql)
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
