"""Memory outside the allocator grows over the visits of a stage."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """Memory outside the allocator grows over the visits of a stage."""
    whose = "it belongs to libraries" if row["account"] == "libraries" else "its owner is not known"
    return (
        f"Memory outside the allocator grows by {size_text(row['bytes'])} over {row['num_times']} visits of "
        f"{row['stage']} on {rank_text(row['ranks'])}; {whose}."
    )


def knob(row: Row) -> str:
    """Where to look; there is no key, because it is not known well enough who holds the memory."""
    return "the versions of cuDNN and NCCL, and what allocates by itself: ray-memprof query books, and collectives"
