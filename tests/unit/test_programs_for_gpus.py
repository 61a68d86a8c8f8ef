"""Programs that tests for GPUs hold as text: no other check reads them, and CI has no GPU to run them on."""

import ast
import importlib
import re
from pathlib import Path

import pytest

GPU_TESTS = sorted((Path(__file__).resolve().parents[1] / "gpu").glob("test_*.py"))
IMPORT = re.compile(r"^\s*from ((?:ray_memprof|wan)[\w.]*) import (.+)$", re.MULTILINE)


def imported(text: str) -> list[tuple[str, str]]:
    """Module and name of each import of ours in the texts of a file of Python."""
    parts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    lines = [line for part in parts if isinstance(part, str) for line in IMPORT.findall(part)]
    return [
        (module, name.split(" as ")[0].strip(" ()")) for module, names in lines for name in names.split(",")
    ]


def is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(f"{module}.{name}")
        )
    except ModuleNotFoundError:
        return False


def test_imports_are_found_in_texts_only() -> None:
    program = 'from ray_memprof.cli import app\nRUN = """\nfrom wan.config import TASKS, no_such as x\n"""\n'
    assert imported(program) == [("wan.config", "TASKS"), ("wan.config", "no_such")]
    assert [is_there(*one) for one in imported(program)] == [True, False]


@pytest.mark.parametrize("path", GPU_TESTS, ids=lambda path: path.stem)
def test_what_programs_for_gpus_import_is_there(path: Path) -> None:
    assert [one for one in imported(path.read_text(encoding="ascii")) if not is_there(*one)] == []
