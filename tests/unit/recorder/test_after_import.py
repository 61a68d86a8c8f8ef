"""Something is done as soon as a program has imported a module."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_memprof.recorder.after_import import after_import


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a module in it that nobody has imported yet."""
    folder = tmp_path / "late_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "part.py").write_text("value = 3\ndef function():\n    return 4\n")
    (folder / "broken.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "late_package.part"
    for name in [one for one in sys.modules if one.startswith("late_package")]:
        del sys.modules[name]


def test_it_is_done_once_when_the_module_is_whole(module: str) -> None:
    seen: list[int] = []
    with after_import(module, lambda: seen.append(sys.modules[module].value)):
        assert seen == []
        importlib.import_module("late_package")
        assert seen == []
        importlib.import_module(module)
        importlib.import_module(module)
    assert seen == [3]


def test_a_module_that_is_there_already_counts(module: str) -> None:
    importlib.import_module(module)
    seen: list[int] = []
    with after_import(module, lambda: seen.append(1)):
        assert seen == [1]
        importlib.reload(sys.modules[module])
    assert seen == [1]


def test_the_module_looks_as_if_nobody_had_watched(module: str) -> None:
    with after_import(module, lambda: None):
        loaded = importlib.import_module(module)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert type(loaded.__loader__) is type(spec.loader)
    assert loaded.__spec__ is not None
    assert loaded.__spec__.loader is loaded.__loader__
    assert "return 4" in inspect.getsource(loaded.function)


def test_nothing_is_left_behind_and_nothing_is_done_later(module: str) -> None:
    before, seen = list(sys.meta_path), list[int]()
    with after_import(module, lambda: seen.append(1)):
        assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before
    importlib.import_module(module)
    assert seen == []


def test_who_looks_for_the_module_without_importing_it_finds_it(module: str) -> None:
    seen: list[int] = []
    with after_import(module, lambda: seen.append(1)):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        assert spec.origin.endswith("part.py")
        assert seen == []
        importlib.import_module(module)
    assert seen == [1]


def test_a_module_that_is_absent_or_broken_fails_as_it_would_alone(module: str) -> None:
    seen: list[int] = []
    for name, error in (("late_package.absent", ModuleNotFoundError), ("late_package.broken", ValueError)):
        with after_import(name, lambda: seen.append(1)), pytest.raises(error):
            importlib.import_module(name)
    assert seen == []


def test_a_program_may_take_the_finder_out(module: str) -> None:
    with after_import(module, lambda: None):
        del sys.meta_path[0]
