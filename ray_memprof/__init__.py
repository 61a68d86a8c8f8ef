"""Where every byte of every GPU goes: runs Wan2.1, or any torch.distributed program, and records its memory.

Read launch.py first; store/schema.py names and explains all tables and columns. A program that is recorded may name
its parts:

    with ray_memprof.span("forward"): ...

or record itself: with ray_memprof.recording("evaluation"): ...

Runs are asked in Python, too; this imports neither torch nor Ray:

    ray_memprof.open_run("ulysses4").ask("peak_by_rank").to_pandas()
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes longer to import than all of this
    from typing import Any

    from ray_memprof.query.notebook import open_run, questions, runs
    from ray_memprof.record import recording
    from ray_memprof.recorder.spans import span, step

__all__ = ["open_run", "questions", "recording", "runs", "span", "step"]
_HOMES = {
    "open_run": "ray_memprof.query.notebook",
    "questions": "ray_memprof.query.notebook",
    "runs": "ray_memprof.query.notebook",
    "recording": "ray_memprof.record",
    "span": "ray_memprof.recorder.spans",
    "step": "ray_memprof.recorder.spans",
}


def record_where_asked() -> None:
    """Record this process if RAY_MEMPROF asks for it: torch calls this at the end of its import, in every process.

    It stands here, and not in rank/hook.py, for most processes record nothing, and each module read costs 0.1 ms.
    """
    if os.environ.get("RAY_MEMPROF", "") not in ("", "0"):
        from ray_memprof.rank.hook import load

        load()


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
