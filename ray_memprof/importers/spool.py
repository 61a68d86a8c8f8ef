"""The events of one device on their way from a snapshot into tables: on disk, 41 bytes each, read once forwards.

What is needed before the first of them can be followed (settings, final segments, what was held at the beginning)
is known only when all have been read. So they are laid down here, in a file without a name that goes with the process.
"""

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ray_memprof.block_sizes import Pool, pool_of
from ray_memprof.importers.beginning import Witness
from ray_memprof.replay import unsigned

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


class Spool:
    """Takes the events of one device; chunks() gives them back.

    Args:
        folder: on a disk with room for half the size of the snapshot.
    """

    def __init__(self, folder: Path) -> None:
        self.num_events = 0
        self.witness = Witness()
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the spool
        self._waiting: list[dict[str, Any]] = []
        self._actions: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._last_us = 0

    def add(self, event: dict[str, Any], stack: int) -> None:
        """One event, with the number of its Python stack.

        Raises:
            ValueError: it is none; the message says why.
        """
        event["frames"] = stack
        self._waiting.append(event)
        if len(self._waiting) == CHUNK_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Lay down what was added."""
        events, self._waiting = self._waiting, []
        try:
            rows = self._rows(events)
        except KeyError as error:
            raise ValueError(f"an event has no {error}") from error
        except TypeError as error:
            raise ValueError(f"an event has values of wrong types: {error}") from error
        rows.tofile(self._file)
        self.num_events += len(events)

    def _rows(self, events: list[dict[str, Any]]) -> "np.ndarray[Any, Any]":
        rows = np.empty(len(events), _ROW)
        actions = [event["action"] for event in events]
        # An oom event has what was free on the device in place of an address.
        addresses = _handles([event["addr"] if "addr" in event else 0 for event in events])
        sizes = _integers([event["size"] for event in events])
        if len(sizes) and min(sizes) < 0:
            raise ValueError(f"an event has size {min(sizes)}")
        self.witness.see(actions, addresses, sizes, _pools(events))
        rows["action"] = [self._number(self._actions, action) for action in actions]
        if len(self._actions) > _MOST_ACTIONS:
            raise ValueError(f"events have more than {_MOST_ACTIONS} different actions")
        rows["text"] = [self._number(self._texts, event.get("user_metadata") or "") for event in events]
        rows["stack"] = [event["frames"] for event in events]
        rows["addr"], rows["size"] = addresses, sizes
        rows["stream"] = _handles([event.get("stream", 0) for event in events])
        rows["time_us"] = _integers(self._times(events))
        return rows

    def _times(self, events: list[dict[str, Any]]) -> list[int]:
        """When each was; without a clock (torch before 2.1), when the one before was."""
        times = []
        for event in events:
            self._last_us = event.get("time_us", self._last_us)
            times.append(self._last_us)
        return times

    @staticmethod
    def _number(numbers: dict[str, int], word: Any) -> int:
        if not isinstance(word, str):
            raise TypeError(f"{type(word).__name__} instead of a text")
        return numbers.setdefault(word, len(numbers))

    @property
    def num_texts(self) -> int:
        """How many different texts the events carry."""
        return len(self._texts)

    def chunks(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        """All events, in order, with the texts that they carry: fields as replay.Event has them."""
        actions, texts = list(self._actions), list(self._texts)
        self._file.seek(0)
        while len(rows := np.fromfile(self._file, _ROW, CHUNK_EVENTS)):
            columns = [rows[name].tolist() for name in _ROW.names or ()]
            carried, events = [], []
            for action, text, stack, address, size, stream, time_us in zip(*columns, strict=True):
                carried.append(texts[text])
                events.append(
                    {"action": actions[action], "addr": address, "size": size, "stream": stream, "time_us": time_us,
                     "stack": stack if stack >= 0 else None}
                )  # fmt: skip
            yield carried, events

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


def _pools(events: list[dict[str, Any]]) -> list[Pool | None]:
    """The pool of each event, where it says; torch does from about 2.12 on."""
    return [pool_of(event["pool_id"]) if "pool_id" in event else None for event in events]


def _integers(values: list[Any]) -> "array[int]":
    """As 64 bits with a sign."""
    try:
        return array("q", values)
    except OverflowError as error:
        raise ValueError(f"an event has a number of more than 64 bits: {error}") from error


def _handles(values: list[Any]) -> "array[int]":
    """Addresses and handles as 64 bits without a sign."""
    try:
        return array("Q", values)
    except OverflowError:
        pass
    try:
        return array("Q", map(unsigned, values))
    except OverflowError as error:
        raise ValueError(f"an event has an address of more than 64 bits: {error}") from error
