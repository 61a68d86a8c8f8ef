"""What ended the run: a rank ran out of device memory."""

from ray_memprof.analysis.diagnosis.row_text import Row, who
from ray_memprof.analysis.diagnosis.settings_text import LOOK, expandable, wan_settings
from ray_memprof.wording import size_text

_SEGMENT_BYTES = 20 * 2**20
"""How much more than the request the allocator may have needed, because it takes whole segments."""

ONLY_IF = "EXISTS (SELECT 1 FROM ooms)"


def sentence(row: Row) -> str:
    """What ended the run: a rank ran out of device memory."""
    step = f" step {row['step']}" if row["step"] >= 0 else ""
    text = f"{who(row)} ran out of device memory in {row['stage'] or 'no span'}{step}: "
    first = f"rank {row['first_rank']}, the first, " if len(row["ranks"]) > 1 else "it "
    first += _refused(row)
    unused = row["reserved_bytes"] - row["bytes"]
    text += f"{first}held {size_text(row['bytes'])} in tensors and {size_text(unused)} unused"
    if row["part_bytes"] is None:
        return f"{text}."
    owner = f"of {row['component']}" if row["component"] else "of no component"
    return f"{text}; the largest part is {size_text(row['part_bytes'])} {owner} ({row['category'] or 'of no kind'})."


def _refused(row: Row) -> str:
    """What was requested from the device, for whom, and how much was free."""
    free = None if row["free_bytes"] is None else size_text(row["free_bytes"])
    if row.get("oom_by") is not None:
        return f"could get no memory for {row['oom_by']}{f' where {free} were free' if free else ''}, and "
    if row["asked_bytes"] is not None:
        return f"asked for {size_text(row['asked_bytes'])}{f' where {free} were free' if free else ''}, and "
    return f"had {free} free, and " if free else ""


def knob(row: Row) -> str:
    """What to change: a limit, another process, gaps between blocks, or else the largest part of what was held."""
    if row.get("oom_by") is not None:
        return _for_others(row)
    asked, free = row["asked_bytes"], row["free_bytes"]
    if asked is not None and free is not None:
        others, unused = row["others_bytes"] or 0, row["reserved_bytes"] - row["bytes"]
        if free >= asked + _SEGMENT_BYTES:
            return (
                "what limits this process (torch.cuda.set_per_process_memory_fraction): the device had room"
            )
        if free + others >= asked > 0 and others:
            return f"what else runs on that device: other processes hold {size_text(others)}"
        if free + unused >= asked and not row["is_expandable"]:
            return expandable(row)
    levers = wan_settings(row) if row["workload"] == "wan" else []
    return "; or ".join(levers) or f"the largest of what is alive: {LOOK}"


def _for_others(row: Row) -> str:
    """What to change if memory was requested from the device itself, which cannot use what torch's allocator keeps."""
    levers = wan_settings(row) if row["workload"] == "wan" else []
    if row["reserved_bytes"] > row["bytes"]:
        levers.insert(
            0,
            f"torch.cuda.empty_cache() before it, or torch.cuda.set_per_process_memory_fraction: {row['oom_by']} asks "
            "the device itself, and what the allocator holds unused is out of its reach",
        )
    return "; or ".join(levers) or f"the largest of what is alive: {LOOK}"
