"""Parts of sentences that several rules share: which ranks a finding is about.

Takes rows of the rules; returns texts.
"""

from typing import Any, TypeAlias

from ray_memprof.wording import rank_text, size_text

Row: TypeAlias = dict[str, Any]
"""A row of a rule's SQL."""


def who(row: Row) -> str:
    """The ranks, as the beginning of a sentence: "Ranks 0 to 3"."""
    text = rank_text(row["ranks"])
    return text[0].upper() + text[1:]


def verb(row: Row, one: str, several: str) -> str:
    """`one` for a single rank, `several` for more ranks."""
    return one if len(row["ranks"]) == 1 else several


def above_next(row: Row) -> str:
    """Which ranks, and how far their peak is above that of the next stage."""
    return (
        f"{rank_text(row['ranks'])}: {size_text(row['bytes'])} more than {row['other_stage']}, "
        "the next stage below it."
    )
