"""Where every byte of every GPU goes: runs Wan2.1, or any torch.distributed program, and records its memory.

Read launch.py first; store/schema.py names and explains all tables and columns. A program that is recorded may name
its parts:

    with ray_memprof.span("forward"): ...

or record itself: with ray_memprof.recording("evaluation"): ...
"""

from typing import TYPE_CHECKING, Any

from ray_memprof.recorder.spans import span, step

if TYPE_CHECKING:
    from ray_memprof.record import recording

__all__ = ["recording", "span", "step"]


def __getattr__(name: str) -> Any:
    # Only spans are imported at once: what records needs half a second.
    if name == "recording":
        from ray_memprof.record import recording

        return recording
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
