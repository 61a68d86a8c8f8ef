"""A rank begins later than the others."""

from ray_memprof.analysis.diagnosis.row_text import Row, who


def sentence(row: Row) -> str:
    """A rank begins later than the others."""
    wait = ", and the others wait for it at their first collective" if row["is_awaited"] else ""
    return f"{who(row)} begins {row['late_ns'] / 1e9:.1f} s after the median rank{wait}."


def knob(row: Row) -> str:
    """Where to look for what the rank does before its first span."""
    key = ", model_config.load_strategy" if row["workload"] == "wan" else ", and what the script reads first"
    return f"what its node does before: see the logs of that rank in logs/, its disk{key}"
