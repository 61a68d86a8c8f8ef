"""Which of its arguments a Triton kernel reads and which it writes, from its source, without Triton.

passes(kernel)           # [{"load", "store"}, {"load"}, set()]: an entry for each parameter, in order
"""

import ast
import inspect
import textwrap
from collections.abc import Callable

_WAYS = {"load", "store"}


def passes(function: Callable[..., None]) -> list[set[str]]:
    """What the kernel does with each of its parameters: "load", "store", both, or neither of them itself.

    The pointer of a tl.load or tl.store may be an expression, or a name that was given one.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    names = [one.arg for one in tree.args.args]
    found: dict[str, set[str]] = {name: set() for name in names}
    behind = {name: {name} for name in names}
    """The parameters that a name points into."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and not _calls(node.value):
            told = set().union(*(behind.get(name, set()) for name in _names(node.value)))
            for target in node.targets:
                if isinstance(target, ast.Name):
                    behind[target.id] = behind.get(target.id, set()) | told
    for call in _calls(tree):
        for name in _names(call.args[0]):
            for parameter in behind.get(name, ()):
                found[parameter].add(call.func.attr)  # type: ignore[attr-defined] # _calls() has looked
    return [found[name] for name in names]


def _calls(tree: ast.AST) -> list[ast.Call]:
    """The calls of tl.load and tl.store."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WAYS
    ]


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
