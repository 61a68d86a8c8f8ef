"""Memory outside the allocator grows over the visits of a stage."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """Memory outside the allocator grows over the visits of a stage."""
    whose = "libraries" if row["account"] == "libraries" else "nobody who is known"
    return (
        f"Memory outside the allocator grows by {size_text(row['bytes'])} over {row['num_times']} visits of "
        f"{row['stage']} on {rank_text(row['ranks'])}; it belongs to {whose}."
    )


def knob(row: Row) -> str:
    """No key: whose memory it is, is not known well enough."""
    return "the versions of cuDNN and NCCL, and what allocates by itself: ray-memprof query books, and collectives"
