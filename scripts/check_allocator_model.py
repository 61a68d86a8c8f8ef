"""Puts the requests of recorded runs to the model of the caching allocator, and compares the reserved memory.

    python scripts/check_allocator_model.py profiler_logs/baseline/latest profiler_logs/ulysses4/latest
    python scripts/check_allocator_model.py profiler_logs/*/latest --orders 20

For each rank a line: its events, the recorded and the modelled peak of reserved memory, how far the two are apart after
each allocation at most, and the share of blocks that lie at the recorded place of the recorded segment: with the
addresses of segments that were recorded ("told"), which only the device knows, and with those of
allocator/addresses.py ("guessed"). With --orders also the peaks with that many random orders of segments: whether the
device's choice can matter at all. Where the curves part, the first such event and what can be the cause. Exit code 1: a
peak is more than 0.2 % off; 2: no run, or a run without allocator events.
"""

import argparse
import random
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass

from ray_memprof.allocator.addresses import DeviceAddresses
from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.replay import Columns
from ray_memprof.analysis.recorded_rank import RecordedRank, recorded_ranks
from ray_memprof.errors import ConfigError
from ray_memprof.store.find_run import find_run

TOLERANCE = 0.002
MIB = 2**20
FAR_BYTES = 2**33
"""Between two segments whose order is by chance."""
Place = tuple[int, int]
"""Number of the segment, in the order in which they were made, and the offset in it."""


class Parted(Exception):
    """The model made more segments than were recorded."""


class ToldAddresses:
    """The addresses that the device gave, one after the other."""

    def __init__(self, addresses: list[int]) -> None:
        self._addresses = iter(addresses)

    def take(self, size: int) -> int:
        """Return the next.

        Raises:
            Parted: there is none.
        """
        address = next(self._addresses, None)
        if address is None:
            raise Parted
        return address

    def give_back(self, address: int, size: int) -> None:
        """A segment ends."""


class RandomAddresses:
    """Addresses in an order by chance."""

    def __init__(self, seed: int) -> None:
        self._places = list(range(1, 2**14))
        random.Random(seed).shuffle(self._places)

    def take(self, size: int) -> int:
        """Return where a new segment begins."""
        return self._places.pop() * FAR_BYTES

    def give_back(self, address: int, size: int) -> None:
        """A segment ends."""


@dataclass(frozen=True)
class Play:
    """What the model did with the requests of a rank."""

    allocator: CachingAllocator
    columns: Columns
    seconds: float
    far_bytes: int
    """The largest difference in reserved bytes after an allocation."""
    first: int
    """Number of the recorded allocation at which the reserved bytes differ for the first time; -1: they never do."""


def segments(recorded: RecordedRank) -> list[int]:
    """Addresses of segments that do not grow, in the order in which they were made."""
    pairs = zip(recorded.events.action, recorded.events.address, strict=True)
    return [address for action, address in pairs if action == "segment_alloc"]


def play(recorded: RecordedRank, addresses: DeviceAddresses | None = None) -> Play:
    """Put the requests of a rank to the model.

    Raises:
        Parted: it made more segments than were recorded.
    """
    allocator, curve, before = CachingAllocator(recorded.rules, addresses=addresses), recorded.curve, -1
    far, first, is_alloc = 0, -1, False
    start = time.process_time()
    for event in recorded.requests.put_to(allocator):
        if is_alloc and allocator.reserved != curve[before]:
            far = max(far, abs(allocator.reserved - curve[before]))
            first = before if first < 0 else first
        before, is_alloc = event, recorded.events.action[event] == "alloc"
    seconds = time.process_time() - start
    return Play(allocator, allocator.take_events(), seconds, far, first)


def places(action: list[str], address: list[int]) -> list[Place]:
    """Where each allocation lies, of those in segments that do not grow."""
    starts: list[int] = []
    numbers: dict[int, int] = {}
    found: list[Place] = []
    count = 0
    for what, where in zip(action, address, strict=True):
        if what == "segment_alloc":
            starts.insert(bisect_right(starts, where), where)
            numbers[where], count = count, count + 1
        elif what == "segment_free":
            starts.remove(where)
        elif what == "alloc" and starts:
            start = starts[bisect_right(starts, where) - 1]
            found.append((numbers[start], where - start))
    return found


def same_share(recorded: RecordedRank, played: Play) -> float:
    """The share of blocks at their recorded place."""
    pairs = list(
        zip(
            places(list(recorded.events.action), list(recorded.events.address)),
            places(played.columns.action, played.columns.address),
            strict=False,
        )
    )
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def cause(recorded: RecordedRank, told: Play | None) -> str:
    """What can make the curves part."""
    if told is not None and told.far_bytes == 0:
        return "the addresses of segments: with those that were recorded, the curves are equal"
    if recorded.requests.num_strays:
        return f"{recorded.requests.num_strays} events without their block: events were lost"
    streams = len(set(recorded.events.stream))
    other = f", {streams} streams" if streams > 1 else ""
    return f"not the addresses{other}: a call of empty_cache() that left no event, a pool of its own, or a setting"


def report(run: str, recorded: RecordedRank, num_orders: int) -> float:
    """Print the line of a rank, and return by which share of it the peak is off."""
    peak, starts, guessed = recorded.reserved_peak, segments(recorded), play(recorded)
    off = guessed.allocator.reserved_peak - peak
    line = (
        f"{run} rank {recorded.rank}: {len(recorded.curve):,} events, reserved {peak / MIB:,.0f} MiB recorded, "
        f"{guessed.allocator.reserved_peak / MIB:,.0f} modelled: {off:+,} bytes ({off / peak:+.3%}); curve "
        f"{guessed.far_bytes:,} bytes apart; {guessed.seconds / len(recorded.curve) * 1e6:.1f} us an event"
    )
    told = None
    if starts:
        try:
            told = play(recorded, ToldAddresses(starts))
            told_share = f"{same_share(recorded, told):.1%} told"
        except Parted:
            told_share = "parted when told"
        line += f"; same place: {told_share}, {same_share(recorded, guessed):.1%} guessed"
    if num_orders and starts:
        peaks = [play(recorded, RandomAddresses(seed)).allocator.reserved_peak for seed in range(num_orders)]
        most = max(peaks, key=lambda one: abs(one - peak))
        line += f"; {num_orders} random orders: at most {(most - peak) / peak:+.3%}"
    sys.stdout.write(line + "\n")
    if guessed.first >= 0:
        sys.stdout.write(f"  the curves part at event {guessed.first:,}; it can be {cause(recorded, told)}\n")
    return abs(off) / peak


def main() -> int:
    """Check every run that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--orders", type=int, default=0, help="random orders of segments to try; default: 0")
    options = parser.parse_args()
    worst = 0.0
    try:
        for run in options.runs:
            folder = find_run(run)
            for rank in recorded_ranks(folder):
                worst = max(worst, report(run, RecordedRank(folder, rank), options.orders))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        return 2
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
