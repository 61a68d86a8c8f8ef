"""NCCL's buffers are part of the peak."""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import rank_text, size_text

_BUFFER_BYTES, _SMALL_BUFFER_BYTES = 2**20, 2**19
"""Values of NCCL_BUFFSIZE: what wan.parallel sets, and the smallest one that was measured (docs/parallel.md)."""

ONLY_IF = "EXISTS (SELECT 1 FROM ledger WHERE account = 'nccl')"


def sentence(row: Row) -> str:
    """NCCL's buffers are part of the peak."""
    groups = "one process group" if row["num_groups"] == 1 else f"{row['num_groups']} process groups"
    return f"NCCL holds {size_text(row['bytes'])} for {groups} on {rank_text(row['ranks'])} when the device is fullest."


def knob(row: Row) -> str:
    """Fewer groups, then smaller buffers; it names those first that were found to cost nothing."""
    buffers = _nccl_buffers(row["buffer_bytes"])
    if row["num_groups"] == 1:
        return buffers
    if row["workload"] == "wan" and row["backend"] == "xfuser":
        return f"parallel.backend: native, which makes one process group; or {buffers}"
    return f"fewer process groups, for each has buffers of its own; or {buffers}"


def _nccl_buffers(was: int) -> str:
    if was > _BUFFER_BYTES:
        return f"NCCL_BUFFSIZE={_BUFFER_BYTES} in the environment, which was {was}"
    if was > _SMALL_BUFFER_BYTES:
        return f"NCCL_BUFFSIZE={_SMALL_BUFFER_BYTES} in the environment, which was {was}; measure a ring's time with it"
    return (
        f"NCCL_MAX_NCHANNELS=8 in the environment, where NCCL_BUFFSIZE was {was}; "
        "it costs an all-to-all 60 % of its speed"
    )
