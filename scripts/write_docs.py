"""Writes docs/schema.md from schema.py, docs/questions.md from the files of sql/, docs/modules.md from docstrings.

    python scripts/write_docs.py              # after a change of a column or a question
    python scripts/write_docs.py --check      # exit 1 and the files' names where they are out of date
    python scripts/write_docs.py --sample     # docs/sample/report.html, after a change of the report
    python scripts/write_docs.py --pictures   # docs/report_sample*.png, of docs/sample/report.html

The examples are real answers: the questions are asked of two runs that make_synthetic_run.py plays, four ranks each.
The same code writes the same pages.
"""

import argparse
import ast
import difflib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import make_synthetic_run
import page_pictures
import pyarrow as pa

from ray_memprof import wording
from ray_memprof.analysis.comparison import compare
from ray_memprof.analysis.comparison.text import comparison_text
from ray_memprof.analysis.diagnosis import diagnose, findings
from ray_memprof.query import answers, database, questions
from ray_memprof.report import run_page
from ray_memprof.store import gather, run_tables, schema

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SAMPLE = DOCS / "sample" / "ulysses2"
RANKS, EVENTS, BLOCKS = 4, 3_000, 2
SKEW_BYTES = 12 * 2**30
RUNS = {
    "even": make_synthetic_run.Variant(seed=1, is_shared=True),
    "skewed": make_synthetic_run.Variant(
        seed=1,
        skew=make_synthetic_run.Skew(rank=2, stage="denoise", component="dit", bytes=SKEW_BYTES),
        num_graphs=1,
        graph_bytes=256 * 2**20,
        shared_bytes=64 * 2**20,
    ),
}
"""Two runs by name: in the second one rank 0 decodes alone, rank 2 holds more in the first step than the others, and
every rank has memory pools of its own."""
RUN_ID = "20270115-080000-0000"
"""The time of make_synthetic_run.START_NS."""
MOST_ROWS, MOST_TURNED, WIDEST = 6, 3, 120
"""Most rows of an example; most rows of a turned one; an example that is wider than this is turned."""
COMPARE_ORDER = ("run_values", "compared", "moves", "value", "stage_peaks", "against_base")
TYPES = {
    **{"bool": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint64": "UBIGINT"},
    **{"float": "FLOAT", "string": "VARCHAR", "dictionary": "VARCHAR"},
}
"""DuckDB's names of the types."""

SCHEMA_INTRO = """\
# Tables

What ranks and launcher record. Written by `python scripts/write_docs.py` from `ray_memprof/store/schema.py`;
`tests/unit/docs/test_docs.py` checks that it agrees with the code.

On disk a table is Parquet: `tables/<table>/rank=N/part-*.parquet`, and `tables/runs/part-*.parquet`. In `run.duckdb`
and for `ray-memprof query` every table but `runs` has one more column in front: `rank` (BIGINT), which Parquet keeps in
the name of the folder. Types are DuckDB's. Bytes are whole numbers and end in `_bytes`, times in `_ns`. Measured runs,
runs on the CPU and predicted ones fill the same columns; `runs.source` says which it is.

This is schema version {version}. It grows when a column changes its meaning or goes away, not with a new one: a column
that an older run did not write is null.

"""
MODULES_INTRO = """\
# Modules

Every file of `ray_memprof/` and `wan/` with its promise: the first line of its docstring. Made by
`python scripts/write_docs.py`; what a room promises, and what it may import, is in [architecture.md](architecture.md).
"""
QUESTIONS_INTRO = """\
# Questions

What can be asked of a run by name, with the columns of the answer and an example of each. Written by
`python scripts/write_docs.py` from `ray_memprof/query/sql/`; `tests/unit/docs/test_docs.py` checks that it agrees with
the code.

```console
$ ray-memprof query peak_by_rank                            # the newest run
$ ray-memprof query peak_by_rank ulysses4 --format csv      # the newest of that name
$ ray-memprof query imbalance --runs 'profiler_logs/*/latest'
$ ray-memprof query "SELECT stage, max_bytes FROM imbalance WHERE measure = 'allocated'"
$ duckdb profiler_logs/ulysses4/latest/run.duckdb "FROM peak_by_rank"
```

In SQL a question is a view of the same name, beside the [tables](schema.md). `--sql` prints what it asks.

The examples are asked of a made-up run of four ranks, in which rank 0 decodes alone and rank 2 holds {size} more than
the others in a step: their figures say nothing of any GPU. A dash is null. Of long answers the first rows are shown;
one that is wider than {widest} letters is turned, its columns downwards.

"""
RULES_INTRO = """
## What makes the peak high

`ray-memprof diagnose` asks the rules of `ray_memprof/analysis/diagnosis/rules/`. The file of
a rule says how large its case must be for a finding, and why; each finding names what to change.

"""
COMPARE_INTRO = """
## Two runs side by side

`ray-memprof compare` compares runs with the first of them, with the questions of
`ray_memprof/analysis/comparison/sql/`. Each question reads the answers of the questions before it:

"""


def schema_page() -> Iterator[str]:
    """Lines of docs/schema.md."""
    yield from SCHEMA_INTRO.format(version=schema.SCHEMA_VERSION).splitlines()
    yield "| table | one row is | written by |"
    yield "|---|---|---|"
    for table in schema.TABLES.values():
        writer = "each rank" if table.name in schema.RANK_TABLES else "the launcher"
        yield f"| [`{table.name}`](#{table.name}) | {table.row} | {writer} |"
    for table in schema.TABLES.values():
        yield from table_section(table)


def table_section(table: schema.Table) -> Iterator[str]:
    """A table with its columns."""
    yield ""
    yield f"## {table.name}"
    yield ""
    yield f"One row is {table.row}."
    yield ""
    yield "| column | type | unit | null | meaning |"
    yield "|---|---|---|---|---|"
    for column in table.columns:
        null = "may be" if column.nullable else ""
        unit = column.unit
        yield f"| `{column.name}` | {type_name(column.type)} | {unit} | {null} | {escaped(column.meaning)} |"


def type_name(kind: pa.DataType) -> str:
    """DuckDB's name of a column's type."""
    return TYPES["dictionary" if pa.types.is_dictionary(kind) else str(kind)]


def escaped(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def questions_page(run_dirs: Sequence[Path]) -> Iterator[str]:
    """Lines of docs/questions.md; the last run is the one that is asked."""
    yield from QUESTIONS_INTRO.format(size=wording.size_text(SKEW_BYTES), widest=WIDEST).splitlines()
    yield "| question | what it asks |"
    yield "|---|---|"
    for name in questions.QUESTIONS:
        yield f"| [`{name}`](#{name}) | {escaped(questions.headline(name))} |"
    with database.open_run(run_dirs[-1]) as connection:
        for name in questions.QUESTIONS:
            text = questions.question(name)
            yield from question_section(name, text, connection.sql(text).to_arrow_table())
    yield from rules_section(run_dirs[-1])
    yield from compare_section(run_dirs)


def question_section(name: str, text: str, answer: pa.Table) -> Iterator[str]:
    """A question with the header of its file and an example."""
    asks, columns = header(text)
    yield ""
    yield f"## {name}"
    yield ""
    yield asks
    yield ""
    yield from block("text", columns)
    yield ""
    if answer.num_rows:
        yield from block("console", [f"$ ray-memprof query {name} {list(RUNS)[-1]}", *example(answer)])
    else:
        yield "The made-up run has no such rows."


def header(text: str) -> tuple[str, list[str]]:
    """What a file of sql/ asks, and what its header says of the answer."""
    comments = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        comments.append(line.removeprefix("--").removeprefix(" "))
    start = next(number for number, line in enumerate(comments) if line.startswith("One row"))
    return " ".join(comments[:start]), comments[start:]


def block(kind: str, lines: Sequence[str]) -> list[str]:
    """A code block of these lines."""
    return [f"```{kind}", *lines, "```"]


def example(answer: pa.Table) -> list[str]:
    """The first rows of an answer as `ray-memprof query` writes them, or turned where that is too wide."""
    shown = ascii_lines(answers.table_text(answer.slice(0, MOST_ROWS)))
    num_shown = min(MOST_ROWS, answer.num_rows)
    if max(map(len, shown)) > WIDEST:
        num_shown = min(MOST_TURNED, answer.num_rows)
        shown = turned(answer.slice(0, num_shown))
    rest = answer.num_rows - num_shown
    return shown if not rest else [*shown, f"... and {rest:,} more"]


def turned(answer: pa.Table) -> list[str]:
    """One line for each column, with the rows side by side."""
    names = answers.Shown("column", answer.column_names, is_number=False)
    cells = [
        answers.Shown(
            f"row {number}", [answers.cell(name, value, row.get("unit")) for name, value in row.items()]
        )
        for number, row in enumerate(answer.to_pylist(), 1)
    ]
    return ascii_lines(answers.columns_text([names, *cells]))


def ascii_lines(text: str) -> list[str]:
    """Lines of a table, its rule drawn with hyphens."""
    return text.replace("\u2500", "-").splitlines()


def rules_section(run_dir: Path) -> Iterator[str]:
    """What `diagnose` looks for, and what it says of the run that was asked."""
    yield from RULES_INTRO.splitlines()
    yield "| rule | what it asks |"
    yield "|---|---|"
    for rule in diagnose.RULES:
        asks, _ = header(diagnose.rule_text(rule.name))
        asks = asks.removeprefix("Rule: ")
        yield f"| `{rule.name}` | {escaped(asks[0].upper() + asks[1:])} |"
    yield ""
    said = findings.found_text([findings.diagnosed(run_dir)]).splitlines()
    yield from block("console", [f"$ ray-memprof diagnose {list(RUNS)[-1]}", *said])


def compare_section(run_dirs: Sequence[Path]) -> Iterator[str]:
    """What `compare` says of both runs, and the questions that it asks."""
    yield from COMPARE_INTRO.splitlines()
    yield "| question | what it asks |"
    yield "|---|---|"
    for name in COMPARE_ORDER:
        asks, _ = header((compare.SQL_DIR / f"{name}.sql").read_text(encoding="utf-8"))
        yield f"| `{name}` | {escaped(asks)} |"
    yield ""
    compared = compare.compare(run_dirs)
    # Shown as if it were in a folder of the reader.
    sides = [replace(side, folder=f"profiler_logs/{side.name}/{side.run_id}") for side in compared.sides]
    text = comparison_text(replace(compared, sides=tuple(sides)), most=MOST_ROWS)
    yield from block(
        "console", [f"$ ray-memprof compare {' '.join(RUNS)} --most {MOST_ROWS}", *ascii_lines(text)]
    )
    yield ""
    _, answer = header((compare.SQL_DIR / "moves.sql").read_text(encoding="utf-8"))
    yield "With `--format csv`, `json` or `parquet` it writes the rows of `moves`, all of them:"
    yield ""
    yield from block("text", answer)


def make_run(folder: Path, name: str) -> Path:
    """A finished run of that name, without the files that nothing here reads."""
    run_dir = folder / name / RUN_ID
    run_dir.mkdir(parents=True)
    make_synthetic_run.make(run_dir, RANKS, EVENTS, blocks=BLOCKS, variant=RUNS[name], level="stack")
    gather.gather(run_dir, range(RANKS))
    run, ranks = make_synthetic_run.driver_rows(run_dir, RANKS)
    run_tables.write_driver_tables(run_dir, {**run, "name": name}, ranks)
    return run_dir


def modules_page() -> Iterator[str]:
    """Every file of both packages with the first line of its docstring, by room."""
    yield from MODULES_INTRO.splitlines()
    for room in sorted(
        path.parent for name in ("ray_memprof", "wan") for path in (ROOT / name).rglob("__init__.py")
    ):
        yield ""
        yield f"## {room.relative_to(ROOT)}/"
        yield ""
        yield first_sentence(room / "__init__.py")
        files = [path for path in sorted(room.glob("*.py")) if path.name != "__init__.py"]
        if files:
            yield from ("", "| file | promise |", "|---|---|")
        for path in files:
            yield f"| `{path.name}` | {escaped(first_sentence(path))} |"


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text is not None, path
    return text.splitlines()[0]


def pages() -> dict[str, str]:
    """All pages by their file names."""
    with tempfile.TemporaryDirectory() as folder:
        run_dirs = [make_run(Path(folder), name) for name in RUNS]
        made: dict[str, Callable[[], Iterator[str]]] = {
            "schema.md": schema_page,
            "modules.md": modules_page,
            "questions.md": lambda: questions_page(run_dirs),
        }
        return {name: "".join(f"{line.rstrip()}\n" for line in make()) for name, make in made.items()}


def stale(docs: Path) -> list[str]:
    """A line for every page that is out of date: its name, and the first line that is no longer so."""
    told = []
    for name, text in pages().items():
        path = docs / name
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        if found != text:
            changes = difflib.unified_diff(found.splitlines(), text.splitlines(), n=0, lineterm="")
            first = next(
                (line for line in changes if line[:1] in "+-" and line[:3] not in ("+++", "---")), ""
            )
            told.append(f"{path}: {first}")
    return told


def write_pictures(report: Path, docs: Path) -> int:
    """Take the pictures of a report; the exit code, 2 if there is nothing to take them with."""
    try:
        for path in page_pictures.take(report, docs):
            print(path)
    except page_pictures.NoBrowser as error:
        print(f"{error}\nhint: apt-get install chromium chromium-driver, and the extra dev", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    """Write the pages, or check them; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is out of date"
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="write only docs/sample/report.html, the report of the sample run",
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="write only the pictures of docs/sample/report.html; needs chromium with chromedriver, and selenium",
    )
    asked = parser.parse_args(arguments)
    report = docs / "sample" / "report.html"
    if asked.sample:
        report.write_text(run_page.render(next(SAMPLE.glob("*/tables")).parent), encoding="utf-8")
        print(report)
    if asked.pictures:
        return write_pictures(report, docs)
    if asked.sample:
        return 0
    if asked.check:
        told = stale(docs)
        for line in told:
            print(line, file=sys.stderr)
        if told:
            print("hint: python scripts/write_docs.py", file=sys.stderr)
        return 1 if told else 0
    for name, text in pages().items():
        (docs / name).write_text(text, encoding="utf-8")
        print(docs / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
