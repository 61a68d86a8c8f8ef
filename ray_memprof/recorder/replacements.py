"""Functions and methods of others that are replaced for a while by ours, which call them.

    replaced = Replacements()
    replaced.put(torch.autograd, "backward", ours)
    replaced.take_back()

What other code has put in place of ours meanwhile stays: it calls ours, which must then do nothing but call on.
"""

from typing import Any


class Replacements:
    """Attributes that are replaced."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any, bool]] = []

    def put(self, owner: Any, name: str, ours: Any) -> None:
        """Put `ours` in place of an attribute of a module or a class, which may have inherited it."""
        self._replaced.append((owner, name, getattr(owner, name), ours, name in vars(owner)))
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
