"""What a recorder reports while it runs and at its end: plain data that can be pickled, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A sign of life: where a rank is and what it holds."""

    rank: int
    sequence: int
    """Spans entered and left so far: grows while the rank gets on."""
    path: str
    """Of the innermost open span; "" between spans."""
    stage: str
    step: int
    """Of the denoise loop, from 0; -1 outside it."""
    num_steps: int
    """-1: not known."""
    allocated_bytes: int
    reserved_bytes: int
    device_used_bytes: int
    problem: str = ""
    """Why its recorder can write no more; "" where it can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A process group, or two ranks of one, with the same name on all its ranks."""

    name: str
    """torch's name; groups that share no rank may have the same name."""
    first_rank: int
    second_rank: int | None = None
    """Set only for two ranks of a group: such a pair has no number of calls before its first call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayCheck:
    """Whether the recorded events add up to the allocator's own counters, and what recording itself cost."""

    num_events: int
    num_lost_events: int
    num_checks: int
    """How often the replayed curves were compared with the counters."""
    max_error_bytes: int
    """Largest difference seen in allocated, reserved or active bytes; it must be 0."""
    allocated_peak_bytes: int
    """The allocator's own counter."""
    replayed_allocated_peak_bytes: int
    reserved_peak_bytes: int
    replayed_reserved_peak_bytes: int
    recorder_ns: int
    """Spent by the recorder on the thread that runs the model."""
    longest_pause_ns: int
    """The longest time the recorder held up that thread at once."""
    recorder_bytes: int
    """Largest number of bytes that the recorder held in buffers, as far as it can count them."""
