"""scripts/concerned_tests.py: tests by how far they are from a file."""

from pathlib import Path

import pytest
from command_line import import_script

concerned_tests = import_script("concerned_tests")

FILES = {
    "ray_memprof/__init__.py": "",
    "ray_memprof/query/database.py": "QUESTIONS = ['books', 'steps']",
    "ray_memprof/report/run_page.py": "from ray_memprof.query import database",
    "ray_memprof/analysis/diagnosis/diagnose.py": "",
    "ray_memprof/alone.py": "",
    "ray_memprof/query/sql/device/books.sql": "-- Not steps.\nFROM is_stage",
    "ray_memprof/query/sql/macros/is_stage.sql": "CREATE MACRO is_stage AS 1",
    "ray_memprof/query/sql/time/steps.sql": "FROM books",
    "ray_memprof/analysis/diagnosis/rules/retries.sql": "FROM steps",
    "ray_memprof/analysis/diagnosis/rules/retries.py": "",
    "tests/tables.py": "from ray_memprof.query.database import QUESTIONS",
    "tests/unit/test_alone.py": "",
    "tests/unit/test_db.py": "from tables import make",
    "tests/unit/test_diagnosis.py": "import ray_memprof.analysis.diagnosis.diagnose",
    "tests/unit/test_report.py": "def test():\n    from ray_memprof.report.run_page import write",
    "tests/unit/test_sql_books.py": "ask('FROM books')\nword = 'In books.'",
    "tests/unit/test_a_rule.py": "from rules import retries",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_without_tests(tmp_path: Path) -> None:
    assert concerned_tests.Concerned(tmp_path, ["tests/unit"]).by_distance(Path("a.py")) == [[], []]


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("ray_memprof/alone.py", ["alone"], []),
        ("ray_memprof/query/database.py", ["db"], ["report"]),
        ("ray_memprof/report/run_page.py", ["report"], []),
        ("ray_memprof/query/sql/device/books.sql", ["sql_books"], ["db"]),
        ("ray_memprof/query/sql/time/steps.sql", [], ["a_rule", "db"]),
        ("ray_memprof/analysis/diagnosis/rules/retries.sql", ["a_rule"], ["diagnosis"]),
        ("ray_memprof/analysis/diagnosis/rules/retries.py", [], ["diagnosis"]),
        ("ray_memprof/query/sql/macros/is_stage.sql", [], ["sql_books"]),
    ],
)
def test_distances(root: Path, name: str, near: list[str], far: list[str]) -> None:
    found = concerned_tests.Concerned(root, ["tests/unit"]).by_distance(Path(name))
    assert found == [[f"tests/unit/test_{one}.py" for one in level] for level in (near, far)]


def test_the_test_of_its_own_name_comes_first_and_hand_made_rows_next(root: Path) -> None:
    for name in ("a", "books", "sql_a"):
        (root / f"tests/unit/test_{name}.py").write_text("ask('books')")
    (near, _) = concerned_tests.Concerned(root, ["tests/unit"]).by_distance(
        Path("ray_memprof/query/sql/device/books.sql")
    )
    assert near == [f"tests/unit/test_{name}.py" for name in ("books", "sql_a", "sql_books", "a")]
