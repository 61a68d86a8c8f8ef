"""Finds the new events in a copy of torch's ring, while other threads write into the ring: none twice, none lost.

    reader = RingReader(max_entries)
    new, is_whole = reader.take(copy, marker)      # copy: what torch gave; marker: stamp of the snapshot that made it

torch's ring is an array. It grows by appending until it has max_entries; then a cursor runs over it, from the first to
the last and again from the first, and each event takes the place of the oldest. A copy begins at the cursor, and does
not say where that is. But right after each copy torch puts an event of its own into the ring (action `snapshot`), with
the stamp of the thread that asked: a marker. The place of an earlier marker in the copy shows where the cursor is, and
so which places of the array were written since the copy before.

Emptying the ring instead would lose what other threads write between the copy and the emptying.
"""

from typing import Any

Events = list[dict[str, Any]]

MARKER = "ray-memprof "
"""How the stamp of every marker begins."""
MOST_BETWEEN = 4096
"""Events that other threads may write between a copy and its marker; both are made in one call of torch's."""
_NUM_COMPARED = 64
"""Last events of a copy that are remembered, to find them again before its marker."""


def is_marker(event: dict[str, Any]) -> bool:
    """Whether torch wrote this event because of one of our copies."""
    return event["action"] == "snapshot" and str(event.get("user_metadata", "")).startswith(MARKER)


class RingReader:
    """Follows one ring.

    Args:
        max_entries: how many events the ring takes; it is empty now.
    """

    def __init__(self, max_entries: int) -> None:
        self.emptied(max_entries)

    def emptied(self, max_entries: int) -> None:
        """The ring is empty now, and takes `max_entries`."""
        self.max_entries, self.length, self._cursor, self.num_new = max_entries, 0, 0, 0
        self._took = 0
        """How many events the ring took at the last copy, if it takes more now; 0: as many as now."""
        self._known = ("", 0)
        """The newest marker whose place is known, and that place."""
        self._pending = ""
        """The marker of the last copy: it lies behind the copied events, and behind those that came in between."""
        self._tail: list[tuple[Any, ...]] = []

    def resized(self, max_entries: int) -> None:
        """The ring keeps its events, and takes `max_entries` from now on: not fewer than it holds."""
        if max_entries > self.max_entries:
            self._took = self._took or self.max_entries
        self.max_entries = max_entries

    def take(self, copy: Events, marker: str) -> tuple[Events, bool]:
        """Return the new events of `copy`, in order of time, and whether none of the new events is missing.

        Markers are among them. If some are missing, the ring should be emptied: its places are not known any more.

        Args:
            copy: as torch gave it.
            marker: stamp of the event that torch writes behind this copy; every copy has a different one.
        """
        cursor = self._find_cursor(copy)
        new = list(copy) if cursor is None else self._new(copy, cursor)
        is_whole = cursor is not None
        self._remember(copy, new, cursor or 0, marker)
        return new, is_whole

    def _find_cursor(self, copy: Events) -> int | None:
        """Return the place at which the copy begins; None: it is not known, because too much is new."""
        if not self.length <= len(copy) <= self.max_entries:
            return None  # somebody else emptied it, or changed what it takes
        if len(copy) < (self._took or self.max_entries):
            # Events were only appended, if it is still the same ring.
            places = range(self.length, min(len(copy), self.length + MOST_BETWEEN))
            behind = (copy[(place - self._cursor) % len(copy)] for place in places)
            is_same = not self._pending or any(
                event.get("user_metadata") == self._pending for event in behind
            )
            return self._cursor if is_same else None
        if not self.length:
            return None
        at = _places(copy, (self._known[0], self._pending))
        if self._known[0] in at:
            return (self._known[1] - at[self._known[0]]) % len(copy)
        if self._pending in at:
            between = self._num_between(copy, at[self._pending])
            if between is not None:
                return (self._place(between) - at[self._pending]) % len(copy)
        return None

    def _place(self, number: int) -> int:
        """Return the place of an event after the last copy, by its number; the first one has number 0."""
        took = self._took or self.max_entries
        if self.length + number < took:
            return self.length + number
        return (self._cursor + self.length + number - took) % took

    def _num_between(self, copy: Events, marker: int) -> int | None:
        """Return the number of events between the last copy and its marker, found by the last events of that copy."""
        for between in range(min(marker, MOST_BETWEEN)):
            end = marker - between
            last = copy[max(0, end - len(self._tail)) : end]
            if last and [_key(event) for event in last] == self._tail[-len(last) :]:
                return between
        return None

    def _new(self, copy: Events, cursor: int) -> Events:
        """Return the events since the last copy in order of time: those appended, and those that replaced others."""
        size = len(copy)
        lap = self._took or size
        new = _between(copy, cursor, self.length, min(lap, size))
        if cursor >= self._cursor:
            new += _between(copy, cursor, self._cursor, cursor)
        else:
            new += _between(copy, cursor, self._cursor, lap) + _between(copy, cursor, 0, cursor)
        new += _between(copy, cursor, lap, size)
        if self._took and size == self.max_entries:
            # The ring takes more since, and is full again: some of the events that replaced others came last.
            new.sort(key=lambda event: int(event["time_us"]))
        return new

    def _remember(self, copy: Events, new: Events, cursor: int, marker: str) -> None:
        self.length, self._cursor, self._took = len(copy), cursor, 0
        self.num_new = len(new)
        if self._pending:
            at = _places(copy, (self._pending,))
            if self._pending in at:
                self._known = (self._pending, (cursor + at[self._pending]) % len(copy))
        self._pending = marker
        self._tail = [_key(event) for event in new[-_NUM_COMPARED:]] or self._tail


def _between(copy: Events, cursor: int, first: int, end: int) -> Events:
    """Events at the places from `first` to before `end`; the copy begins at the place `cursor`."""
    if first >= end:
        return []
    size = len(copy)
    first, num = (first - cursor) % size, end - first
    return copy[first : first + num] + copy[: max(0, first + num - size)]


def _places(copy: Events, markers: tuple[str, ...]) -> dict[str, int]:
    """Return where these markers are, if they are in the copy; searched from its end, because they are new."""
    wanted = {marker for marker in markers if marker}
    found: dict[str, int] = {}
    for number in range(len(copy) - 1, -1, -1):
        event = copy[number]
        if event["action"] == "snapshot" and event.get("user_metadata") in wanted:
            found[event["user_metadata"]] = number
            if len(found) == len(wanted):
                break
    return found


def _key(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return what stays the same from copy to copy: not the time, which torch computes each time from ticks."""
    return (event["action"], event.get("addr"), event["size"], event["stream"], event.get("user_metadata"))
