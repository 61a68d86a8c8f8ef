"""Keeps the events of one device on disk between the snapshot and the tables, 41 bytes for each event.

What is needed before the first event can be replayed (settings, final segments, what was held at the beginning) is
known only when all events have been read. So they are stored here first, in a file without a name that disappears
with the process.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_memprof.allocator.before_trace import BeforeTrace
from ray_memprof.allocator.doubt import Pool, pool_of
from ray_memprof.allocator.replay import address_of
from ray_memprof.formats.torch_snapshot.event_shapes import Run, Whole
from ray_memprof.formats.torch_snapshot.snapshot_parts import as_address, as_text, as_whole, shown

CHUNK_EVENTS = 16_384
_ROW = np.dtype(
    [
        ("action", "u1"),
        ("text", "i4"),
        ("stack", "i4"),
        ("addr", "u8"),
        ("size", "i8"),
        ("stream", "u8"),
        ("time_us", "i8"),
    ]
)
_MOST_ACTIONS = 256
MAX_TOTAL_BYTES = 2**61
"""The most bytes of all events of a device: 10 M events of 200 GiB each. Sums of them must fit in 64 bits."""
MAX_TIME_US = 2**63 // 1000 - 1
"""The last microsecond since 1970 whose nanoseconds fit in 64 bits, in the year 2262."""
_MOST = {"size": 2**63 - 1, "time_us": MAX_TIME_US}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Events in order, by column."""

    actions: list[str]
    action: "np.ndarray[Any, Any]"
    """Index into actions."""
    texts: list[str]
    text: "np.ndarray[Any, Any]"
    """Index into texts: the text that each event carries."""
    address: "np.ndarray[Any, Any]"
    size: "np.ndarray[Any, Any]"
    stream: "np.ndarray[Any, Any]"
    t_ns: "np.ndarray[Any, Any]"
    stack: "np.ndarray[Any, Any]"
    """Number of the Python stack; -1: none."""


class Spool:
    """Takes the events of one device; chunks() gives them back.

    Args:
        folder: for the file; its disk must have room for half the size of the snapshot.
    """

    def __init__(self, folder: Path) -> None:
        self.num_events = 0
        self.before = BeforeTrace()
        self.stack_ids: Sequence[int] = ()
        """For each number of a Python stack, the number that chunks() gives in its place; -1: no stack."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the spool
        self._waiting: list[dict[str, Any]] = []
        self._actions: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._last_us = self._total_bytes = 0

    def add(self, event: dict[str, Any], stack: int) -> None:
        """Add one event, with the number of its Python stack.

        Raises:
            ValueError: it is no event; the message says why.
        """
        event["frames"] = stack
        self._waiting.append(event)
        if len(self._waiting) == CHUNK_EVENTS:
            self.flush()

    def add_run(self, run: Run, texts: list[str], text: Whole, stacks: Whole) -> None:
        """Add many events.

        Args:
            run: the events, by column.
            texts: the different texts that they carry.
            text: for each event, the index of its text in `texts`.
            stacks: for each event, the number of its Python stack.

        Raises:
            ValueError: one of them is no event; the message says why.
        """
        self.flush()
        rows = np.empty(len(text), _ROW)
        for name, column in run.columns.items():
            rows[name] = column.view(_ROW[name])
        for name in ("size", "time_us"):
            # A number from 2^63 on is negative here.
            _check(name, int(rows[name].min()), int(rows[name].max()), _MOST[name])
        rows["action"] = np.array([self._action(action) for action in run.actions])[run.action]
        rows["text"] = np.array([self._number(self._texts, one) for one in texts])[text]
        rows["stack"] = stacks
        self._last_us = int(rows["time_us"][-1])
        has_pools = any(pool is not None for pool in run.pools)
        self._lay_down(rows, [run.pools[number] for number in run.action.tolist()] if has_pools else ())

    def flush(self) -> None:
        """Store the events that were added one by one."""
        events, self._waiting = self._waiting, []
        if not events:
            return
        try:
            rows = self._rows(events)
            pools = _pools(events)
        except KeyError as error:
            raise ValueError(f"an event has no {error}") from error
        except TypeError as error:
            raise ValueError(f"an event has values of wrong types: {error}") from error
        self._lay_down(rows, pools)

    def _lay_down(self, rows: "np.ndarray[Any, Any]", pools: Sequence[Pool | None] = ()) -> None:
        actions = list(self._actions)
        named = [actions[number] for number in rows["action"].tolist()]
        sizes = rows["size"].tolist()
        self._add_up(named, sizes)
        self.before.see(named, rows["addr"].tolist(), sizes, pools, rows["stream"].tolist())
        rows.tofile(self._file)
        self.num_events += len(rows)

    def _rows(self, events: list[dict[str, Any]]) -> "np.ndarray[Any, Any]":
        rows = np.empty(len(events), _ROW)
        rows["addr"] = [as_address(address_of(event)) for event in events]
        rows["stream"] = [as_address(event.get("stream", 0)) for event in events]
        for name, values in (("size", [event["size"] for event in events]), ("time_us", self._times(events))):
            numbers = list(map(as_whole, values))
            _check(name, min(numbers), max(numbers), _MOST[name])
            rows[name] = numbers
        rows["action"] = [self._action(event["action"]) for event in events]
        texts = [event.get("user_metadata") for event in events]
        rows["text"] = [self._number(self._texts, "" if text is None else text) for text in texts]
        rows["stack"] = [event["frames"] for event in events]
        return rows

    def _action(self, action: Any) -> int:
        number = self._number(self._actions, action)
        if number >= _MOST_ACTIONS:
            raise ValueError(f"events have more than {_MOST_ACTIONS} different actions")
        return number

    def _add_up(self, actions: list[str], sizes: list[int]) -> None:
        """Check that no sum over the events exceeds 64 bits; an oom does not count, it may have asked for anything."""
        self._total_bytes += sum(sizes)
        if self._total_bytes > MAX_TOTAL_BYTES:
            self._total_bytes -= sum(
                size for action, size in zip(actions, sizes, strict=True) if action == "oom"
            )
            if self._total_bytes > MAX_TOTAL_BYTES:
                raise ValueError(
                    f"events of {self._total_bytes:,} bytes in all, which no device can have moved"
                )

    def _times(self, events: list[dict[str, Any]]) -> list[int]:
        """The time of each event; without one (torch before 2.1), the time of the event before it."""
        times = []
        for event in events:
            self._last_us = event.get("time_us", self._last_us)
            times.append(self._last_us)
        return times

    @staticmethod
    def _number(numbers: dict[str, int], word: Any) -> int:
        return numbers.setdefault(as_text(word), len(numbers))

    @property
    def num_texts(self) -> int:
        """How many different texts the events carry."""
        return len(self._texts)

    def chunks(self) -> Iterator[Chunk]:
        """All events, in order."""
        actions, texts = list(self._actions), list(self._texts)
        ids = np.array([*self.stack_ids, -1], np.int32)  # the last one is that of -1
        self._file.seek(0)
        while len(rows := np.fromfile(self._file, _ROW, CHUNK_EVENTS)):
            yield Chunk(
                actions=actions,
                action=rows["action"],
                texts=texts,
                text=rows["text"],
                address=rows["addr"],
                size=rows["size"],
                stream=rows["stream"],
                t_ns=rows["time_us"] * 1000,
                stack=ids[rows["stack"]],
            )

    def blocks(self) -> Iterator[tuple[list[str], list[int], list[int]]]:
        """Action, address and size of all events, in order."""
        actions = list(self._actions)
        self._file.seek(0)
        while len(rows := np.fromfile(self._file, _ROW, CHUNK_EVENTS)):
            names = [actions[number] for number in rows["action"].tolist()]
            yield names, rows["addr"].tolist(), rows["size"].tolist()

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


def _check(what: str, lowest: int, highest: int, most: int) -> None:
    if lowest < 0 or highest > most:
        raise ValueError(f"an event has {what} {shown(lowest if lowest < 0 else highest)}")


def _pools(events: list[dict[str, Any]]) -> list[Pool | None]:
    """The pool of each event, if the event names it; torch writes it from about version 2.12 on."""
    return [pool_of(event["pool_id"]) if "pool_id" in event else None for event in events]
