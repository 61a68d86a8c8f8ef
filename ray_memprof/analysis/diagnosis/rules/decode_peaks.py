"""Decoding makes the peak."""

from ray_memprof.analysis.diagnosis.row_text import Row, above_next
from ray_memprof.analysis.diagnosis.script_text import decoding_smaller, is_script
from ray_memprof.analysis.diagnosis.settings_text import more_vae_slabs


def sentence(row: Row) -> str:
    """Decoding makes the peak."""
    return f"Decoding makes the peak of {above_next(row)}"


def knob(row: Row) -> str:
    """The setting for smaller slabs of the VAE; what a script can do."""
    return decoding_smaller(row) if is_script(row) else more_vae_slabs(row)
