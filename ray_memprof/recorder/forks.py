"""What a forked child does with what it inherits from a process that records: nothing at all.

    silent_in_children(recorder)      # in every child recorder.forked() is called, before anything else runs there

A child (a DataLoader worker, os.fork) has a copy of the recorder, and none of its threads. Whoever waits for one of
them waits for ever, and a lock that one of them held at that moment is never given back. So everything that the
program may reach from a child registers here, and is silent there: it writes, counts and locks nothing.

What starts anew (spawn, exec) inherits nothing of this.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """What a child finds."""

    def forked(self) -> None:
        """This is a child from now on: be silent; wait for nothing."""


_all: "WeakSet[Inherited]" = WeakSet()


def silent_in_children(one: Inherited) -> None:
    """Call one.forked() in every child that is forked from now on, and in theirs."""
    _all.add(one)


def _in_child() -> None:
    for one in list(_all):
        one.forked()


# Once, and for good: Python has no way to take such a function back.
os.register_at_fork(after_in_child=_in_child)
