"""A rank holds more than the typical one."""

from ray_memprof.analysis.diagnosis.row_text import Row, verb, who
from ray_memprof.analysis.diagnosis.settings_text import LOOK
from ray_memprof.wording import size_text


def sentence(row: Row) -> str:
    """A rank holds more than the typical one."""
    what = f"for {row['component']}" if row["component"] else "for no component"
    return (
        f"{who(row)} {verb(row, 'holds', 'hold')} {size_text(row['bytes'])} more {what} in {row['stage']} than "
        f"rank {row['typical_rank']}, whose peak there is the typical one."
    )


def knob(row: Row) -> str:
    """The setting of wan if one rank works for all ranks; else what to look at."""
    is_wan = row["workload"] == "wan"
    if is_wan and row["component"] == "vae" and row["vae"] == "rank0":
        return "parallel.vae: split, which was rank0"
    if is_wan and row["component"] == "t5" and row["stage"] == "encode.text" and row["t5_fsdp"] is False:
        return "parallel.t5_fsdp: true, which was false"
    return f"compare rank {row['ranks'][0]} with rank {row['typical_rank']}: {LOOK}"
