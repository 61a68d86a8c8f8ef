"""The diffusion transformer's weights are stored in fp32."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """The diffusion transformer's weights are stored in fp32."""
    return (
        f"The diffusion transformer's weights are stored in fp32 on {rank_text(row['ranks'])}: in bf16 they would take "
        f"{size_text(row['bytes'])} less."
    )


def knob(row: Row) -> str:
    """The setting for the dtype; if that was not fp32, what to look at."""
    if row["precision"] == "fp32":
        return "model_config.precision: bf16, which was fp32"
    return f"model_config.precision was {row['precision']}, yet they came in fp32: look at what loads them"
