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

from ray_memprof.importers.beginning import Witness

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
"""Of all events of a device: 10 M of 200 GiB each. Sums over them are numbers of 64 bits."""
MAX_TIME_US = 2**63 // 1000 - 1
"""Nanoseconds since 1970 that 64 bits hold: the year 2262."""


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
        self._last_us = self._total_bytes = 0

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
        addresses = _unsigned(
            "address", [event["addr"] if "addr" in event else event.get("device_free", 0) for event in events]
        )
        sizes = _within("size", [event["size"] for event in events], 2**63 - 1)
        self._add_up(actions, sizes)
        self.witness.see(actions, addresses, sizes)
        rows["action"] = [self._number(self._actions, action) for action in actions]
        if len(self._actions) > _MOST_ACTIONS:
            raise ValueError(f"events have more than {_MOST_ACTIONS} different actions")
        rows["text"] = [self._number(self._texts, event.get("user_metadata") or "") for event in events]
        rows["stack"] = [event["frames"] for event in events]
        rows["addr"], rows["size"] = addresses, sizes
        rows["stream"] = _unsigned("stream", [event.get("stream", 0) for event in events])
        rows["time_us"] = _within("time", self._times(events), MAX_TIME_US)
        return rows

    def _add_up(self, actions: list[str], sizes: "array[int]") -> None:
        """See that no sum over the events leaves 64 bits. An oom may have asked for anything."""
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

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


def _unsigned(what: str, values: list[Any]) -> "array[int]":
    """Addresses and handles use all 64 bits; C++ writes the upper half of them as negative."""
    try:
        return array("Q", values)
    except OverflowError:
        outside = [value for value in values if not -(2**63) <= value < 2**64]
        if outside:
            raise ValueError(f"an event has {what} {shown(outside[0])}: no number of 64 bits") from None
        return array("Q", [value % 2**64 for value in values])


def _within(what: str, values: list[Any], most: int) -> "array[int]":
    try:
        numbers = array("q", values)
    except OverflowError:
        numbers = array("q", [0])
        lowest, highest = min(values), max(values)
    else:
        lowest, highest = min(numbers, default=0), max(numbers, default=0)
    if lowest < 0 or highest > most:
        raise ValueError(f"an event has {what} {shown(lowest if lowest < 0 else highest)}")
    return numbers


def shown(value: object) -> str:
    """A value as a message has it: short, whatever it is."""
    if not isinstance(value, int | str):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
