"""Which test files can see a change of a file, nearest first: by imports of Python, and by names of questions.

    Concerned(root, ["tests/unit"]).by_distance(Path("ray_memprof/query/ask.py"), most=2)   # [[files], [files]]

A test that imports a module, or names a question, is at distance 1 from it; a test that imports something that reads it
is at distance 2. Helpers of the tests do not count as a step. A module reads every SQL file in the folders beside it
(diagnosis/rules/).
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

PACKAGES = ("ray_memprof", "wan", "scripts")


class Concerned:
    """The test files of some folders, and how far each is from a file.

    Args:
        root: the tree.
        folders: of the tests, relative to it.
    """

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        self._root = root
        self.tests = [path for folder in folders for path in sorted((root / folder).rglob("test_*.py"))]
        sources = [path for name in PACKAGES for path in sorted((root / name).rglob("*")) if path.is_file()]
        self._modules = {_dotted(path.relative_to(root)): path for path in sources if path.suffix == ".py"}
        self._questions = {path.stem: path for path in sources if path.suffix == ".sql"}
        self._helpers = {
            path.stem: path for path in (root / "tests").rglob("*.py") if not path.name.startswith("test_")
        }

    def by_distance(self, path: Path, most: int = 2) -> list[list[str]]:
        """Test files at distance 1, 2 ... of `path`, relative to the tree; the test named after it comes first."""
        own = [test for test in self.tests if test.stem == f"test_{path.stem}"]
        levels, waiting, known = [], {self._root / path}, {self._root / path}
        left = set(self.tests)
        for distance in range(most):
            readers = {file for target in waiting for file in self._readers.get(target, ())}
            found = (readers | (set(own) if distance == 0 else set())) & left
            left -= found
            # Tests with hand-made rows notice more than tests with whole runs.
            levels.append(
                sorted(found, key=lambda test: (test not in own, "test_sql" not in test.stem, test))
            )
            waiting = readers - known - set(self.tests)
            known |= waiting
        return [[str(test.relative_to(self._root)) for test in level] for level in levels]

    @cached_property
    def _readers(self) -> dict[Path, set[Path]]:
        """For each file, the files that read it."""
        readers: dict[Path, set[Path]] = {}
        for reader in (*self.tests, *self._modules.values(), *self._questions.values()):
            for target in self._read_by(reader):
                readers.setdefault(target, set()).add(reader)
        return readers

    def _read_by(self, reader: Path) -> Iterator[Path]:
        text = reader.read_text(encoding="utf-8")
        if reader.suffix == ".sql":
            words = set(re.findall(r"\w+", re.sub("--.*", "", text)))
            yield from (path for stem, path in self._questions.items() if stem in words and path != reader)
            return
        names, words = _names(text)
        for helper in sorted(names & set(self._helpers)) if reader in self.tests else ():
            more, said = _names(self._helpers[helper].read_text(encoding="utf-8"))
            names, words = names | more, words | said
        yield from (path for name, path in self._modules.items() if name in names)
        for stem, path in self._questions.items():
            if stem in words:
                yield path
            if path.parent.parent == reader.parent:
                yield from (
                    path,
                    path.with_suffix(".py"),
                )  # a rule's words are found by the name of its query


def _names(text: str) -> tuple[set[str], set[str]]:
    """What a Python file imports, at its top or later, as dotted names; and words that may be names of questions."""
    names, words = set(), set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
                words |= {
                    alias.name for alias in aliases
                }  # the helper that fills a run for a rule is named after the rule
            case ast.Constant(value=str(value)):
                words |= set(re.findall(r"^\w+$|(?<=FROM )\w+|(?<=JOIN )\w+", value))
    return names, words


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    # Scripts are imported by their own names, from their folder.
    return ".".join(parts[1:] if parts[0] == "scripts" else parts).removesuffix(".__init__")
