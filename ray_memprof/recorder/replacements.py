"""Functions and methods of others that are replaced for a while by ours, which call them.

    replaced = Replacements()
    replaced.put(torch.autograd, "backward", ours)
    replaced.take_back()

What other code has put in place of ours meanwhile stays: it calls ours, which must then do nothing but call on.

While ours is in place, it can be pickled like the original: by the name under which it is found. Pickle keeps only the
name, so it is read back as whatever has that name then. A function that a program took while it was recorded
(call = Module.__call__) can be pickled no longer once the original is back: its name leads to another function.
"""

import sys
from types import FunctionType, ModuleType
from typing import Any

_JIT = "torch.jit._builtins"


class Replacements:
    """Attributes that are replaced."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any, bool]] = []

    def put(self, owner: Any, name: str, ours: Any) -> None:
        """Put `ours` in place of an attribute of a module or a class, which may have inherited it."""
        original = getattr(owner, name)
        found_as(owner, name, ours)
        _let_jit_know(original, ours)
        self._replaced.append((owner, name, original, ours, name in vars(owner)))
        setattr(owner, name, ours)

    def take_back(self) -> None:
        """Put everything back, the last replacement first."""
        while self._replaced:
            owner, name, original, ours, is_own = self._replaced.pop()
            if vars(owner).get(name) is not ours:
                continue
            if is_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
            _let_jit_forget(ours)


def found_as(owner: Any, name: str, ours: Any) -> None:
    """Give a function the name of its place, by which pickle finds it: an original may have another one.

    Args:
        owner: the module or the class in which it is put.
        name: of the attribute.
        ours: what is put there; what is no function of Python keeps its name.
    """
    if isinstance(ours, FunctionType):
        is_module = isinstance(owner, ModuleType)
        ours.__module__ = owner.__name__ if is_module else owner.__module__
        ours.__qualname__ = name if is_module else f"{owner.__qualname__}.{name}"


def _let_jit_know(original: Any, ours: Any) -> None:
    """torch.jit.script compiles some functions to operators, which it finds by the function itself."""
    jit = sys.modules.get(_JIT)
    if jit is not None and (operator := jit._find_builtin(original)) is not None:
        jit._register_builtin(ours, operator)


def _let_jit_forget(ours: Any) -> None:
    # Its table has ids: another function may get that of ours.
    if (jit := sys.modules.get(_JIT)) is not None:
        jit._get_builtin_table().pop(id(ours), None)
