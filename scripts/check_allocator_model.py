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
import json
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_memprof.allocator.addresses import DeviceAddresses
from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.requests import GROWTH, SHRINKAGE, Recorded, Requests
from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.settings import recorded_rules
from ray_memprof.errors import ConfigError
from ray_memprof.query.ask import ask
from ray_memprof.store.find_run import find_run

TOLERANCE = 0.002
EVENTS = "SELECT action, address, size_bytes, requested_bytes, stream, span_id FROM allocs WHERE rank = {} ORDER BY seq"
RETRIED = "SELECT span_id FROM spans WHERE rank = {} AND num_retries > 0"
MIB = 2**20
FAR_BYTES = 2**33
"""Between two segments whose order is by chance."""
Place = tuple[int, int]
"""Number of the segment, in the order in which they were made, and the offset in it."""


class ToldAddresses:
    """The addresses that the device gave, one after the other."""

    def __init__(self, addresses: list[int]) -> None:
        self._addresses = iter(addresses)

    def take(self, size: int) -> int:
        """Return the next; a program that makes more segments than were recorded has parted from the recording."""
        return next(self._addresses)

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


@dataclass(frozen=True)
class Recording:
    """The events of one rank."""

    events: Recorded
    sizes: list[int]
    rules: Rules
    requests: Requests

    @property
    def segments(self) -> list[int]:
        """Addresses of segments that do not grow, in the order in which they were made."""
        pairs = zip(self.events.action, self.events.address, strict=True)
        return [address for action, address in pairs if action == "segment_alloc"]

    def reserved(self) -> list[int]:
        """Reserved bytes after each event."""
        curve, now = [], 0
        for action, size in zip(self.events.action, self.sizes, strict=True):
            now += size if action in GROWTH else -size if action in SHRINKAGE else 0
            curve.append(now)
        return curve

    def play(self, addresses: DeviceAddresses | None) -> Play:
        """Put the requests to the model."""
        allocator, curve, before = CachingAllocator(self.rules, addresses=addresses), self.reserved(), -1
        far, first, is_alloc = 0, -1, False
        start = time.process_time()
        for event in self.requests.put_to(allocator):
            if is_alloc and allocator.reserved != curve[before]:
                far = max(far, abs(allocator.reserved - curve[before]))
                first = before if first < 0 else first
            before, is_alloc = event, self.events.action[event] == "alloc"
        seconds = time.process_time() - start
        return Play(allocator, allocator.take_events(), seconds, far, first)


def recordings(run: str) -> Iterator[tuple[int, Recording]]:
    """Each rank of a run with what was recorded of it.

    Raises:
        ConfigError: no such run, no allocator events, or settings that torch would refuse.
    """
    folder = find_run(run)
    ranks = ask("SELECT DISTINCT rank FROM allocs ORDER BY rank", [folder]).column(0).to_pylist()
    if not ranks:
        raise ConfigError(f"{folder} has no allocator events", hint="record with logging.level: event")
    (run_row,) = ask("SELECT config, environment FROM runs", [folder]).to_pylist()
    for rank in ranks:
        rules = recorded_rules(json.loads(run_row["config"]), json.loads(run_row["environment"]), rank)
        table = ask(EVENTS.format(rank), [folder])
        columns: dict[str, Any] = {name: table.column(name).to_pylist() for name in table.column_names}
        sizes = columns.pop("size_bytes")
        retried = frozenset(ask(RETRIED.format(rank), [folder]).column(0).to_pylist())
        events = Recorded(**columns)
        yield rank, Recording(events, sizes, rules, Requests.of(events, retried))


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


def same_share(recording: Recording, play: Play) -> float:
    """The share of blocks at their recorded place."""
    pairs = list(
        zip(
            places(list(recording.events.action), list(recording.events.address)),
            places(play.columns.action, play.columns.address),
            strict=False,
        )
    )
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def cause(recording: Recording, told: Play | None, guessed: Play) -> str:
    """What can make the curves part."""
    if told is not None and told.far_bytes == 0:
        return "the addresses of segments: with those that were recorded, the curves are equal"
    if recording.requests.num_strays:
        return f"{recording.requests.num_strays} events without their block: events were lost"
    streams = len(set(recording.events.stream))
    other = f", {streams} streams" if streams > 1 else ""
    return f"not the addresses{other}: a call of empty_cache() that left no event, a pool of its own, or a setting"


def report(run: str, rank: int, recording: Recording, num_orders: int) -> float:
    """Print the line of a rank, and return by which share of it the peak is off."""
    recorded = max(recording.reserved())
    guessed = recording.play(None)
    off = guessed.allocator.reserved_peak - recorded
    line = (
        f"{run} rank {rank}: {len(recording.events.action):,} events, reserved {recorded / MIB:,.0f} MiB recorded, "
        f"{guessed.allocator.reserved_peak / MIB:,.0f} modelled: {off:+,} bytes ({off / recorded:+.3%}); curve "
        f"{guessed.far_bytes:,} bytes apart; {guessed.seconds / len(recording.events.action) * 1e6:.1f} us an event"
    )
    told = None
    if recording.segments:
        try:
            told = recording.play(ToldAddresses(recording.segments))
            told_share = f"{same_share(recording, told):.1%} told"
        except RuntimeError:  # a StopIteration in the generator: more segments than were recorded
            told_share = "parted when told"
        line += f"; same place: {told_share}, {same_share(recording, guessed):.1%} guessed"
    if num_orders and recording.segments:
        peaks = [recording.play(RandomAddresses(seed)).allocator.reserved_peak for seed in range(num_orders)]
        most = max(peaks, key=lambda peak: abs(peak - recorded))
        line += f"; {num_orders} random orders: at most {(most - recorded) / recorded:+.3%}"
    sys.stdout.write(line + "\n")
    if guessed.first >= 0:
        sys.stdout.write(
            f"  the curves part at event {guessed.first:,}; it can be {cause(recording, told, guessed)}\n"
        )
    return abs(off) / recorded


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
            for rank, recording in recordings(run):
                worst = max(worst, report(run, rank, recording, options.orders))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        return 2
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
