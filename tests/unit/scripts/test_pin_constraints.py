"""scripts/pin_constraints.py: what it resolves; and constraints.txt pins it all."""

import re
import tomllib

from command_line import import_script

pin_constraints = import_script("pin_constraints")
PROJECT = tomllib.loads((pin_constraints.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_a_project_without_dependencies_asks_for_nothing() -> None:
    assert pin_constraints.wanted({"name": "x", "dependencies": [], "optional-dependencies": {}}) == []


def test_extras_are_resolved_but_not_those_for_cuda_and_not_the_project_itself() -> None:
    extras = {"run": ["torch>=2"], "fa3": ["fa3-fwd"], "fa4": ["flash-attn-4"], "dev": ["x[run]", "ruff"]}
    project = {"name": "x", "dependencies": ["xy"], "optional-dependencies": extras}
    assert pin_constraints.wanted(project) == ["xy", "torch>=2", "ruff"]


def test_every_requirement_of_the_project_is_pinned() -> None:
    """Mend it with `make constraints`."""
    pinned = set(re.findall(r"^([\w-]+)==", pin_constraints.CONSTRAINTS.read_text(), flags=re.MULTILINE))
    asked = {re.match(r"[\w-]+", one)[0].lower() for one in pin_constraints.wanted(PROJECT)}  # type: ignore[index]
    assert len(asked) > 30
    assert asked - pinned == set()
