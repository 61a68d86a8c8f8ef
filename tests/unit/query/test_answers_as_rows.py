"""Rows for people and for programs: every type that SQL can make, every form, and where they go."""

import errno
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from ray_memprof.errors import ConfigError, DiskFull
from ray_memprof.query.answers import (
    MOST_ROWS,
    Form,
    Shown,
    cell,
    columns_text,
    has_moments,
    table_text,
    write_answer,
    write_text,
)
from ray_memprof.store.whole_file import whole_file
from ray_memprof.wording import number_text

Read = Callable[[], str]


def rows_of(sql: str) -> pa.Table:
    with duckdb.connect() as connection:
        return connection.sql(sql).to_arrow_table()


EVERY_TYPE = rows_of(
    """
    SELECT 1::BIGINT AS whole, 2.5::DOUBLE AS share, 'nan'::DOUBLE AS nothing, 'inf'::FLOAT AS endless,
        SUM(3::BIGINT) AS total_bytes, 1.25::DECIMAL(5, 2) AS decimal, 'a,"b"' AS text, NULL AS empty, true AS is_so,
        [1, 2] AS list, {'key': 1} AS struct, MAP {'key': 2} AS map, INTERVAL 1 DAY AS days, 'x'::BLOB AS raw,
        DATE '2026-01-02' AS day
    """
)


def test_no_rows(tmp_path: Path) -> None:
    empty = EVERY_TYPE.slice(0, 0).select(["whole", "text"])
    for form in Form:
        write_answer(empty, form, tmp_path / form.value)
    assert (tmp_path / "table").read_text().splitlines()[0].split() == ["whole", "text"]
    assert (tmp_path / "csv").read_text() == "whole,text\n"
    assert json.loads((tmp_path / "json").read_text()) == []
    assert parquet.read_table(tmp_path / "parquet").num_rows == 0


def test_every_type_has_a_form_in_json(tmp_path: Path) -> None:
    write_answer(EVERY_TYPE, Form.JSON, tmp_path / "rows")
    assert json.loads((tmp_path / "rows").read_text()) == [
        {
            "whole": 1, "share": 2.5, "nothing": None, "endless": None, "total_bytes": 3, "decimal": 1.25,
            "text": 'a,"b"', "empty": None, "is_so": True, "list": [1, 2], "struct": {"key": 1}, "map": {"key": 2},
            "days": "1 day", "raw": "x", "day": "2026-01-02",
        }
    ]  # fmt: skip


def test_every_type_has_a_form_in_csv_and_parquet(tmp_path: Path) -> None:
    write_answer(EVERY_TYPE, Form.CSV, tmp_path / "it's.csv")
    head, row = (tmp_path / "it's.csv").read_text().splitlines()
    assert head.split(",") == EVERY_TYPE.column_names
    assert row == '1,2.5,nan,inf,3,1.25,"a,""b""",,true,"[1, 2]",{\'key\': 1},{key=2},1 day,x,2026-01-02'
    write_answer(EVERY_TYPE, Form.PARQUET, tmp_path / "rows")
    back = parquet.read_table(tmp_path / "rows")
    assert back.column_names == EVERY_TYPE.column_names
    assert back.select(["whole", "text", "list"]).to_pylist() == [
        {"whole": 1, "text": 'a,"b"', "list": [1, 2]}
    ]


def test_columns_of_the_same_name_are_all_there(tmp_path: Path) -> None:
    twice = rows_of("SELECT 1 AS a, 2 AS a")
    assert table_text(twice).split() == ["a", "a", *table_text(twice).split()[2:-2], "1", "2"]
    write_answer(twice, Form.JSON, tmp_path / "rows")
    assert list(json.loads((tmp_path / "rows").read_text())[0].values()) == [1, 2]


def test_a_table_lines_figures_up_at_the_right_and_text_at_the_left() -> None:
    rows = pa.table({"stage": ["load", "denoise"], "size_bytes": [5 * 2**20, 3 * 2**30], "num": [7, 1234]})
    assert table_text(rows) == (
        " stage     size_bytes    num\n"
        f" {27 * chr(0x2500)}\n"
        " load        5.00 MiB      7\n"
        " denoise     3.00 GiB   1234\n"
    )


@pytest.mark.parametrize(
    ("column", "value", "unit", "text"),
    [
        ("x", None, None, "-"),
        ("x", True, None, "True"),
        ("x", 12, None, "12"),
        ("x_bytes", 2**30, None, "1.00 GiB"),
        ("bytes", -(2**20), None, "-1.00 MiB"),
        ("x_bytes", Decimal(2**20), None, "1.00 MiB"),
        ("x", Decimal("1.50"), None, "1.50"),
        ("duration_ns", 1_500_000_000, None, "1.500 s"),
        ("start_ns", 1_500_000_000, None, "1500000000"),
        ("t_ns", 15, None, "15"),
        ("first_ns", 15, None, "15"),
        ("share", 0.123456, None, "0.1235"),
        ("value", 2.0**30, "bytes", "1.00 GiB"),
        ("value", 0.25, "s", "0.250 s"),
        ("value", 12_000.0, "", "12,000"),
        ("value", 1.04683, "", "1.047"),
        ("value", float("nan"), "bytes", "nan"),
        ("measure", "peak", "bytes", "peak"),
        ("list", [1, 2], None, "[1, 2]"),
    ],
)
def test_a_cell_has_the_unit_of_its_column_or_its_row(
    column: str, value: Any, unit: str | None, text: str
) -> None:
    assert cell(column, value, unit) == text


def test_a_table_reads_the_unit_of_each_row() -> None:
    rows = pa.table({"measure": ["peak", "time"], "unit": ["bytes", "s"], "value": [2.0**30, 2.0]})
    assert [line.split()[2:] for line in table_text(rows).splitlines()[2:]] == [
        ["1.00", "GiB"],
        ["2.000", "s"],
    ]


def test_a_figure_that_is_not_there_is_a_dash() -> None:
    assert [number_text(None, unit) for unit in ("bytes", "s", "")] == 3 * ["-"]


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    rows = pa.table({"n": range(MOST_ROWS + 1_500)})
    *_, last, note = table_text(rows).splitlines()
    assert last.split() == [str(MOST_ROWS - 1)]
    assert note == "1,500 more rows; --format csv, json or parquet has all of them"


def test_rows_that_do_not_fit_a_terminal_are_turned_and_paths_stay_whole() -> None:
    paths = ["denoise/dit.forward/dit.block", "decode\x1b"]
    columns = [Shown("path", paths, is_number=False), Shown("n", ["1", ""])]
    assert columns_text(columns, 30) == (
        " path   denoise/dit.forward/dit.block\n n      1\n\n path   decode\\x1b\n n\n"
    )
    assert columns_text(columns, 40) == columns_text(columns)
    assert max(map(len, columns_text(columns).splitlines())) == 34


def test_a_narrow_terminal_shows_the_columns_of_no_rows() -> None:
    assert columns_text([Shown("path", []), Shown("n", [])], 4).split()[:2] == ["path", "n"]


def test_moments_are_told_from_the_beginning_of_the_recording() -> None:
    rows = pa.table({"t_ns": [4 * 10**9, 6_500_000_000], "end_ns": [None, 10**9], "life_ns": [10**9, 0]})
    lines = [line.split() for line in table_text(rows, began_ns=4 * 10**9).splitlines()]
    assert lines[2:] == [
        ["+0.000", "s", "-", "1.000", "s"],
        ["+2.500", "s", "-3.000", "s", "0.000", "s"],
    ]
    assert has_moments(rows) and not has_moments(rows.select(["life_ns"]))


def test_rows_go_to_the_standard_output_as_they_go_to_a_file(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for form in Form:
        write_answer(EVERY_TYPE, form, tmp_path / form.value)
        sys.stdout.flush()
        capfdbinary.readouterr()
        write_answer(EVERY_TYPE, form, None)
        sys.stdout.flush()
        assert capfdbinary.readouterr().out == (tmp_path / form.value).read_bytes()
    assert csv.read_csv(tmp_path / "csv").num_rows == 1


def test_parquet_is_not_written_onto_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ConfigError) as caught:
        write_answer(EVERY_TYPE, Form.PARQUET, None)
    assert (str(caught.value), caught.value.hint) == (
        "a terminal cannot show Parquet",
        "name a file: --out rows.parquet",
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    write_text("old\n", path)
    write_answer(pa.table({"a": [1]}), Form.CSV, path)
    assert path.read_text() == "a\n1\n"
    (tmp_path / "file").write_text("")
    for form in Form:
        with pytest.raises(ConfigError, match="cannot write"):
            write_answer(EVERY_TYPE, form, tmp_path / "file" / "rows")
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["file", "new", "rows.csv"]


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(
    "name", ["file:rows", "run:2/rows", "s3:/rows", "http:/rows", "q?a=b", "a'b", "g*[x]", "%41"]
)
def test_a_path_is_a_file_whatever_its_name_looks_like(
    tmp_path: Path, name: str, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    write_answer(pa.table({"a": [1]}), form, path)
    assert [item.relative_to(tmp_path) for item in tmp_path.rglob("*") if item.is_file()] == [path]
    assert path.stat().st_size > 0


def test_text_is_shown_as_it_is() -> None:
    assert columns_text([Shown("name", [":x: [bold]"], is_number=False)]).split()[2:] == [":x:", "[bold]"]


def test_two_columns_called_unit_are_columns_as_others() -> None:
    twice = rows_of("SELECT 'bytes' AS unit, 's' AS unit, 2.5::DOUBLE AS value")
    assert table_text(twice).splitlines()[-1].split() == ["bytes", "s", "2.5"]


def test_dates_that_python_has_not_are_shown() -> None:
    rows = rows_of("SELECT 'infinity'::DATE AS a, DATE '10000-01-02' AS b, [DATE '10000-01-02'] AS c, 1 AS d")
    assert table_text(rows).splitlines()[-1].split() == ["infinity", "10000-01-02", "[10000-01-02]", "1"]


def test_numbers_that_are_none_are_null_in_json_at_every_depth(tmp_path: Path) -> None:
    rows = rows_of(
        """
        SELECT [n::DOUBLE, 'nan', NULL] AS list, {'a': 'inf'::FLOAT, 'b': n} AS struct,
            MAP {'k': '-inf'::DOUBLE} AS map,
            [{'a': ['nan'::DOUBLE, n]}, NULL] AS deep, ['nan'::DOUBLE, n]::DOUBLE[2] AS fixed,
            CASE n WHEN 1 THEN ['inf'::DOUBLE, 2] END AS some
        FROM range(4) AS t (n) ORDER BY n
        """
    )
    # A part of the rows has buffers that do not begin with it.
    write_answer(rows.slice(1, 2), Form.JSON, tmp_path / "rows")
    assert json.loads((tmp_path / "rows").read_text()) == [
        {
            "list": [n, None, None], "struct": {"a": None, "b": n}, "map": {"k": None},
            "deep": [{"a": [None, n]}, None], "fixed": [None, n], "some": [None, 2] if n == 1 else None,
        }
        for n in (1, 2)
    ]  # fmt: skip
    assert math.isnan(rows.column("list")[0].as_py()[1])


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data/rows")
    for text in ("new\n", "newer\n"):
        write_text(text, tmp_path / "link")
        assert (tmp_path / "data" / "rows").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert [item.name for item in (tmp_path / "data").iterdir()] == ["rows"]


def test_a_fifo_and_a_device_are_written_and_stay(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "null").symlink_to(os.devnull)
    read: list[str] = []
    for form in (Form.TABLE, Form.CSV):
        reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
        reader.start()
        write_answer(pa.table({"a": [1]}), form, fifo)
        reader.join(10)
        write_answer(pa.table({"a": [1]}), form, tmp_path / "null")
    assert (read[0].split()[0], read[1:]) == ("a", ["a\n1\n"])
    assert fifo.is_fifo() and (tmp_path / "null").is_char_device()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["fifo", "null"]


def test_what_can_be_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        write_text("", tmp_path)
    with pytest.raises(ConfigError, match="is empty, or a folder"):
        write_text("", Path(""))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError(f"IO Error: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_is_told_as_one(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(DiskFull, match="cannot write") as caught, whole_file(tmp_path / "rows"):
        raise error
    assert caught.value.hint == "make room on that disk, or write to another one"
    with pytest.raises(ConfigError, match="Permission denied"), whole_file(tmp_path / "rows"):
        raise OSError(errno.EACCES, "x")


def test_a_csv_has_no_formulas_and_numbers_below_zero_stay_numbers(tmp_path: Path) -> None:
    write_answer(
        rows_of(
            """SELECT '=1+1' AS "a""b", -1 AS less, '-x' AS text, ['=1'] AS list, NULL::VARCHAR AS empty"""
        ),
        Form.CSV,
        tmp_path / "rows",
    )
    assert (tmp_path / "rows").read_text() == "\"a\"\"b\",less,text,list,empty\n'=1+1,-1,'-x,['=1'],\n"


def test_no_text_of_a_run_reaches_a_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of("SELECT chr(27) || '[2J[link=http://x]a' || chr(13) || ':smile:' AS name")
    write_answer(rows, Form.TABLE, None)
    write_text("a sentence with \x1b]8;;http://x\x07\n", None)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "name",
        32 * "\u2500",
        "\\x1b[2J[link=http://x]a\\r:smile:",
        "a sentence with \\x1b]8;;http://x\\x07",
    ]


def test_csv_on_a_terminal_tells_it_nothing_and_in_a_pipe_stays_as_it_is(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of("SELECT chr(27) AS name")
    write_answer(rows, Form.CSV, None)
    assert capsysbinary.readouterr().out == b"name\n\x1b\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_answer(rows, Form.CSV, None)
    assert capsysbinary.readouterr().out == b"name\n\\x1b\n"
