"""Follows the events of an imported device, and says how certain what comes out of it is.

    followed = follow(make_rows, spool, segments, settings, stacks)
    followed.written.inexact_bytes, followed.written.peak_at_least, followed.problems(path)

Sizes and curves are exact where the settings in the snapshot held for every moment and pool, or where events prove what
each block took (see block_sizes). Otherwise ranks.inexact_bytes bounds by how much they may be off, at any moment.
Events that do not fit (some were lost, or recording was off meanwhile) and an end that differs from the segments of
the snapshot are counted into it with all their bytes; no bound can be proved then.

One thing cannot be seen: a setting that was switched and switched back, or a rounding or limit changed at run time,
between two events that would have shown it. What shows itself anywhere makes all that nothing proves inexact.

The peak may lie before the first event, and is called a lower bound (ranks.peak_at_least):

* where anything was held at the first event. Something had happened by then, and how much was held meanwhile no
  snapshot tells: memory may have been taken and given back.
* where the events are as many as rings are long (the older ones may have been overwritten).

Where the allocator held nothing at the first event, and the events are of another number, they are all since then: a
process's own beginning, or a moment in which it had given everything back. What it held before such a moment leaves
nothing in a snapshot; the peaks are those since then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_memprof.allocator.block_sizes import BlockSizes, Found
from ray_memprof.allocator.doubt import Doubt
from ray_memprof.allocator.replay import BlockReplay, Replay, Segment
from ray_memprof.formats.torch_snapshot.events_to_rows import Rows, Written
from ray_memprof.formats.torch_snapshot.snapshot_parts import FrameLine
from ray_memprof.formats.torch_snapshot.spool import Spool

_RING_STEP = 1000
"""Rings are asked for in round numbers: of multiples of this, or powers of two from this on."""


@dataclass(slots=True)
class Followed:
    """What became of the events of a device."""

    written: Written
    replay: Replay
    found: Found | None
    """What events proved of block sizes; None: the settings told all."""
    doubt_bytes: int
    """By which the blocks that were there at the beginning may be off."""
    held_bytes: int
    """Reserved at the first event."""
    doubt: Doubt
    """What was left to the events to prove."""

    def problems(self, path: object) -> list[str]:
        """What is doubtful, one line each."""
        lines = []
        if self.written.max_error_bytes:
            lines.append(
                f"the events of {path} end {self.written.max_error_bytes:,} bytes away from its segments: "
                "some are missing, or recording was switched off before the snapshot"
            )
        if self.replay.num_strays:
            lines.append(
                f"{self.replay.num_strays:,} events of {path} do not fit the blocks before them: "
                f"curves may be off by their {self.replay.stray_bytes:,} bytes"
            )
        if self.doubt_bytes:
            lines.append(
                f"blocks that were there before the first event of {path} may have taken up to {self.doubt_bytes:,} "
                "bytes more or less than is counted: they were freed before anything told where they ended"
            )
        if self.found is not None and self.found.inexact_bytes:
            lines.append(
                f"sizes in {path} may be off by up to {self.found.inexact_bytes:,} bytes at any moment: the rule by "
                f"which the allocator splits blocks was not the same all the time, and of {self.found.num_untold:,} "
                "blocks nothing tells what they took"
            )
        if self.held_bytes:
            lines.append(
                f"peaks are at least what is told: {self.held_bytes:,} bytes were reserved before the first event of "
                f"{path}, and what had happened by then is unknown (a ring of events that was full, or a late start)"
            )
        elif self.written.peak_at_least:
            lines.append(
                f"peaks are at least what is told: {path} has {self.written.num_events:,} events, as many as a ring "
                "of events may hold, and older ones may have been overwritten"
            )
        return lines


def follow(
    make_rows: Callable[[], Rows],
    spool: Spool,
    segments: Sequence[Segment],
    settings: Mapping[str, Any],
    stacks: Sequence[tuple[FrameLine, ...]],
) -> Followed:
    """Write the rows of a device.

    Args:
        make_rows: makes the writer; asked again where what was written turns out wrong.
        spool: has its events.
        segments: of the snapshot.
        settings: of the allocator at the end.
        stacks: Python stacks, by number.

    Raises:
        DiskFull: no room for them.
    """
    doubt = spool.before.doubt(segments, settings)
    settings = {"expandable_segments": spool.before.is_expandable(segments), **settings}
    rows = make_rows()
    if not isinstance(rows.replay, BlockReplay):  # host tensors: no blocks, and nothing from before
        written = rows.write((), spool.chunks(), stacks)
        written.max_error_bytes = difference(rows.replay, segments)
        return Followed(written, rows.replay, None, 0, 0, Doubt())
    followed = _follow(rows, spool, segments, settings, stacks, doubt)
    is_wrong = followed.replay.num_strays or followed.written.max_error_bytes
    if is_wrong and not doubt.everything:
        # The settings may have been others: once more, with nothing taken for granted.
        rows.discard()
        rows = make_rows()
        followed = _follow(rows, spool, segments, settings, stacks, Doubt(everything=True))
    return followed


def _follow(
    rows: Rows,
    spool: Spool,
    segments: Sequence[Segment],
    settings: Mapping[str, Any],
    stacks: Sequence[tuple[FrameLine, ...]],
    doubt: Doubt,
) -> Followed:
    replay = rows.replay
    assert isinstance(replay, BlockReplay)
    replay.configure(settings)
    found = None
    if doubt:
        found, doubt = _prove(replay, spool, segments, doubt)
        replay.decided = found.decided
    at_start = spool.before.segments_at_start(segments, replay.rules, doubt)
    written = rows.write(at_start, spool.chunks(), stacks)
    written.max_error_bytes = difference(replay, segments)
    held = sum(segment["total_size"] for segment in at_start)
    unproved = 0 if found is None else found.inexact_bytes
    doubt_bytes = spool.before.doubt_bytes
    written.inexact_bytes = doubt_bytes + unproved + written.max_error_bytes + replay.stray_bytes
    written.peak_at_least = held > 0 or fills_a_ring(written.num_events)
    return Followed(written, replay, found, doubt_bytes, held, doubt)


def _prove(
    replay: BlockReplay, spool: Spool, segments: Sequence[Segment], doubt: Doubt
) -> tuple[Found, Doubt]:
    """What the events prove; and the doubt that was left to them."""
    sizes = BlockSizes(replay, doubt, spool.before.new_pools())
    sizes.start(spool.before.segments_at_start(segments, replay.rules, doubt))
    for actions, addresses, requests in spool.blocks():
        sizes.follow(actions, addresses, requests)
    found = sizes.conclude(segments)
    if found.is_contradicted and not doubt.everything:
        return _prove(replay, spool, segments, Doubt(everything=True))
    return found, doubt


def difference(replay: Replay, segments: Sequence[Segment]) -> int:
    """Between the end of the replay and the segments of the snapshot, in the curve where it is largest."""
    blocks = [(block["state"], block["size"]) for segment in segments for block in segment["blocks"]]
    allocated: int = sum(size for state, size in blocks if state == "active_allocated")
    active: int = sum(size for state, size in blocks if state != "inactive")
    reserved: int = sum(segment["total_size"] for segment in segments)
    if not isinstance(replay, BlockReplay):  # what host tensors use is all that there is
        reserved = replay.reserved
    return max(
        abs(replay.allocated - allocated), abs(replay.active - active), abs(replay.reserved - reserved)
    )


def fills_a_ring(num_events: int) -> bool:
    """Whether so many events may be all that a ring had room for."""
    is_power = num_events & (num_events - 1) == 0
    return num_events >= _RING_STEP and (num_events % _RING_STEP == 0 or is_power)
