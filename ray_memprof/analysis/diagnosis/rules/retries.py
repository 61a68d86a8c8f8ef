"""The allocator had to flush its cache: the device was full."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.analysis.diagnosis.settings_text import LOOK, expandable
from ray_memprof.wording import rank_text, size_text

ONLY_IF = "EXISTS (SELECT 1 FROM spans WHERE num_retries > 0)"


def sentence(row: Row) -> str:
    """The allocator had to flush its cache: the device was full."""
    cost = f", which took at most {row['extra_ns'] / 1e9:.2f} s" if row["extra_ns"] else ""
    times = "once" if row["num_retries"] == 1 else f"{row['num_retries']} times"
    return (
        f"The device was full: the allocator of {rank_text(row['ranks'])} flushed its cache {times} in "
        f"{row['stage']}{cost}, with up to {size_text(row['bytes'])} held and not in use."
    )


def knob(row: Row) -> str:
    """The setting for expandable segments and less memory at the peak; if they are on, what is alive at the peak."""
    if row["is_expandable"]:
        return f"what is alive when {row['stage']} peaks: {LOOK}"
    return f"{expandable(row)}; and less at the peak"
