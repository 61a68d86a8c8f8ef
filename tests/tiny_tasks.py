"""The tasks that a CPU runs within seconds, by name; a file of its own, because workers of tests import it often."""

from wan.config import TASKS

TINY_TASKS = tuple(name for name, task in TASKS.items() if task.is_tiny)
