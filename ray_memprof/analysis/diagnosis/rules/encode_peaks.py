"""Encoding the text makes the peak."""

from ray_memprof.analysis.diagnosis.row_text import Row, above_next
from ray_memprof.analysis.diagnosis.script_text import is_script, text_encoder_elsewhere
from ray_memprof.analysis.diagnosis.settings_text import t5_away


def sentence(row: Row) -> str:
    """Encoding the text makes the peak."""
    return f"Encoding the text makes the peak of {above_next(row)}"


def knob(row: Row) -> str:
    """Settings that keep the text encoder off the device, load it block by block, or split it over the ranks."""
    if is_script(row):
        return text_encoder_elsewhere(row)
    levers = [t5_away(row)]
    if not row["t5_fsdp"]:
        if row["load_strategy"] != "stream" and not row["dit_fsdp"]:
            levers.append("model_config.load_strategy: stream")
        if row["num_ranks"] > 1:
            levers.append("parallel.t5_fsdp: true")
    return "; or ".join(levers)
