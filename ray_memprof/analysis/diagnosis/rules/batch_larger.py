"""The batch of one rank is larger than that of the others."""

from ray_memprof.analysis.diagnosis.row_text import Row, verb, who
from ray_memprof.wording import size_text


def sentence(row: Row) -> str:
    """The batch of one rank is larger than that of the others."""
    what = verb(
        row,
        "its batch is larger, or the samples in it are longer",
        "their batches are larger, or the samples in them are longer",
    )
    return (
        f"{who(row)} {verb(row, 'keeps', 'keep up to')} {size_text(row['bytes'])} more activations for the backward "
        f"pass than rank {row['typical_rank']}, which keeps {size_text(row['typical_bytes'])} with the same weights: "
        f"{what}."
    )


def knob(row: Row) -> str:
    """What makes batches equal."""
    return (
        "as many samples for each rank (drop_last of the sampler), and samples of about the same length: sort them "
        "into batches by length, or cut the longest"
    )
