"""Who holds the memory of a process beside its tensors, in a run of the CPU: by the kernel's kinds of pages.

| account | what is booked to it |
|---|---|
| context | all that the process held when its recording began, and the growth in device.init spans |
| nccl | growth of private memory across a collective, and in comm.* spans |
| heap | private memory that is no tensor: objects of Python, NumPy arrays, buffers, what malloc keeps for later |
| files | pages of mapped files: code of libraries, and weights and data that are read by mmap |
| shared | shared memory: what DataLoader's workers hand over, Ray's object store |
| absent | 0 or less: tensors that take no memory: never written, not read from their file yet, or swapped out |

The kernel counts pages, and the meter counts tensors, of which it knows the kind. So these accounts hold all of the
process, at every reading. Where private memory is less than at the start and the tensors together, tensors have first
taken what malloc kept at the start (the account context shrinks by it); the rest is absent. Absent tensors and heap
cannot be told apart from each other: where there are both, only their sum is known, and one of the two is 0.
"""

import ctypes
from typing import Any, NamedTuple

from ray_memprof.recorder.ledger import Ledger, Where
from ray_memprof.recorder.meters.meter import Pages, Reading
from ray_memprof.recorder.rows import Entry

_ACCOUNTS = ("context", "nccl", "heap", "files", "shared", "absent")


class _Beside(NamedTuple):
    """Memory of the process that is no tensor, by kind; below 0 where tensors take no memory."""

    private: int = 0
    files: int = 0
    shared: int = 0

    def plus(self, other: "_Beside") -> "_Beside":
        return _Beside(self.private + other.private, self.files + other.files, self.shared + other.shared)

    def minus(self, other: "_Beside") -> "_Beside":
        return _Beside(self.private - other.private, self.files - other.files, self.shared - other.shared)


class HostLedger(Ledger):
    """Books the memory of the process beside its tensors; as a Ledger where the kernel tells no kinds of pages."""

    def __init__(self) -> None:
        super().__init__()
        self._base: _Beside | None = None
        self._before, self._tensors = _Beside(), _Beside()
        self._kept = self._of_groups = 0
        self._booked: tuple[int, ...] = (0,) * len(_ACCOUNTS)

    def state(self) -> tuple[Any, ...]:
        """What restore() needs to undo a booking that was interrupted."""
        mine = (self._base, self._before, self._tensors, self._kept, self._of_groups, self._booked)
        return super().state(), mine

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to what state() returned."""
        theirs, mine = state
        self._base, self._before, self._tensors, self._kept, self._of_groups, self._booked = mine
        super().restore(theirs)

    def book(
        self, reading: Reading, where: Where, *, account: str = "", nccl: int | None = None
    ) -> list[Entry]:
        """Entries for what changed since the last call; see Ledger.book."""
        pages = reading.pages
        if pages is None:
            return super().book(reading, where, account=account, nccl=nccl)
        tensors = _tensors(reading, pages)
        beside = _Beside(reading.device_used - pages.files - pages.shared, pages.files, pages.shared).minus(
            tensors
        )
        if beside == self._before and tensors == self._tensors:
            return []
        self._tensors = tensors
        name = self._account(where, account)
        if self._base is None:
            self._base, self._before, self._kept = _Beside(), _Beside(), kept_by_malloc()
            name, self._has_context = "context", True
        grown = beside.minus(self._before)
        self._before = beside
        if name == "context":
            self._base = self._base.plus(grown)
        elif name == "nccl":
            self._of_groups = max(0, self._of_groups + grown.private)
        held = self._held_now(beside, self._base, tensors)
        before, self._booked = self._booked, held
        return [
            Entry(reading.t_ns, where.span_id, name, now - then)
            for name, now, then in zip(_ACCOUNTS, held, before, strict=True)
            if now != then
        ]

    def _held_now(self, beside: _Beside, base: _Beside, tensors: _Beside) -> tuple[int, ...]:
        """What each of _ACCOUNTS holds; together exactly what is beside the tensors."""
        over = beside.minus(base)
        of_groups = max(0, min(self._of_groups, over.private))
        private = over.private - of_groups
        reused = min(max(0, -private), self._kept)
        absent = -(
            min(max(0, -private - reused), tensors.private)
            + min(max(0, -over.files), tensors.files)
            + min(max(0, -over.shared), tensors.shared)
        )
        heap, files, shared = max(0, private), max(0, over.files), max(0, over.shared)
        # What is left of the start: it may have shrunk.
        context = beside.private + beside.files + beside.shared - of_groups - heap - files - shared - absent
        return context, of_groups, heap, files, shared, absent


def _tensors(reading: Reading, pages: Pages) -> _Beside:
    private = reading.allocated - pages.file_tensors - pages.shared_tensors
    return _Beside(private, pages.file_tensors, pages.shared_tensors)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def kept_by_malloc() -> int:
    """Bytes that glibc's malloc keeps for later allocations; 0: another libc, or one before 2.33, does not tell."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _Mallinfo2
    return int(ask().fordblks)
