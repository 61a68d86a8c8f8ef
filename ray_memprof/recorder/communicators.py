"""The process groups of this process, and what each holds of the device outside the allocator.

    groups = Communicators(recorder.problem)
    entries = groups.book(ledger, reading, where, account="")     # at every reading: entries of the ledger
    rows += groups.rows(reading.t_ns)                             # rows of the table communicators that are new

NCCL takes its buffers when a group is made and when it is first used, whoever calls it: torch.distributed in Python, or
C++ such as the reducer of DistributedDataParallel. So each reading looks at the number of calls that every group has
counted. Where memory outside the allocator has grown and a group has made calls since the reading before, the growth is
NCCL's. How much of it is known comes from the first of these that there is:

| how_known | what the bytes are |
|---|---|
| own | NCCL's own figure: backend.memory_stats(), torch >= 2.12 with NCCL >= 2.29.7 |
| growth | growth across calls of the group; `shared` of it may in part be a library's, loaded meanwhile |
| formula | not measured, for the CUDA context was made meanwhile; a formula bounds them (nccl_by_communicator) |
| none | nothing was taken: no call was made, or the backend keeps nothing on the device |

A reading costs 0.5 us more with it, and 0.5 to 1 us a group. The groups themselves are never kept: torch frees a group
with its last user.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_memprof.recorder.handler_errors import pass_on, suppressed
from ray_memprof.recorder.ledger import Ledger, Where
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Communicator, Entry
from ray_memprof.wording import error_line

OWN, GROWTH, FORMULA, NONE = "own", "growth", "formula", "none"
"""How the bytes of a group are known."""
_NCCL = "nccl"


@dataclass(slots=True, eq=False)
class _Group:
    """What is known of a process group."""

    name: str
    backend: str
    ranks: str
    size: int
    is_eager: bool
    """Whether its communicator was made with it: the program has named a device."""
    num_calls: int = 0
    bytes: int | None = 0
    shared: int = 0
    how: str = NONE
    told: tuple[int | None, int, str, bool] | None = None
    """What its last row says."""
    told_calls: int = 0

    @property
    def is_nccl(self) -> bool:
        return self.backend == _NCCL

    @property
    def is_in_use(self) -> bool:
        """Whether it may have a communicator by now."""
        return self.is_nccl and (self.is_eager or self.num_calls > 0)

    def state(self) -> tuple[int | None, int, str, bool]:
        return self.bytes, self.shared, self.how, self.num_calls > 0

    def hold(self, more: int, *, is_shared: bool) -> None:
        """Its memory has grown, or shrunk, by `more` bytes."""
        if self.bytes is None or (self.how == OWN and more > 0):  # NCCL's own figure knows better
            return
        if more < 0 and not self.bytes:  # nothing that it is known to hold was given back
            return
        self.bytes = max(0, self.bytes + more)
        self.shared = min(self.bytes, max(0, self.shared + more * (is_shared or more < 0)))
        if self.how == NONE:
            self.how = GROWTH


class Communicators:
    """The groups as they come and go; book() is called wherever the recorder reads the meter.

    Args:
        problem: is told what a group does not tell of itself.
    """

    def __init__(self, problem: Callable[[str], None]) -> None:
        self._problem = problem
        self._ids: list[int] = []
        self._known: list[_Group] = []
        self._called: list[_Group] = []
        """Groups that made calls, or were made with their communicator, since the last booking."""
        self._first: list[_Group] = []
        """Those of _called that had made none before."""
        self._gone: list[_Group] = []
        """Groups that were destroyed since the last booking."""
        self._together = _Group("", _NCCL, "", 0, is_eager=False)
        """What several groups have taken between the same two readings, and nobody tells apart."""
        self._together.told = self._together.state()
        self._ended: list[_Group] = []
        """Groups that were destroyed and may still need a row."""
        self._is_new = False
        """Whether rows() may have something to tell."""
        self._outside = 0
        self._can_ask = True

    def look(self) -> None:
        """Find out which groups there are and which of them have made calls; from any thread, never raises."""
        groups = _groups()
        if not groups and not self._ids:
            return
        if (ids := list(map(id, groups))) != self._ids:
            self._renew(groups, ids)
        for group, known in zip(groups, self._known, strict=True):
            if not known.is_nccl:
                continue
            try:
                num_calls = group._get_sequence_number_for_group()
            except (
                Exception
            ) as error:  # the group was destroyed on another thread meanwhile, or does not count
                pass_on(error)
                self._problem(f"calls of a process group are not counted: {error_line(error)}")
                continue
            if num_calls != known.num_calls:
                self._note_called(known)
                known.num_calls = num_calls

    def _note_called(self, known: _Group) -> None:
        if known not in self._called:
            self._called.append(known)
            if not known.num_calls:
                self._first.append(known)
                self._is_new = True
            if known.how == NONE:
                known.how = GROWTH

    def _renew(self, groups: Sequence[Any], ids: list[int]) -> None:
        before = dict(zip(self._ids, self._known, strict=True))
        self._known = []
        for group in groups:
            known = before.pop(id(group), None)
            if known is None:
                known = _described(group)
                if known.is_in_use:
                    self._note_called(known)
            self._known.append(known)
        self._ids, self._is_new = ids, True
        self._gone += before.values()
        self._ended += before.values()

    def is_quiet(self) -> bool:
        """Whether no group can have a communicator yet."""
        self.look()
        return not any(known.is_in_use for known in self._known)

    def book(
        self,
        ledger: Ledger,
        reading: Reading,
        where: Where,
        *,
        account: str = "",
        group: str = "",
        may_ask: bool = True,
    ) -> list[Entry]:
        """Book what changed since the last reading, and what of it is whose; see Ledger.book.

        Args:
            ledger: has the books.
            reading: taken just now.
            where: the span, and what others hold.
            account: "nccl" where a collective that is watched has just returned.
            group: the name of its group.
            may_ask: False: not on the model's thread, so NCCL, which may hang, is not asked.
        """
        self.look()
        outside = reading.device_used - reading.reserved
        if outside == self._outside and not self._called and not self._gone:
            return ledger.book(reading, where, account=account)  # by far the most frequent case
        grown, self._outside = outside - self._outside, outside
        own = None
        if grown > 0 and (self._called or account):
            own = self._own_growth() if may_ask else None
        had_context = ledger.has_context
        is_shared = not account and ledger.is_first(where)
        told = account or (_NCCL if self._called and own is None and grown > 0 else "")
        entries = ledger.book(reading, where, account=told, nccl=own)
        self._share(entries, group, is_shared=is_shared)
        if own is None and not had_context and any(one.account == "context" for one in entries):
            self._hide(self._called)
        if where.is_on:  # until then nothing is booked to this process
            self._called, self._first, self._gone = [], [], []
        return entries

    def _share(self, entries: Sequence[Entry], group: str, *, is_shared: bool) -> None:
        """Give the groups what was booked to NCCL."""
        for entry in entries:
            if entry.account == _NCCL:
                whose = self._shrunk(group) if entry.bytes < 0 else self._grown(group)
                whose.hold(entry.bytes, is_shared=is_shared)
                self._is_new = True

    def _grown(self, group: str) -> _Group:
        """The group that has grown: the one that made its first call, or the only one that made any."""
        named = [one for one in self._known if group and one.name == group]
        found = self._first or self._called or named or self._known
        return found[0] if len(found) == 1 else self._several()

    def _several(self) -> _Group:
        """What several groups share; it has their backend where all have the same."""
        backends = {one.backend for one in (*self._known, *self._gone)}
        self._together.backend = backends.pop() if len(backends) == 1 else ""
        return self._together

    def _shrunk(self, group: str) -> _Group:
        return self._gone[0] if len(self._gone) == 1 else self._grown(group)

    def _hide(self, groups: Sequence[_Group]) -> None:
        """The context was made between the same readings as these communicators: only a formula tells them apart."""
        for one in groups:
            if one.how in (NONE, GROWTH) and not one.bytes:
                one.bytes, one.how = None, FORMULA
                self._is_new = True

    def _own_growth(self) -> int | None:
        """By how much NCCL's own figures exceed what is known so far; None: it has none."""
        figures: list[tuple[_Group, int]] = []
        for group, known in zip(_groups(), self._known, strict=False):
            if known.is_in_use:
                figure = self._ask(group)
                if figure is None:
                    return None
                figures.append((known, figure))
        if not figures:
            return None
        # What was not measured is booked to the context already.
        grown = sum(figure - (figure if known.bytes is None else known.bytes) for known, figure in figures)
        for known, figure in figures:
            known.bytes, known.shared, known.how = figure, 0, OWN
        self._is_new = True
        return max(0, grown)

    def _ask(self, group: Any) -> int | None:
        if not self._can_ask:
            return None
        import torch

        try:
            backend = group._get_backend(torch.device("cuda"))
            if not hasattr(backend, "memory_stats"):  # torch < 2.12
                self._can_ask = False
                return None
            return int(backend.memory_stats()["total"])
        except Exception as error:  # an NCCL that is too old for it, or a communicator that is not made yet
            pass_on(error)
            return None

    def rows(self, t_ns: int, *, is_last: bool = False) -> list[Communicator]:
        """Rows for the groups of which something is new.

        Args:
            t_ns: the time of the rows.
            is_last: the recording ends: numbers of calls count as new too.
        """
        rows: list[Communicator] = []
        if not (self._is_new or is_last):
            return rows
        self._is_new = False
        for one in (*self._known, *self._ended, self._together):
            if one.state() != one.told or (is_last and one.num_calls != one.told_calls):
                one.told, one.told_calls = one.state(), one.num_calls
                rows.append(
                    Communicator(
                        t_ns,
                        one.name,
                        one.backend,
                        one.size,
                        one.ranks,
                        one.num_calls,
                        one.bytes,
                        one.shared,
                        one.how,
                    )
                )
        self._ended = list(self._gone)
        return rows


def _groups() -> list[Any]:
    """The process groups that this process belongs to."""
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    return [] if c10d is None else list(c10d._world.pg_map)


def _described(group: Any) -> _Group:
    """What a new group tells of itself; what it does not tell stays empty."""
    import torch.distributed as dist

    name = backend = ranks = ""
    size, is_eager = 0, False
    with suppressed():  # a program's own classes may lack attributes that torch does not need
        name, size = str(group.group_name), int(group.size())
    with suppressed():
        backend = str(group.name()).lower()
    with suppressed():
        ranks = ranks_text(dist.get_process_group_ranks(group))
    with suppressed():
        is_eager = group.bound_device_id is not None
    return _Group(name, backend, ranks, size, is_eager=is_eager)


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks with their ranges: "0-3,8"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
