"""Call a function as soon as the program has imported a module, without importing it first.

    with after_import("torch", begin): ...

A program may set variables of the environment that a module reads while it is imported: whoever imports it earlier
changes what the program does.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Loader(Loader):
    """Loads as the module's own loader does, and then acts; all else is answered by the own loader."""

    def __init__(self, own: Any, act: Callable[[], None]) -> None:
        self._own, self._act = own, act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._own.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        # From here on nobody sees this loader any more.
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        self._act()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Finder:
    """Finds one module as the other finders do, once."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        for finder in [one for one in sys.meta_path if one is not self]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        else:
            return None
        if hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._act)
        return spec


@contextmanager
def after_import(name: str, act: Callable[[], None]) -> Iterator[None]:
    """Inside the block, call `act` when the module `name` has been imported; at once if that was before.

    Args:
        name: of the module, with all packages around it.
        act: called each time that its code has run, also after importlib.reload(). It must not raise.
    """
    if name in sys.modules:
        act()
        yield
        return
    finder: Any = _Finder(name, act)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:  # the program may have taken it out
            sys.meta_path.remove(finder)
