"""Who holds the device memory that no allocator statistic shows: an entry for every change, by account.

| account | what is booked to it |
|---|---|
| others | memory in use before this process made its CUDA context, and what other processes take later (NVML) |
| context | growth while CUDA started: the device.init span, or the first reading after it |
| nccl | growth across a collective, the making of a group, a comm.* span, or calls that C++ makes (communicators.py) |
| libraries | growth in a span whose path runs for the first time: kernels and handles are loaded on first use |

Growth anywhere else has no account: it is the difference between device memory and the sum of all accounts, and is
shown as `unexplained`. So the books may fail to close. That is their use: they show memory that nothing explains.

Memory that is given back is booked in the same way, but no account falls below zero. Where the driver does not report
what others hold, the rest is booked to others, as far as they held anything: no other memory of this process shrinks
unnoticed. Where nothing of this process is left outside the allocator, its context is gone (the device was reset), and
all accounts of this process fall to zero.
"""

from collections import Counter
from typing import Any, NamedTuple

from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Entry


class Where(NamedTuple):
    """What a booking needs to know besides the reading."""

    is_on: bool
    """Whether the program has started its device."""
    span_id: int = 0
    """Innermost open span since the last call; 0: none."""
    path: str = ""
    """Of that span."""
    others: int | None = None
    """Bytes of other processes; None: not known."""


class Ledger:
    """Books the difference between the device's memory in use and the allocator's reserved bytes."""

    def __init__(self) -> None:
        self._own = 0
        self.others = 0
        """Bytes of other processes, as far as known."""
        self._held: Counter[str] = Counter()
        self._has_context = False
        self._seen: set[str] = set()

    @property
    def has_context(self) -> bool:
        """Whether the program's context is booked."""
        return self._has_context

    def state(self) -> tuple[Any, ...]:
        """What restore() needs to undo a booking that was interrupted."""
        return self._own, self.others, self._held.copy(), self._has_context

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to what state() returned."""
        self._own, self.others, self._held, self._has_context = state

    def is_first(self, where: Where) -> bool:
        """Whether libraries may be loaded there: the span's path runs for the first time."""
        return where.span_id > 0 and where.path not in self._seen

    def book(
        self, reading: Reading, where: Where, *, account: str = "", nccl: int | None = None
    ) -> list[Entry]:
        """Entries for what changed since the last call.

        Args:
            reading: taken just now.
            where: the span, and what others hold.
            account: the account to book the change to; "": decide by the span.
            nccl: by how much NCCL's own figure has grown: at most that is NCCL's, and the rest is booked as above;
                None: there is no such figure.
        """
        is_on, span_id, path, others = where
        outside = reading.device_used - reading.reserved
        if is_on and self._has_context and others in (None, self.others):
            if outside == self.others + self._own and self._own > 0:
                return []  # nothing has changed, the most frequent case
        changes: Counter[str] = Counter()
        if not is_on:
            # Before this process has a context, all memory in use is of other processes.
            others = outside
        if others is not None:
            changes["others"], self.others = others - self.others, others
        name = self._account(where, account)
        grown = outside - self.others - self._own
        if grown >= 0:
            part = min(nccl or 0, grown)
            changes["nccl"] += part
            changes[name] += grown - part
        else:
            changes.update(self._given_back(name, -grown, is_told=others is not None))
        self._own = outside - self.others
        if is_on and self._own <= 0 and any(self._held.values()):
            changes.update({one: -held - changes[one] for one, held in self._held.items()})
            self._has_context = False
        del changes[""]
        self._held.update({one: size for one, size in changes.items() if one != "others"})
        return [Entry(reading.t_ns, span_id, name, size) for name, size in changes.items() if size]

    def _given_back(self, name: str, size: int, *, is_told: bool) -> Counter[str]:
        """Return the changes when `size` bytes were given back; see the module's text."""
        changes: Counter[str] = Counter()
        if name:
            changes[name] = -min(size, self._held[name])
        if not is_told:
            changes["others"] = -min(size + changes[name], self.others)
            self.others += changes["others"]
        return changes

    def _account(self, where: Where, account: str) -> str:
        if where.is_on and not self._has_context:
            self._has_context = True
            return "context"
        if account:
            return account
        name = where.path.rpartition("/")[2]
        if name == "device.init":
            return "context"
        if name.startswith("comm."):
            return "nccl"
        return "libraries" if self.is_first(where) else ""

    def close(self, path: str) -> None:
        """A span of this path ended: the next span of this path is not the first one."""
        self._seen.add(path)
