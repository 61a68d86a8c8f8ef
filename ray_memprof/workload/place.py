"""Which rank a process is, and how many ranks there are."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The numbers of one rank."""

    rank: int
    local_rank: int
    """Among the ranks of its node: the index of its GPU."""
    num_ranks: int
