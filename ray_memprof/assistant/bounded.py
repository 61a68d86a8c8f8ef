"""Answers that fit into a conversation: at most so many rows and bytes, and a last line that says what was left out.

    rows_text(table, most_rows=50, form="table")
    cut_text("long ...")

Takes Arrow tables with one row more than may be shown, if there are more; writes no file that stays.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ray_memprof.query.answers import MOST_ROWS, Form, table_text, write_answer
from ray_memprof.wording import visible

if TYPE_CHECKING:
    import pyarrow as pa

MOST_BYTES = 32 * 2**10
"""The most bytes of an answer, its last line left out: about 10,000 tokens."""
TextForm = Literal["table", "csv", "json"]


def rows_text(rows: "pa.Table", *, most_rows: int, form: TextForm, began_ns: int | None = None) -> str:
    """The first rows as text, as many as fit, and whether there are more.

    Args:
        rows: at least one more than `most_rows`, if there are as many.
        most_rows: at most MOST_ROWS of query/answers.py, which is what a table for people shows.
        form: table has sizes and times with their units; csv and json have them exactly.
        began_ns: when the recording of the run began: moments in a table are told from there on.
    """
    assert 0 < most_rows <= MOST_ROWS
    shown = rows.slice(0, most_rows)
    text = _written(shown, form, began_ns)
    while len(text.encode()) > MOST_BYTES and shown.num_rows > 1:
        # A little less than would fit on the average, so that few attempts are enough.
        fits = shown.num_rows * MOST_BYTES // len(text.encode())
        shown = shown.slice(0, max(1, min(fits, shown.num_rows - 1)))
        text = _written(shown, form, began_ns)
    if shown.num_rows == rows.num_rows:
        return cut_text(text)
    why = f"max_rows is {most_rows}" if shown.num_rows == most_rows else f"more than {MOST_BYTES:,} bytes"
    return f"{cut_text(text)}cut after {shown.num_rows} rows ({why}): there are more. {_HINT}\n"


_HINT = "SQL with WHERE, LIMIT or GROUP BY, or fewer columns, gets the others."


def _written(rows: "pa.Table", form: TextForm, began_ns: int | None) -> str:
    if form == "table":
        return table_text(rows, began_ns=began_ns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        write_answer(rows, Form(form), path)
        return visible(path.read_text(encoding="utf-8"))


def cut_text(text: str) -> str:
    """The lines of `text` that fit, and a last line that says how much does not; `text` itself if all of it fits."""
    text = visible(text)
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    kept = data[:MOST_BYTES]
    lines = kept[: kept.rfind(b"\n") + 1]
    if len(lines) > MOST_BYTES // 2:  # else a line that is too long is cut within
        kept = lines
    shown = kept.decode(errors="ignore")
    end = "" if shown.endswith("\n") else "\n"
    left = len(data) - len(shown.encode())
    return f"{shown}{end}cut: {left:,} of {len(data):,} bytes are left out.\n"
