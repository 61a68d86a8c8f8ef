"""The text encoder is still on the device in the denoise loop."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.analysis.diagnosis.script_text import is_script, text_encoder_leaves
from ray_memprof.analysis.diagnosis.settings_text import t5_away
from ray_memprof.wording import rank_text, size_text


def sentence(row: Row) -> str:
    """The text encoder is still on the device in the denoise loop."""
    return (
        f"The text encoder is still on the device in the denoise loop, {size_text(row['bytes'])} of weights on "
        f"{rank_text(row['ranks'])}."
    )


def knob(row: Row) -> str:
    """The setting that takes the text encoder off the device after its stage, or never puts it there."""
    if is_script(row):
        return text_encoder_leaves(row)
    return "model_config.offload: true, which was false" if row["offload"] is False else t5_away(row)
