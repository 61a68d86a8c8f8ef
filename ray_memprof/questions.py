"""Questions by name: one file of sql/ each, in an order in which every one finds those that it reads.

    question("peak_by_rank")              # its SQL, the header included
    rows_of(connection, "imbalance")      # its rows as dicts, of an open run

Takes the files of sql/ and its macros; leaves nothing.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.schema import TABLES

SQL_DIR = Path(__file__).parent / "sql"
QUESTIONS = (
    "component_visits",
    "base_memory",
    "peak_event",
    "peak_by_rank",
    "peak_by_stage",
    "activation_by_step",
    "activation_by_stage",
    "model_switching",
    "fragmentation",
    "imbalance_by_component",
    "imbalance",
    "books",
    "books_at_peak",
    "replay_check",
    "collectives_summary",
    "stage_bands",
    "time_slices",
    "timeline",
    "timeline_spread",
    "vae_cache",
    "categories_over_time",
    "timeline_by_account",
    "steps",
    "alive_at_peak",
    "largest_allocations",
    "churn",
    "device_calls",
    "host_memory",
    "activation_by_block",
    "run_overview",
    "measures",
    "memory_events",
)
"""Files of sql/, in an order in which each finds the views that it reads."""
MACROS = ("is_stage", "tensors_alive", "peak_moments", "rank_peaks", "peak_places")
"""Files of sql/macros/: what several questions share."""


def question(name: str) -> str:
    """The SQL of a question, its header included.

    Raises:
        ConfigError: there is no such file.
    """
    if name not in QUESTIONS:
        near = difflib.get_close_matches(name, QUESTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(QUESTIONS)}"
        raise ConfigError(f"there is no question {name!r}", hint=hint)
    return (SQL_DIR / f"{name}.sql").read_text(encoding="utf-8")


def headline(name: str) -> str:
    """What a question asks, in one line: the first sentence of its header."""
    text = " ".join(
        line.removeprefix("--").strip() for line in question(name).split("-- One row")[0].splitlines()
    )
    return text.strip()


def macro(name: str) -> str:
    """The SQL that makes a macro, its header included."""
    return (SQL_DIR / "macros" / f"{name}.sql").read_text(encoding="utf-8")


def named(text: str) -> set[str]:
    """What `text` reads, and what that reads in turn; too much where a column is called like a table."""
    names = {*TABLES, *QUESTIONS, *MACROS}
    found: set[str] = set()
    waiting = [text]
    while waiting:
        words = set(re.findall(r"\w+", re.sub("--.*", "", waiting.pop()))) & names - found
        found |= words
        waiting += [question(word) for word in words if word in QUESTIONS]
        waiting += [macro(word) for word in words if word in MACROS]
    return found


def rows_of(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    """The rows of a question that is asked of an open run.

    Raises:
        ConfigError: there is no question of that name.
    """
    return connection.sql(question(name)).to_arrow_table().to_pylist()  # type: ignore[no-any-return]
