"""More is reserved than was ever in use at once."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.analysis.diagnosis.settings_text import LOOK, expandable
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """More is reserved than was ever in use at once."""
    each = f" on each of {row['num_streams']} streams" if row["num_streams"] > 1 else ""
    text = (
        f"Reserved memory of {rank_text(row['ranks'])} peaks in {row['stage']}, {size_text(row['bytes'])} above the "
        f"most in use at once{each}"
    )
    if row["is_expandable"]:
        return f"{text}, with expandable segments."
    return f"{text}: expandable segments would give back at most that."


def knob(row: Row) -> str:
    """The setting for expandable segments; if they are on already, what makes the largest tensors smaller."""
    if not row["is_expandable"]:
        return expandable(row)
    if row["workload"] == "wan":
        lever = {"denoise": "optimization.ffn_chunks", "decode": "optimization.vae_slabs"}.get(row["stage"])
        return f"the largest tensors, with more {lever}" if lever else f"the largest tensors: {LOOK}"
    return "the largest tensors, or torch.cuda.empty_cache() between stages"
