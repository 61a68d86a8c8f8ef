"""A run takes more, or less, than the prediction of itself says."""

from ray_memprof.analysis.diagnosis.row_text import Row, verb, who
from ray_memprof.analysis.diagnosis.settings_text import LOOK
from ray_memprof.wording import size_text

_ACCOUNTS = {
    "allocated": ("in tensors", "an allocation that the same code did not make when it was predicted"),
    "reserved": ("reserved", "the tensors are as predicted, but the allocator holds more for them"),
    "device_used": ("of the device", "the allocator is as predicted: a library or another process holds it"),
}
_KNOBS = {
    "allocated": LOOK,
    "reserved": "settings of the allocator (ray-memprof what-if): ray-memprof query fragmentation, and device_calls",
    "device_used": "the versions of driver, NCCL and cuDNN: ray-memprof query books_at_peak, and nccl_by_communicator",
}

ONLY_IF = "EXISTS (SELECT 1 FROM predicted)"


def sentence(row: Row) -> str:
    """A run takes more, or less, than the prediction of itself says."""
    what, means = _ACCOUNTS[row["account"]]
    begins = "" if row["first_stage"] == row["stage"] else f", from {row['first_stage']} on"
    much = f"{size_text(row['bytes'])} {'more' if row['is_more'] else 'less'} {what}"
    told = (
        f"{who(row)} {verb(row, 'has', 'have')} {much} in {row['stage']} than the "
        f"{size_text(row['predicted_bytes'])} that are predicted{begins}"
    )
    if row["is_more"]:
        return f"{told}: unexpected, {means}."
    return f"{told}: the prediction is too high there."


def knob(row: Row) -> str:
    """Where to look."""
    if row["is_more"]:
        return _KNOBS[row["account"]]
    return "what uses predictions leaves memory unused: ray-memprof query predicted_vs_measured, and account_peaks"
