"""The hidden layer of the feed-forward is alive when denoise peaks."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.analysis.diagnosis.settings_text import more_ffn_chunks
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """The hidden layer of the feed-forward is alive when denoise peaks."""
    return (
        f"The hidden layer of the feed-forward has {size_text(row['bytes'])} alive when denoise peaks on "
        f"{rank_text(row['ranks'])}."
    )


def knob(row: Row) -> str:
    """The setting for more chunks of the feed-forward."""
    return more_ffn_chunks(row)
