"""What is too long for a conversation is cut, at a row where it can be, and the last line says so."""

import json

import pyarrow as pa
import pytest

from ray_memprof.assistant.bounded import MOST_BYTES, cut_text, rows_text
from ray_memprof.query.answers import table_text

ROWS = pa.table({"rank": [0, 1, 2], "peak_bytes": [2**30, 2**31, 3 * 2**30]})
NO_ROWS = ROWS.slice(0, 0)
MORE = "there are more. SQL with WHERE, LIMIT or GROUP BY, or fewer columns, gets the others."


def test_no_rows_are_no_rows() -> None:
    assert rows_text(NO_ROWS, most_rows=5, form="table") == table_text(NO_ROWS)
    assert rows_text(NO_ROWS, most_rows=5, form="csv") == "rank,peak_bytes\n"
    assert json.loads(rows_text(NO_ROWS, most_rows=5, form="json")) == []


def test_all_rows_are_what_the_command_prints() -> None:
    assert rows_text(ROWS, most_rows=3, form="table") == table_text(ROWS)
    assert (
        rows_text(ROWS, most_rows=3, form="csv")
        == "rank,peak_bytes\n0,1073741824\n1,2147483648\n2,3221225472\n"
    )
    assert json.loads(rows_text(ROWS, most_rows=3, form="json")) == ROWS.to_pylist()


def test_a_row_too_many_is_left_out_and_told() -> None:
    text = rows_text(ROWS, most_rows=2, form="csv")
    assert text == f"rank,peak_bytes\n0,1073741824\n1,2147483648\ncut after 2 rows (max_rows is 2): {MORE}\n"


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_rows_that_take_too_many_bytes_are_cut_at_a_row(form: str) -> None:
    rows = pa.table({"n": range(100), "text": ["x" * 1000] * 100})
    text = rows_text(rows, most_rows=100, form=form)  # type: ignore[arg-type]
    body, last = text.removesuffix("\n").rsplit("\n", 1)
    num = int(last.split()[2])
    assert last == f"cut after {num} rows (more than 32,768 bytes): {MORE}"
    assert len(body.encode()) <= MOST_BYTES
    assert body.count("x" * 1000) == num and num >= 25


def test_a_single_row_that_is_too_long_is_cut_within() -> None:
    text = rows_text(pa.table({"text": ["\u00e9" * 40_000]}), most_rows=1, form="csv")
    letters = (MOST_BYTES - len("text\n")) // 2  # of two bytes each
    left = 80_006 - len("text\n") - 2 * letters
    assert text == "text\n" + "\u00e9" * letters + f"\ncut: {left:,} of 80,006 bytes are left out.\n"


def test_a_text_that_fits_stays_and_a_longer_one_loses_its_last_lines() -> None:
    assert cut_text("") == ""
    assert cut_text("a\nb\n") == "a\nb\n"
    lines = "".join(f"line {number:04}\n" for number in range(5_000))
    text = cut_text(lines)
    kept = text.partition("cut: ")[0]
    assert lines.startswith(kept) and MOST_BYTES - 10 < len(kept) <= MOST_BYTES
    assert text == f"{kept}cut: {50_000 - len(kept):,} of 50,000 bytes are left out.\n"


def test_control_characters_are_written_out() -> None:
    assert cut_text("\x1b[2J\n") == "\\x1b[2J\n"
    assert "\\x1b" in rows_text(pa.table({"a": ["\x1b[2J"]}), most_rows=1, form="table")
