"""Snapshots as torch's allocator would leave them, from the allocator of simple_allocator.py; for tests."""

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simple_allocator import Allocator, Block

from ray_memprof.query import database

MIB = 2**20
Event = dict[str, Any]
Segment = dict[str, Any]
FRAMES = (
    [
        {"name": "forward", "filename": "model.py", "line": 3},
        {"name": "main", "filename": "train.py", "line": 9},
    ],
    [{"name": "step", "filename": "adam.py", "line": 7}],
)


class Simulation:
    """A program on an allocator: every event, the counters after it, and the segments at any moment.

    Args:
        seed: of what it allocates and frees.
        expandable: whether segments grow.
        operations: how many; about two events each.
    """

    def __init__(self, seed: int, *, expandable: bool, operations: int = 400) -> None:
        self.expandable = expandable
        self.events: list[Event] = []
        self.counters = [(0, 0, 0)]
        """Allocated, reserved and active bytes before each event, and after the last."""
        self.moments: list[tuple[int, list[Segment]]] = [(0, [])]
        """Segments when that many events had been told."""
        self._allocator = Allocator(self._tell, expandable=expandable)
        self._pending: set[int] = set()
        self._requested: dict[int, int] = {}
        self._play(random.Random(seed), operations)

    def _tell(self, event: Event) -> None:
        told = {**event, "time_us": 1_000_000 + 5 * len(self.events), "user_metadata": ""}
        if event["action"] == "alloc":
            self._requested[event["addr"]] = event["size"]
        elif event["action"].startswith("free"):
            told["size"] = self._requested[event["addr"]]  # torch tells what was asked for, not what it took
        self.events.append(told)
        allocator = self._allocator
        self.counters.append((allocator.allocated, allocator.reserved, allocator.active))

    def _play(self, chance: random.Random, operations: int) -> None:
        used: list[Block] = []
        waiting: list[Block] = []
        for _ in range(operations):
            dice = chance.random()
            if dice < 0.5 or not used:
                used.append(self._allocator.alloc(int(2 ** chance.uniform(0, 25))))
            elif dice < 0.9:
                block = used.pop(chance.randrange(len(used)))
                self._allocator.request_free(block)
                self._pending.add(id(block))
                waiting.append(block)
            elif dice < 0.93:
                self._allocator.empty_cache()
            while waiting and chance.random() < 0.6:
                block = waiting.pop()
                self._pending.discard(id(block))
                self._allocator.complete_free(block)
            self.moments.append((len(self.events), self._segments()))

    def _segments(self) -> list[Segment]:
        """As a snapshot has them: an expandable segment is one for each range that is mapped without a gap."""
        segments: list[Segment] = []
        last = None
        for block in sorted(self._allocator._blocks, key=lambda block: block.address):
            here = (block.segment, block.address)
            if last != here:
                segments.append(_segment(block, self.expandable))
            state = "inactive" if block.is_free else "active_allocated"
            if id(block) in self._pending:
                state = "active_pending_free"
            segments[-1]["blocks"].append(
                {"address": block.address, "size": block.size, "requested_size": block.size, "state": state}
            )
            segments[-1]["total_size"] += block.size
            last = (block.segment, block.address + block.size)
        return segments

    def truth(self, start: int, stop: int | None = None) -> list[int]:
        """The peaks of allocated, reserved and active bytes from before event `start` to after event `stop`."""
        return [
            max(column)
            for column in zip(*self.counters[start : None if stop is None else stop + 1], strict=True)
        ]

    def snapshot(self, start: int = 0, texts: Sequence[str] = (), *, stacks: bool = False) -> dict[str, Any]:
        """What a program that began to record before event `start` would dump at the end."""
        events = [dict(event) for event in self.events[start:]]
        for index, text in enumerate(texts):
            events[index]["user_metadata"] = text
        if stacks:
            for index, event in enumerate(events):
                event["frames"] = FRAMES[index % 2] if event["action"] == "alloc" else []
        return snapshot(events, self.moments[-1][1], expandable=self.expandable)


def _segment(block: Block, expandable: bool) -> Segment:
    return {
        "device": 0, "address": block.address, "total_size": 0, "stream": 0, "is_expandable": expandable, "blocks": [],
    }  # fmt: skip


def snapshot(events: list[Event], segments: list[Segment], *, expandable: bool = False) -> dict[str, Any]:
    """The dictionary that torch pickles."""
    settings = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True" if expandable else "",
        "max_split_size": -1,
        "garbage_collection_threshold": 0.0,
        "expandable_segments": expandable,
        "roundup_power2_divisions": {str(2**power): 0 for power in range(16)},
    }
    return {
        "segments": segments,
        "device_traces": [events],
        "allocator_settings": settings,
        "external_annotations": [],
    }


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    """A pickle."""
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def event(
    action: str, address: int, size: int, time_us: int = 1, text: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": time_us, "user_metadata": text, **more
    }  # fmt: skip


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def segment(address: int, *blocks: tuple[int, str]) -> dict[str, Any]:
    """A segment of a snapshot with these blocks, sizes and states, one after the other."""
    placed, at = [], address
    for size, state in blocks:
        placed.append({"address": at, "size": size, "requested_size": size, "state": state})
        at += size
    return {"device": 0, "address": address, "total_size": at - address, "stream": 0, "blocks": placed}


def peaks(run_dir: Path) -> list[tuple[int, int, int]]:
    """Of each rank: the largest of its spans."""
    with database.open_run(run_dir) as connection:
        return connection.execute(  # type: ignore[no-any-return]
            "SELECT MAX(allocated_peak_bytes), MAX(reserved_peak_bytes), MAX(active_peak_bytes) "
            "FROM spans GROUP BY rank ORDER BY rank"
        ).fetchall()
