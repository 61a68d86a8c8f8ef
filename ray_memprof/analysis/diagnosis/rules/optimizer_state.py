"""The state of an optimizer is a large part of the peak."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text

_HALF_OF = {"float64": "fp64", "float32": "fp32"}


def sentence(row: Row) -> str:
    """The state of an optimizer is a large part of the peak."""
    whose = f" for {row['component']}" if row["component"] else ""
    return (
        f"The state of the optimizer{whose} takes {size_text(row['bytes'])} of the peak in {row['stage']} on "
        f"{rank_text(row['ranks'])}{_kind(row)}."
    )


def _kind(row: Row) -> str:
    return f", most of it in {row['dtype']}" if row["dtype"] else ""


def knob(row: Row) -> str:
    """What makes the state smaller on each rank: shards, or numbers of fewer bits."""
    levers = []
    if row["num_ranks"] > 1:
        levers.append(
            f"shard it over the {row['num_ranks']} ranks that all keep it whole (FSDP2's fully_shard, or "
            "ZeroRedundancyOptimizer)"
        )
    if row["dtype"] not in ("uint8", "int8"):
        levers.append("an optimizer with states of 8 bits (bitsandbytes, torchao)")
    if row["dtype"] in _HALF_OF:
        levers.append(f"states in bf16 instead of {_HALF_OF[row['dtype']]}")
    return "; or ".join(levers) or "train fewer of the parameters (LoRA)"
