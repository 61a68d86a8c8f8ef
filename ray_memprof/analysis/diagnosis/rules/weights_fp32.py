"""Weights of a network that is not trained are stored in fp32."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.analysis.diagnosis.script_text import NETWORKS, is_script, stored_in_bf16
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """Weights of a network that is not trained are stored in fp32."""
    network = NETWORKS.get(row["component"])
    whose = f"The {network}'s weights" if network else f"The weights of {row['component']}"
    return (
        f"{whose} are stored in fp32 on {rank_text(row['ranks'])}: in bf16 they would take "
        f"{size_text(row['bytes'])} less."
    )


def knob(row: Row) -> str:
    """The setting for the dtype; if that was not fp32, what to look at; what a script can do."""
    if is_script(row):
        return stored_in_bf16(row)
    if row["precision"] == "fp32":
        return "model_config.precision: bf16, which was fp32"
    return f"model_config.precision was {row['precision']}, yet they came in fp32: look at what loads them"
