"""The diffusion transformer's weights are stored in fp32."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """The diffusion transformer's weights are stored in fp32."""
    return (
        f"The diffusion transformer's weights are stored in fp32 on {rank_text(row['ranks'])}: half of them would do, "
        f"{size_text(row['bytes'])} less."
    )


def knob(row: Row) -> str:
    """The dtype that was asked for, unless it was not what came."""
    if row["precision"] == "fp32":
        return "model_config.precision: bf16, which was fp32"
    return f"model_config.precision was {row['precision']}, yet they came in fp32: look at what loads them"
