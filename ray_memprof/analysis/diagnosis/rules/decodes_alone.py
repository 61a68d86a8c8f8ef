"""One rank decodes while the others wait."""

from ray_memprof.analysis.diagnosis.row_text import Row, who
from ray_memprof.analysis.diagnosis.script_text import decoding_shared, is_script
from ray_memprof.wording import size_text

ONLY_IF = "(SELECT COUNT(DISTINCT rank) > 1 FROM spans)"


def sentence(row: Row) -> str:
    """One rank decodes while the others wait."""
    others = "the other rank waits" if row["num_others"] == 1 else f"the {row['num_others']} other ranks wait"
    return f"{who(row)} decodes alone and needs {size_text(row['bytes'])} for it, while {others}."


def knob(row: Row) -> str:
    """The setting that makes all ranks decode; what a script can do."""
    return decoding_shared(row) if is_script(row) else "parallel.vae: split"
