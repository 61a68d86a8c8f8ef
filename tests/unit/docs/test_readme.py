"""The README and the pages it leads to keep their word: tree, flags, levers, exit codes and links exist."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, console_commands

from ray_memprof import errors as run_errors
from wan import errors
from wan.levers import Levers

PATHS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "sample" / "README.md",
    ROOT / "profiler_logs" / "README.md",
]
NAMES = [path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/") for path in PATHS]
PAGES = {name: path.read_text(encoding="utf-8") for name, path in zip(NAMES, PATHS, strict=True)}
MOST_LINES = 150
"""Of the README: what is longer is a page of its own."""


def section(page: str, title: str) -> str:
    """The part of a page under the heading `title`."""
    (found,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], flags=re.DOTALL | re.MULTILINE
    )
    return str(found)


def first_cells(table: str) -> list[str]:
    """The first column of a Markdown table, its head and rule left out."""
    return [row.split("|")[1].strip().strip("`") for row in table.splitlines() if row.startswith("|")][2:]


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
    commands = [line for text in PAGES.values() for line in console_commands(text)]
    of_generate = [line.partition("wan.generate")[2] for line in commands]
    told = re.findall(r"`(--\w+)`", PAGES["generate"])
    named = set(re.findall(r"--\w+", " ".join([*of_generate, *told])))
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
