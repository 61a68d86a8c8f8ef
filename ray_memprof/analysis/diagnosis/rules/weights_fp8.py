"""The diffusion transformer's weights are much of the peak, and could be stored in fp8."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text

ONLY_IF = "EXISTS (SELECT 1 FROM settings WHERE workload = 'wan' AND precision IN ('bf16', 'fp16'))"


def sentence(row: Row) -> str:
    """The diffusion transformer's weights are much of the peak, and could be stored in fp8."""
    return (
        f"The diffusion transformer's weights take {size_text(row['weight_bytes'])} of the peak on "
        f"{rank_text(row['ranks'])}: with linear layers in fp8 they would take {size_text(row['bytes'])} less, and the "
        "video would change a little."
    )


def knob(row: Row) -> str:
    """The setting for the dtype of these layers."""
    return "model_config.weights_dtype: fp8 (inexact), which was precision"
