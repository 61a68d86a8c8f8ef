"""Checkpointing would drop a large part of the activations that are kept for the backward pass."""

from ray_memprof.analysis.diagnosis.row_text import Row, who
from ray_memprof.wording import size_text


def sentence(row: Row) -> str:
    """Checkpointing would drop a large part of the activations that are kept for the backward pass."""
    whose = f" of {row['component']}" if row["component"] else ""
    blocks = f"its {row['num_blocks']} blocks" if row["num_blocks"] else "its blocks"
    about = "" if row["num_blocks"] else "about "
    return (
        f"{who(row)} keeps {size_text(row['kept_bytes'])} of activations{whose} for the backward pass when "
        f"{row['stage']} peaks: with {blocks} checkpointed, {about}{size_text(row['bytes'])} less."
    )


def knob(row: Row) -> str:
    """How to checkpoint; where blocks have no spans, how to learn what each of them keeps."""
    text = (
        "torch.utils.checkpoint around each block of the model (use_reentrant=False), which runs its forward pass "
        "twice; or a smaller batch, with more backward passes for a step"
    )
    return text if row["num_blocks"] else f"{text}; module_spans shows what each block keeps"
