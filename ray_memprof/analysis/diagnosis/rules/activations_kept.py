"""Checkpointing would drop a large part of the activations that are kept for the backward pass."""

from ray_memprof.analysis.diagnosis.row_text import Row, verb, who
from ray_memprof.wording import size_text


def sentence(row: Row) -> str:
    """Checkpointing would drop a large part of the activations that are kept for the backward pass."""
    whose = f" of {row['component']}" if row["component"] else ""
    blocks, dropped = "its blocks", f"about {size_text(row['bytes'])} or more"
    if row["num_blocks"]:
        blocks, dropped = f"its {row['num_blocks']} blocks", size_text(row["bytes"])
    keeps = f"{who(row)} {verb(row, 'keeps', 'keep up to')} {size_text(row['kept_bytes'])}"
    return (
        f"{keeps} of activations{whose} for the backward pass when {row['stage']} peaks: checkpointing {blocks} would "
        f"drop {dropped} of them."
    )


def knob(row: Row) -> str:
    """How to checkpoint; where blocks have no spans, how to learn what each of them keeps."""
    text = (
        "torch.utils.checkpoint around each block of the model (use_reentrant=False), which runs its forward pass "
        "twice; or a smaller batch, with more backward passes for a step"
    )
    return text if row["num_blocks"] else f"{text}; module_spans shows what each block keeps"
