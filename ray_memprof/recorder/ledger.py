"""Who holds the device memory that no allocator statistic shows: an entry for every change, by account.

| account | what is booked to it |
|---|---|
| others | memory in use before this process made its CUDA context, and what other processes take later (NVML) |
| context | growth while CUDA started: the device.init span, or the first reading after it |
| nccl | growth across a collective, the making of a group, or a comm.* span |
| libraries | growth in a span whose path runs for the first time: kernels and handles are loaded on first use |

Growth anywhere else has no account: it is the difference between device memory and the sum of all accounts, and is
shown as `unexplained`. So the books may fail to close. That is their use: they show memory that nothing explains.

Memory that is given back is booked in the same way, but no account falls below zero. Where the driver does not report
what others hold, the rest is booked to others, as far as they held anything: no other memory of this process shrinks
unnoticed. Where nothing of this process is left outside the allocator, its context is gone (the device was reset), and
all accounts of this process fall to zero.
"""

from collections import Counter

from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Entry


class Ledger:
    """Books the difference between the device's memory in use and the allocator's reserved bytes."""

    def __init__(self) -> None:
        self._own = 0
        self.others = 0
        """Bytes of other processes, as far as known."""
        self._held: Counter[str] = Counter()
        self._has_context = False
        self._seen: set[str] = set()

    def book(
        self, reading: Reading, *, is_on: bool, span_id: int, path: str, others: int | None, account: str = ""
    ) -> list[Entry]:
        """Entries for what changed since the last call.

        Args:
            reading: taken just now.
            is_on: whether the program has started its device.
            span_id: innermost open span since the last call; 0: none.
            path: of that span.
            others: bytes of other processes; None: not known.
            account: the account to book the change to; "": decide by the span.
        """
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
        name = self._account(span_id, path, account, is_on=is_on)
        grown = outside - self.others - self._own
        if grown >= 0:
            changes[name] += grown
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

    def _account(self, span_id: int, path: str, account: str, *, is_on: bool) -> str:
        if is_on and not self._has_context:
            self._has_context = True
            return "context"
        if account:
            return account
        name = path.rpartition("/")[2]
        if name == "device.init":
            return "context"
        if name.startswith("comm."):
            return "nccl"
        return "libraries" if span_id and path not in self._seen else ""

    def close(self, path: str) -> None:
        """A span of this path ended: the next span of this path is not the first one."""
        self._seen.add(path)
