"""scripts/mutations.py: which changes are made to a file, each of which still parses."""

import ast
from pathlib import Path

import duckdb
import pytest
from command_line import ROOT, import_script

mutations = import_script("mutations")
PYTHON, SQL = Path("a.py"), Path("a.sql")


def changed(path: Path, text: str) -> list[str]:
    """The text after each change that is worth a try."""
    found = mutations.mutations_of(path, text)
    return [one.applied_to(text) for one in found if mutations.is_valid(path, text, one)]


def test_an_empty_file_cannot_be_changed() -> None:
    assert changed(PYTHON, "") == []
    assert changed(SQL, "") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        ("a == b or c", ["a != b or c", "a == b and c"]),
        ("x = 7", ["x = (7 + 1)", "x = (7 - 1)"]),
        ("x = not a", ["x =  a"]),
        ("x = a not in b", ["x = a  in b"]),
        ("x = a is None", ["x = a is not None"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("x = min", []),
        ("x += y", ["pass", "x -= y", "x = y"]),
        ("close(door)", ["pass"]),
        ("box.door = shut", ["pass"]),
        ("raise ValueError", ["pass"]),
        ("for a in b: pass", []),
        ("f(*a, **b)", ["pass"]),
        ("x = [*a, b * c]", ["x = [*a, b + c]"]),
        ("word = 'a < b'  # a < b", []),
        ("assert a < b", []),
        ("import a", []),
        ("a: Literal[1]", []),
        (
            "def f(a: Literal[1]) -> Literal[2]:\n    return a",
            ["def f(a: Literal[1]) -> Literal[2]:\n    return None"],
        ),
        ("@cache(True)\ndef f():\n    return None", []),
        ("if __name__ == '__main__':\n    main()", []),
        ("x = 'é' * n", ["x = 'é' + n"]),
        ("def f():\n    return 'é', x", ["def f():\n    return None"]),
    ],
)
def test_python(line: str, expected: list[str]) -> None:
    assert changed(PYTHON, line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT a FROM t -- WHERE 1 < 2", []),
        (
            "SELECT MIN(a) FROM t WHERE b AND (c) GROUP BY d",
            [
                "SELECT MAX(a) FROM t WHERE b AND (c) GROUP BY d",
                "SELECT MIN(a) FROM t WHERE TRUE GROUP BY d",
                "SELECT MIN(a) FROM t WHERE b OR (c) GROUP BY d",
            ],
        ),
        ("SELECT DISTINCT a FROM t", ["SELECT  a FROM t"]),
        ("FROM t LIMIT 65535", ["FROM t LIMIT (65535 + 1)", "FROM t LIMIT (65535 - 1)"]),
        ("FROM t LIMIT 65536", []),
        ("SELECT EXISTS (SELECT 1 FROM t)", []),
        ("SELECT f(1)", ["SELECT f((1 + 1))", "SELECT f((1 - 1))"]),
        ("SELECT COALESCE(a + b, c) FROM t", ["SELECT (a + b) FROM t", "SELECT COALESCE(a - b, c) FROM t"]),
        (
            "FROM t ORDER BY a, f(b, c), d DESC",
            [
                "FROM t ORDER BY a DESC, f(b, c), d DESC",
                "FROM t ORDER BY a, f(b, c) DESC, d DESC",
                "FROM t ORDER BY a, f(b, c), d ASC",
            ],
        ),
        ("SELECT a FROM t LEFT JOIN s USING (b)", ["SELECT a FROM t INNER JOIN s USING (b)"]),
        ("SELECT a FROM t UNION ALL FROM s", ["SELECT a FROM t UNION FROM s"]),
        ("SELECT a, 'word', 'a word' FROM t", ["SELECT a, 'word_', 'a word' FROM t"]),
        ("SELECT a IS NOT NULL FROM t", ["SELECT a IS  NULL FROM t"]),
        ("SELECT a BETWEEN b AND c FROM t", []),
        ("FROM t LIMIT 2", ["FROM t LIMIT (2 + 1)", "FROM t LIMIT (2 - 1)"]),
        ("SELECT SUM(a) FILTER (WHERE b) FROM t", [f"SELECT {new} FROM t" for new in (
            "MAX(a) FILTER (WHERE b)", "MIN(a) FILTER (WHERE b)", "SUM(a) FILTER (WHERE TRUE)")]),
        ('SELECT a AS "min" FROM t', []),
    ],
)  # fmt: skip
def test_sql(text: str, expected: list[str]) -> None:
    assert changed(SQL, text) == expected


@pytest.mark.parametrize("name", ["driver/live.py", "query/sql/peaks/imbalance_by_component.sql"])
def test_every_change_of_a_real_file_parses_and_is_in_one_place(name: str) -> None:
    path = ROOT / "ray_memprof" / name
    text = path.read_text(encoding="utf-8")
    found = mutations.mutations_of(path, text)
    assert len(found) > 40
    assert len(set(found)) == len(found)
    for one in found:
        after = one.applied_to(text)
        assert (after[: one.start], after[one.start + len(one.new) :]) == (text[: one.start], text[one.end :])
        if mutations.is_valid(path, text, one):
            ast.parse(after) if path.suffix == ".py" else duckdb.extract_statements(after)
