"""Keeps forked children silent: what a child inherits from a process that records does nothing in the child.

    silent_in_children(recorder)      # in every child recorder.forked() is called, before anything else runs there

A child (a DataLoader worker, os.fork) has a copy of the recorder, but none of its threads. Code that waits for one of
these threads waits for ever, and a lock that one of them held at the fork is never released. So every object that the
program may reach in a child registers here, and is silent in the child: it writes, counts and locks nothing.

Processes that start anew (spawn, exec) inherit nothing of this.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """An object that a child inherits."""

    def forked(self) -> None:
        """This process is a forked child: from now on do nothing, and wait for nothing."""


_all: "WeakSet[Inherited]" = WeakSet()


def silent_in_children(one: Inherited) -> None:
    """Call one.forked() in every child that is forked from now on, and in the children's children."""
    _all.add(one)


def _in_child() -> None:
    for one in list(_all):
        one.forked()


# Registered only once: Python has no way to remove such a function.
os.register_at_fork(after_in_child=_in_child)
