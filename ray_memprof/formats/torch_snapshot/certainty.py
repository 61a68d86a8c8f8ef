"""Replays the events of an imported device, and says how certain the result is.

    followed = follow(make_rows, spool, segments, settings, stacks)
    followed.written.inexact_bytes, followed.written.peak_at_least, followed.problems(path)

Sizes and curves are exact if the settings in the snapshot held for every moment and pool, or if events prove what
each block took (see block_sizes). Otherwise ranks.inexact_bytes bounds how far they may be off at any moment. Some
events may not fit (others were lost, or recording was off for a time), and the end of the replay may differ from the
segments of the snapshot. Both add all their bytes to ranks.inexact_bytes, but then no bound can be proved.

One thing cannot be seen: a setting that was switched and switched back, or a rounding or limit that changed at run
time, between two events that would have shown it. If a change shows itself anywhere, every size that no event proves
counts as inexact.

The peak may lie before the first event, and is then called a lower bound (ranks.peak_at_least):

* if any memory was held at the first event. Something had happened before, and no snapshot says how much was held
  during that time: memory may have been taken and given back.
* if there are as many events as a ring of events may hold (older events may have been overwritten).

If the allocator held nothing at the first event, and the number of events is not that of a full ring, then these are
all events since a moment at which nothing was held: the start of the process, or a moment at which it had given
everything back. What it held before that moment leaves no trace in a snapshot; the peaks are those since that moment.
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
"""People ask for rings of a round length: a multiple of this number, or a power of two that is not less."""


@dataclass(slots=True)
class Followed:
    """The result of replaying the events of a device."""

    written: Written
    replay: Replay
    found: Found | None
    """What events proved about block sizes; None: the settings told everything."""
    doubt_bytes: int
    """By how much the blocks that were there before the first event may be off."""
    held_bytes: int
    """Reserved at the first event."""
    doubt: Doubt
    """What the events had to prove."""

    def problems(self, path: object) -> list[str]:
        """What is doubtful about the result, one line each."""
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
                "bytes more or less than is counted: they were freed before any event showed where they ended"
            )
        if self.found is not None and self.found.inexact_bytes:
            lines.append(
                f"sizes in {path} may be off by up to {self.found.inexact_bytes:,} bytes at any moment: the rule by "
                "which the allocator splits blocks was not the same all the time, and no event shows how much "
                f"{self.found.num_untold:,} blocks took"
            )
        if self.held_bytes:
            lines.append(
                f"peaks are at least what is shown: {self.held_bytes:,} bytes were reserved before the first event of "
                f"{path}, and what had happened by then is not known (a ring of events was full, or a late start)"
            )
        elif self.written.peak_at_least:
            lines.append(
                f"peaks are at least what is shown: {path} has {self.written.num_events:,} events, as many as a ring "
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
    """Replay the events of a device and write its rows.

    Args:
        make_rows: makes the writer; called a second time if the first rows turn out to be wrong.
        spool: has the events of the device.
        segments: of the snapshot.
        settings: of the allocator at the end.
        stacks: Python stacks, by number.

    Raises:
        DiskFull: no room for the rows.
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
        # The settings may have been different: try once more, and take nothing for granted.
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
    pools = spool.before.segment_pools()
    written = rows.write(at_start, spool.chunks(), stacks, pools=pools, segments_at_end=segments)
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
    """What the events prove, and the doubt that they had to settle."""
    sizes = BlockSizes(replay, doubt, spool.before.new_pools())
    sizes.start(spool.before.segments_at_start(segments, replay.rules, doubt))
    for actions, addresses, requests in spool.blocks():
        sizes.follow(actions, addresses, requests)
    found = sizes.conclude(segments)
    if found.is_contradicted and not doubt.everything:
        return _prove(replay, spool, segments, Doubt(everything=True))
    return found, doubt


def difference(replay: Replay, segments: Sequence[Segment]) -> int:
    """The largest difference between the end of the replay and the segments of the snapshot, over the three curves."""
    blocks = [(block["state"], block["size"]) for segment in segments for block in segment["blocks"]]
    allocated: int = sum(size for state, size in blocks if state == "active_allocated")
    active: int = sum(size for state, size in blocks if state != "inactive")
    reserved: int = sum(segment["total_size"] for segment in segments)
    if not isinstance(replay, BlockReplay):  # for host tensors only what they use is known
        reserved = replay.reserved
    return max(
        abs(replay.allocated - allocated), abs(replay.active - active), abs(replay.reserved - reserved)
    )


def fills_a_ring(num_events: int) -> bool:
    """Whether a ring of events may have had room for exactly this many."""
    is_power = num_events & (num_events - 1) == 0
    return num_events >= _RING_STEP and (num_events % _RING_STEP == 0 or is_power)
