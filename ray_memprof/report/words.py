"""What measures and accounts are called for readers: on a GPU, and in a run of the CPU, where no device is measured.

    words = words_of("cpu")
    words.measures["device_used"]        # "process memory"
    words.accounts["context"]            # "process at its start"

In a run of the CPU the "device" of the tables is the process, and its "context" is what Python and torch had taken
before the first span; nothing caches, so that reserved memory is that of tensors. Tables and answers in SQL keep their
names. A prediction has the words of the device that it predicts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CPU = "cpu"
"""The source of a run (`runs.source`) that used no device."""


@dataclass(frozen=True, slots=True)
class Words:
    """The names of one kind of run."""

    measures: Mapping[str, str]
    """By measure, fullest first; a measure that is missing tells nothing in such a run, and is not shown."""
    accounts: Mapping[str, str]
    """By account, where its own name is not clear."""
    books: str = "books at the peak"
    of_used: str = "of what is used on the device"
    titles: Mapping[str, str] = field(default_factory=dict)
    """Of parts of the report, by question, where the usual title does not fit."""
    questions: Mapping[str, str] = field(default_factory=dict)
    """In words, by their names, where the usual words do not fit."""
    left_out: frozenset[str] = frozenset()
    """Questions without a part in the report: their answers are zeros."""

    @property
    def has_device(self) -> bool:
        """Whether a device was measured, so that reserved memory, its size and bounds of its use tell something."""
        return "reserved" in self.measures


_ACCOUNTS = {
    "uncategorised": "tensors, category not recorded",
    "active": "tensors",
    "before": "held before the first event",
}
ON_GPU = Words(
    measures={"device_used": "device used", "reserved": "reserved", "allocated": "allocated"},
    accounts={**_ACCOUNTS, "nccl": "NCCL"},
)
ON_CPU = Words(
    measures={"device_used": "process memory", "allocated": "tensors"},
    accounts={
        **_ACCOUNTS,
        "context": "process at its start",
        "nccl": "process groups",
        "others": "other processes",
        "heap": "Python, NumPy and libraries",
        "files": "mapped files",
        "shared": "shared memory",
        "absent": "tensors not in memory",
    },
    books="process at the peak",
    of_used="of its memory",
    titles={
        "books_at_peak": "Process at the peak",
        "nccl_by_communicator": "Process groups",
        "model_switching": "Loading and moving models",
    },
    questions={
        "books_at_peak": "What does the memory of the process consist of when it is largest?",
        "alive_at_peak": "Which tensors were alive when each rank had the most memory in tensors?",
        "nccl_by_communicator": "How much memory does each process group hold, and how is that known?",
        "model_switching": "What does it cost to load models and to let go of them?",
        "replay_check": "Do the recorded events add up to the memory in tensors, and what did recording cost?",
    },
    left_out=frozenset({"fragmentation"}),
)


def words_of_runs(sources: Iterable[str | None]) -> Words:
    """The names for runs side by side: those of a process if all of them used no device."""
    found = set(sources)
    return ON_CPU if found == {CPU} else ON_GPU


def words_of(source: str | None) -> Words:
    """The names for a run; None: its driver wrote no row."""
    return ON_CPU if source == CPU else ON_GPU
