"""The README and the pages it leads to keep their word: commands run in CI; tree, flags, levers, codes, links exist."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray_memprof import errors as run_errors
from wan import errors
from wan.levers import Levers

ROOT = Path(__file__).resolve().parents[3]
PATHS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("architecture", "generate", "profiling")),
    ROOT / "profiler_logs" / "README.md",
]
NAMES = [path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/") for path in PATHS]
PAGES = {name: path.read_text(encoding="utf-8") for name, path in zip(NAMES, PATHS, strict=True)}
README = "\n".join(PAGES.values())
MOST_LINES = 150
"""Of the README: what is longer is a page of its own."""

# What CI cannot run, as patterns over whole commands, each with its reason.
NOT_IN_CI = {
    r"ray-memprof audit latest": "needs a run that a GPU has measured; tests let a predicted run be one",
    r"python -m ray_memprof\.launch (?!.*--dry-run).*": "needs CUDA devices; `make demo` launches on the CPU",
    r"ray-memprof run (?!.*--dry-run).*": "needs CUDA devices, or a program of one's own; tests run made-up ones",
    r"torchrun .*": "needs several CUDA devices and an official checkpoint",
    r"ray-memprof compare ring4 ulysses4 .*": "needs two runs on several GPUs; tests compare made-up ones",
    r"ray-memprof import .*": "needs snapshots of a CUDA program; tests import made-up ones",
    r"ray-memprof what-if .*": "needs a run on a CUDA device; tests ask it of made-up ones",
    r"ray-memprof plan .*": "takes minutes on a slow machine; tests plan for tiny tasks",
    r"ray-memprof query peak_by_rank baseline": "needs a run on a CUDA device; other questions are asked of a demo",
    r"ray-memprof finish .*": "needs a run over several hosts; tests finish made-up ones, and one of two hosts",
    r"duckdb .*": "needs DuckDB's own client and a run on several GPUs; the same database is read in tests",
    r"python -m wan\.generate .*--ckpt_dir .*": "needs a CUDA device and an official checkpoint",
    r"python scripts/compare_levers\.py .*--ckpt_dir .*": "needs a CUDA device and an official checkpoint",
    r"python3 -m venv \.venv": "belongs to the install with CUDA; `make env` does the same here",
    r"\.venv/bin/python -m pip install torch==\S+": "belongs to the install with CUDA",
}


def joined(text: str) -> list[str]:
    """The lines of a shell text: continued lines made one, comments and surplus blanks taken out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines]


def console_commands(markdown: str) -> list[str]:
    """What stands after `$ ` in the console blocks of `markdown`, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in joined(block) if line.startswith("$ ")]


def commands_of_ci() -> list[str]:
    return joined((ROOT / ".ci" / "run").read_text(encoding="utf-8"))


def section(page: str, title: str) -> str:
    """The part of a page under the heading `title`."""
    (found,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], flags=re.DOTALL | re.MULTILINE
    )
    return str(found)


def first_cells(table: str) -> list[str]:
    """The first column of a Markdown table, its head and rule left out."""
    return [row.split("|")[1].strip().strip("`") for row in table.splitlines() if row.startswith("|")][2:]


def test_a_text_without_console_blocks_has_no_commands() -> None:
    assert console_commands("words\n```text\n$ no command\n```\n") == []


def test_commands_are_read_over_continued_lines_and_without_comments() -> None:
    text = "```console\n$ make demo     # why\nits output\n$ python -m x \\\n    --y '1*2'\n```\n"
    assert console_commands(text) == ["make demo", "python -m x --y '1*2'"]


@pytest.mark.parametrize("command", sorted(set(console_commands(README))))
def test_every_command_runs_in_ci_or_has_a_reason_not_to(command: str) -> None:
    excused = [reason for pattern, reason in NOT_IN_CI.items() if re.fullmatch(pattern, command)]
    assert (command in commands_of_ci()) != bool(excused), f"neither called in .ci/run nor excused: {command}"


def test_every_excuse_is_in_use() -> None:
    commands = console_commands(README)
    unused = [pattern for pattern in NOT_IN_CI if not any(re.fullmatch(pattern, one) for one in commands)]
    assert unused == []


@pytest.mark.parametrize("package", ["ray_memprof", "wan"])
def test_the_map_has_a_paragraph_for_every_room(package: str) -> None:
    part = section("architecture", f"The rooms of `{package}/`")
    told = re.findall(r"^\*\*`(\w+)/`\*\*", part, flags=re.MULTILINE)
    folder = ROOT / package
    assert sorted(told) == sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    firsts = re.findall(r"\*\*`(\w+)/`\*\*.*?Read\s+`([\w/]+\.py)`\s+first", part, flags=re.DOTALL)
    assert [room for room, first in firsts if (folder / room / first).is_file()] == told


@pytest.mark.parametrize("package", ["ray_memprof", "wan"])
def test_the_map_names_every_file_outside_the_rooms(package: str) -> None:
    part = section("architecture", f"The rooms of `{package}/`")
    outside = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    assert outside - set(re.findall(r"`(\w+\.py)`", part)) == set()


@pytest.mark.parametrize("folder", ["scripts", "tests", "docs"])
def test_the_map_names_what_other_folders_hold(folder: str) -> None:
    part = section("architecture", "Other folders")
    held = {path.name for path in (ROOT / folder).glob("*") if path.suffix in ("", ".py", ".md", ".sh")}
    held -= {"__pycache__", "architecture.md"}
    if folder == "tests":  # its files outside folders are helpers
        held = {name for name in held if "." not in name}
    named = re.findall(r"[\w*]+(?:\.\w+)?", part)
    patterns = [re.escape(name).replace(r"\*", ".*") for name in named]
    assert [name for name in held if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_every_flag_is_one_that_generate_knows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wan.generate", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    # torchrun has flags of its own, in front.
    of_generate = [line.partition("wan.generate")[2] for line in console_commands(README)]
    named = set(re.findall(r"--\w+", " ".join([*of_generate, *re.findall(r"`(--\w+)`", README)])))
    assert named - set(re.findall(r"--\w+", done.stdout)) == set()


def test_the_table_of_levers_holds_every_lever() -> None:
    levers = {f"--{field.name}" for field in dataclasses.fields(Levers)}
    assert levers - set(first_cells(section("generate", "Levers for memory and time"))) == set()


def test_the_table_of_exit_codes_is_that_of_errors() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in first_cells(section("generate", "Exit codes"))} == codes | {1}


def test_the_table_of_exit_codes_of_a_run_is_that_of_its_errors() -> None:
    codes = {value for name, value in vars(run_errors).items() if name.startswith("EXIT_")}
    (table,) = re.findall(r"^\| code \|.*?\n\n", PAGES["profiling"], flags=re.DOTALL | re.MULTILINE)
    named = {int(code) for cell in first_cells(table) for code in cell.split(",")}
    assert named == codes | {errors.EXIT_WEIGHTS, errors.EXIT_MEDIA, errors.EXIT_SERVICE}


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    targets = {ROOT / target for target in re.findall(r"\]\(([^)#:]+)\)", PAGES["README"])}
    assert set((ROOT / "docs").glob("*.md")) - targets == set()


def test_the_readme_is_short() -> None:
    assert len(PAGES["README"].splitlines()) <= MOST_LINES
