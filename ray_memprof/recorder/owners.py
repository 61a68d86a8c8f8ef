"""Whose allocations are: claims on storages, and the events that allocated them.

    claims = Claims(meter)
    claims.add(parameter, Owner("GPT.lm_head.weight", "GPT", "weight"))       # on any thread of the program
    claims.move_to(found)
    rows = Owners().follow(columns, found)                                    # on the thread that writes

A storage is often named long after it was allocated: a weight when its module is moved to the device or called, a
gradient when the optimizer begins its step. So a claim says which storage a tensor has at a moment. The storage is
looked up among the allocations that are alive then, by address and by the bytes that were asked for, and the row of
the table `owners` names the event that allocated it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray_memprof.allocator.replay import Columns
from ray_memprof.recorder.meters.meter import Meter
from ray_memprof.recorder.restraint import paced
from ray_memprof.recorder.rows import Claim, Owner

if TYPE_CHECKING:
    import torch

SLACK_US = 1000
"""The clock of the events may be off by so much, either way: a claim may seem to come before its allocation."""
_NEVER = 2**63
_MANY = 4096
"""At least so many freed allocations are remembered, the last ones; far fewer are freed within SLACK_US."""


class Claims:
    """Takes claims from any thread; each costs 2 us.

    Args:
        meter: tells where the storage of a tensor is.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._claims: list[Claim] = []

    def add(self, tensor: "torch.Tensor", owner: Owner) -> None:
        """Say whose the storage of a tensor is, as it is now; ignored where the meter does not count the storage."""
        found = self._meter.locate(tensor)
        if found is not None:
            self._claims.append(Claim(*found, owner))

    def move_to(self, found: list[Claim]) -> None:
        """Move the claims so far to the end of `found`."""
        # No lock: another thread may append in the meantime, and its claim stays for the next time.
        taken = self._claims[:]
        num = len(taken)
        # No call between these, at which a signal's handler could come.
        found += taken
        del self._claims[:num]


_Alive = list[Any]
"""An allocation: number of its event, bytes asked for, its owner or None. A list, for one is made at every event."""


@dataclass(slots=True)
class OwnerRows:
    """Columns of the table owners."""

    seq: list[int] = field(default_factory=list)
    t_ns: list[int] = field(default_factory=list)
    owner: list[str] = field(default_factory=list)
    component: list[str | None] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    dtype: list[str | None] = field(default_factory=list)

    def note(self, seq: int, claim: Claim) -> None:
        """Add a row."""
        owner = claim.owner
        self.seq.append(seq)
        self.t_ns.append(claim.time_us * 1000)
        self.owner.append(owner.name)
        self.component.append(owner.component)
        self.category.append(owner.category)
        self.dtype.append(owner.dtype)


class Owners:
    """Follows the allocations that are alive, and finds those that are claimed."""

    def __init__(self) -> None:
        self._alive: dict[int, _Alive] = {}
        self._freed: dict[int, tuple[_Alive, int]] = {}
        """Allocations that were freed of late, by address, and when."""
        self._early: dict[int, Claim] = {}
        """Claims whose allocation has not been seen yet, by address."""

    def prime(self, columns: Columns) -> None:
        """Take what was held before the first event."""
        for action, address, seq, requested in zip(
            columns.action, columns.address, columns.seq, columns.requested_bytes, strict=True
        ):
            if action == "alloc":
                self._alive[address] = [seq, requested, None]

    def follow(
        self,
        columns: Columns,
        claims: Sequence[Claim],
        shift_us: int,
        pause: Callable[[], None],
    ) -> OwnerRows:
        """Follow events, and look up the claims made meanwhile.

        Args:
            columns: events in their order, with t_ns by their own clock.
            claims: none was made later than the next events will be.
            shift_us: microseconds by which the clock of the events is behind that of the claims.
            pause: called again and again, where the work may stop for a while.

        Returns:
            Rows of the table owners; t_ns is by the clock of the claims.
        """
        rows, alive, freed = OwnerRows(), self._alive, self._freed
        waiting = deque(sorted(claims, key=lambda claim: claim.time_us))
        next_ns = (waiting[0].time_us - shift_us + 1) * 1000 if waiting else _NEVER
        t_ns = 0
        for part in paced(len(columns.seq), pause):
            for action, address, seq, t_ns, requested in zip(
                columns.action[part],
                columns.address[part],
                columns.seq[part],
                columns.t_ns[part],
                columns.requested_bytes[part],
                strict=True,
            ):
                while t_ns >= next_ns:
                    self._settle(waiting.popleft(), shift_us, rows)
                    next_ns = (waiting[0].time_us - shift_us + 1) * 1000 if waiting else _NEVER
                if action == "alloc":
                    alive[address] = [seq, requested, None]
                    if address in self._early:
                        self._meet(address, t_ns // 1000 + shift_us, rows)
                elif action == "free_completed" and address in alive:
                    freed.pop(address, None)  # so that the order is that of the frees
                    freed[address] = (alive.pop(address), t_ns // 1000 + shift_us)
        for claim in waiting:
            self._settle(claim, shift_us, rows)
        self._forget(t_ns // 1000 + shift_us)
        return rows

    def _settle(self, claim: Claim, shift_us: int, rows: OwnerRows) -> None:
        one = self._alive.get(claim.address)
        if one is not None and one[1] == claim.bytes:
            _name(one, claim, rows)
            return
        one, freed_us = self._freed.get(claim.address, (None, 0))
        if one is not None and one[1] == claim.bytes and claim.time_us - freed_us <= SLACK_US:
            _name(one, claim, rows)
        else:
            self._early[claim.address] = claim

    def _meet(self, address: int, time_us: int, rows: OwnerRows) -> None:
        """An allocation appears where one was claimed."""
        claim, one = self._early.pop(address), self._alive[address]
        if claim.bytes == one[1] and time_us - claim.time_us <= SLACK_US:
            _name(one, claim, rows)

    def _forget(self, time_us: int) -> None:
        """Forget what no claim and no allocation can meet any more."""
        if self._early:
            self._early = {
                address: claim
                for address, claim in self._early.items()
                if time_us - claim.time_us <= SLACK_US
            }
        if len(self._freed) > 2 * _MANY:
            self._freed = dict(islice(self._freed.items(), len(self._freed) - _MANY, None))


def _name(one: _Alive, claim: Claim, rows: OwnerRows) -> None:
    known = one[2]
    # Of several owners of one kind that share a storage, the first counts.
    if known is None or known.category != claim.owner.category or known.component != claim.owner.component:
        one[2] = claim.owner
        rows.note(one[0], claim)
