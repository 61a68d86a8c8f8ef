"""docs/: generated pages are those of the code, and the tour names what exists and figures that were measured."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from command_line import import_script
from run_tables import make_run

from ray_memprof.config.matrix import expand
from ray_memprof.pytest_plugin.limit import limit_gpu_peak
from ray_memprof.query import database, questions
from ray_memprof.store.schema import TABLES

pytest_plugins = ("pytester",)

ROOT = Path(__file__).resolve().parents[3]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
SOURCES = "".join((ROOT / path).read_text(encoding="utf-8") for path in ("README.md", "docs/benchmarks.md"))


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    return import_script("write_docs")


@pytest.fixture(scope="module")
def pages(writer: ModuleType) -> dict[str, str]:
    return dict(writer.pages())


@pytest.fixture
def once(writer: ModuleType, pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, its pages made already."""
    monkeypatch.setattr(writer, "pages", lambda: pages)
    return writer


def blocks(kind: str) -> list[str]:
    """Code blocks of the tour."""
    return re.findall(rf"^```{kind}\n(.*?)^```", TOUR, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """What stands after `$ ` in the tour, continued lines made one."""
    lines = "".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("name", ["schema.md", "questions.md", "modules.md"])
def test_a_page_is_what_the_code_makes(pages: dict[str, str], name: str) -> None:
    """Mend it with `python scripts/write_docs.py`."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == pages[name]


def test_the_same_code_makes_the_same_pages(writer: ModuleType, pages: dict[str, str]) -> None:
    assert writer.pages() == pages


def test_a_page_that_is_out_of_date_is_named(
    once: ModuleType, pages: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.md").write_text(pages["schema.md"].replace("# Tables", "# Table"))
    assert once.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/schema.md: -# Table",
        f"{tmp_path}/modules.md: +# Modules",
        f"{tmp_path}/questions.md: +# Questions",
        "hint: python scripts/write_docs.py",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["schema.md"]


def test_pages_are_written_and_then_up_to_date(
    once: ModuleType, pages: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert once.main([], tmp_path) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == pages
    assert once.main(["--check"], tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_without_a_browser_pictures_are_one_line_with_a_hint(
    once: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert once.main(["--pictures"], tmp_path) == 2
    told, hint = capsys.readouterr().err.splitlines()
    assert told.startswith("pictures need chromium, chromedriver")
    assert hint.startswith("hint: apt-get install chromium")
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_the_report_are_wide_small_and_of_no_other_name(writer: ModuleType) -> None:
    pictures = {one.name for one in writer.page_pictures.PICTURES}
    assert pictures == {path.name for path in (ROOT / "docs").glob("*.png")}
    for name in pictures:
        data = (ROOT / "docs" / name).read_bytes()
        assert len(data) < 300_000
        assert (data[:8], int.from_bytes(data[16:20], "big")) == (b"\x89PNG\r\n\x1a\n", 1600)


def test_every_column_is_there_with_the_type_that_duckdb_shows(pages: dict[str, str], tmp_path: Path) -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["schema.md"], flags=re.DOTALL | re.MULTILINE)
    )
    listed = {
        name: re.findall(r"^\| `(\w+)` \| (\w+) \|", text, flags=re.MULTILINE)
        for name, text in sections.items()
    }
    with database.open_run(make_run(tmp_path, {0: {}})) as connection:
        described = {
            name: [row[:2] for row in connection.execute(f"DESCRIBE {name}").fetchall()] for name in TABLES
        }
    assert listed == {name: [row for row in rows if row[0] != "rank"] for name, rows in described.items()}


def test_every_question_is_there_with_every_column_and_rows_of_its_own(
    pages: dict[str, str], tmp_path: Path
) -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["questions.md"], flags=re.DOTALL | re.MULTILINE)
    )
    with database.open_run(make_run(tmp_path, {0: {}})) as connection:
        columns = {
            name: {row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()}
            for name in questions.QUESTIONS
        }
    empty = []
    for name in questions.QUESTIONS:
        found = re.search(
            r"^\$ ray-memprof query (\w+) \w+\n(.*?)^```", sections[name], re.DOTALL | re.MULTILINE
        )
        if found is None:
            assert "has no such rows" in sections[name], name
            empty.append(name)
            continue
        assert found[1] == name
        words = set(re.findall(r"\w+", found[2]))
        assert columns[name] - words == set(), name
        assert len(found[2].splitlines()) >= 3, name
    # The played runs are measured ones, and make no second frame.
    assert set(empty) <= {"predicted_vs_measured", "vae_cache"}


def test_pages_are_ascii(pages: dict[str, str]) -> None:
    assert all(text.isascii() for text in (*pages.values(), TOUR))


def test_links_of_the_tour_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", TOUR)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_the_tour_quotes_figures_that_were_measured() -> None:
    """Every figure of its prose and tables is printed there, or stands in the README or in benchmarks.md."""
    prose = re.sub(r"^```.*?^```", "", TOUR, flags=re.DOTALL | re.MULTILINE)
    figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose.replace(".\n", "\n").replace(". ", " "))
    measured = set(re.findall(r"(?<![\w.])\d+\.\d+(?!\w)", SOURCES + "".join(blocks("console"))))
    assert len(figures) > 25
    assert [figure for figure in figures if figure not in measured] == []


def test_the_tour_prints_what_the_readme_shows() -> None:
    (text,) = blocks("text")
    lines = text.splitlines()
    assert len(lines) == 6
    assert [line for line in lines if line not in SOURCES.splitlines()] == []


def test_what_the_tour_launches_is_accepted() -> None:
    launches = [words[3:] for words in commands() if words[:3] == ["python", "-m", "ray_memprof.launch"]]
    names = {
        run.name
        for path, *flags in launches
        for run in expand(ROOT / path, [flag for flag in flags if flag != "--set"]).runs
    }
    assert names == {"ulysses4", "rank0_decodes", "ring4"}


def test_the_tour_asks_questions_that_exist_of_runs_that_it_launched() -> None:
    asked = [words[1:] for words in commands() if words[0] == "ray-memprof"]
    assert {words[0] for words in asked} == {"query", "diagnose", "compare"}
    asked_names = {words[1] for words in asked if words[0] == "query"}
    assert len(asked_names) > 4 and asked_names <= set(questions.QUESTIONS)
    runs = {
        word
        for command, *words in asked
        for word in (words[1:] if command == "query" else words)
        if re.fullmatch(r"\w+", word)  # no flag, no limit
    }
    assert runs == {"ulysses4", "rank0_decodes", "ring4"}


def test_answers_in_the_tour_have_the_columns_of_their_questions(tmp_path: Path) -> None:
    answers = re.findall(r"^\$ ray-memprof query (\w+) \w+\n (.+)$", "".join(blocks("console")), re.MULTILINE)
    assert len(answers) > 5
    with database.open_run(make_run(tmp_path, {0: {}})) as connection:
        for name, header in answers:
            columns = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
            shown = [word for word in header.split() if word != "..."]
            assert [column for column in columns if column in shown] == shown, name
            assert ("..." in header.split()) == (shown != columns), name


def test_the_limits_of_the_tour_are_accepted(pytester: pytest.Pytester) -> None:
    """Collecting reads every mark and its configuration."""
    pytester.makepyfile(test_tour="import pytest\n" + "".join(blocks("python")))
    result = pytester.runpytest_inprocess(
        "--collect-only", "-q", "-p", "ray_memprof.pytest_plugin", "--strict-markers", f"--rootdir={ROOT}"
    )
    assert (result.ret, result.errlines) == (0, [])
    found = re.findall(r"::(\w+)$", result.stdout.str(), flags=re.MULTILINE)
    assert found == ["test_ulysses_fits", "test_the_tiny_model_stays_tiny"]


def test_the_tour_explains_every_argument_of_the_mark() -> None:
    (table,) = re.findall(r"^\| argument \|.*?\n\n", TOUR, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(inspect.signature(limit_gpu_peak).parameters)


def test_no_table_names_a_column_twice() -> None:
    names = {table.name: [column.name for column in table.columns] for table in TABLES.values()}
    assert names == {table: list(dict.fromkeys(columns)) for table, columns in names.items()}


def docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring of the packages, the scripts and the tests, each with its file."""
    for folder in ("ray_memprof", "wan", "scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield str(path.relative_to(ROOT)), ast.get_docstring(node) or ""


def test_every_file_that_a_docstring_names_exists() -> None:
    folders = ("ray_memprof", "wan", "scripts", "tests")
    files = "".join(
        f"/{path.relative_to(ROOT)}\n"
        for path in (
            *ROOT.glob("*.py"),
            *(path for folder in folders for path in (ROOT / folder).rglob("*.*")),
        )
    )
    # The files of any rule, a person's own program, and a file of Python's library.
    others = {"NAME.py", "NAME.sql", "train.py", "Lib/pickletools.py"}
    missing = {
        (path, name)
        for path, text in docstrings()
        for name in re.findall(r"[\w./]*\w\.(?:py|sql)\b", text)
        if f"/{name}\n" not in files and name not in others
    }
    assert missing == set()
