"""Gradients of an earlier training step are still there at the peak."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """Gradients of an earlier training step are still there at the peak."""
    whose = f" of {row['component']}" if row["component"] else ""
    return (
        f"Gradients{whose} from an earlier training step are still there when {row['stage']} peaks: "
        f"{size_text(row['bytes'])} on {rank_text(row['ranks'])}."
    )


def knob(row: Row) -> str:
    """Where they should go."""
    return (
        "optimizer.zero_grad(set_to_none=True) right after optimizer.step(), so that they are gone in the next forward "
        "pass"
    )
