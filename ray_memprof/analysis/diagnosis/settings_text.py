"""Settings that several rules name because they would save memory, except those that the run had set already.

Takes rows of the rules, which have the run's settings; returns texts.
"""

from ray_memprof.analysis.diagnosis.row_text import Row

LOOK = "ray-memprof query alive_at_peak, and largest_allocations"


def wan_settings(row: Row) -> list[str]:
    """Settings that would make the largest part of a wan run smaller, except those that are set already."""
    component, several = row["component"], row["num_ranks"] > 1
    is_loading = row["stage"].startswith(("load.", "residency."))
    is_weights = row["category"] == "weight" or (row["category"] is None and is_loading)
    found = []
    if component == "dit" and is_weights:
        if row["precision"] == "fp32":
            found.append("model_config.precision: bf16, which was fp32")
        if several and not row["dit_fsdp"]:
            found.append("parallel.dit_fsdp: true")
        if row["load_strategy"] != "stream" and not row["dit_fsdp"]:
            found.append("model_config.load_strategy: stream")
    elif component == "dit":
        if not row["attention_slicing"]:
            found.append("optimization.attention_slicing: true")
        found += [
            more_ffn_chunks({"num_chunks": row["ffn_chunks"]}),
            "parallel.cfg: 1, and all ranks in parallel.ulysses or parallel.ring"
            if row["cfg"] > 1
            else "more ranks in parallel.ulysses or parallel.ring",
        ]
    elif component == "t5":
        found.append(t5_away(row))
    elif component == "vae":
        if several and row["vae"] == "rank0":
            found.append("parallel.vae: split")
        found.append(more_vae_slabs({"num_slabs": row["vae_slabs"]}))
    return found


def t5_away(row: Row) -> str:
    """The setting that keeps the text encoder off the device."""
    return f"model_config.t5_cpu: true{', and parallel.t5_fsdp: false' if row['t5_fsdp'] else ''}"


def expandable(row: Row) -> str:
    """How to switch expandable segments on, which depends on how they were switched off."""
    if row["allocator_variable"] is not None:
        return (
            f"{row['allocator_variable']}: add expandable_segments:True in the environment, "
            f"which was {row['allocator_conf']}"
        )
    if row["workload"] == "wan" and row["wants_expandable"] is False:
        return "optimization.expandable_segments: true, which was false"
    unless = ", if it was not set" if row["is_expandable"] is None else ""
    return f"PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment{unless}"


def more_ffn_chunks(row: Row) -> str:
    """The setting for more chunks of the feed-forward."""
    if row["num_chunks"] == 1:
        return "optimization.ffn_chunks: 0 (by size), which was 1"
    return f"optimization.ffn_chunks: more than it was ({row['num_chunks'] or 'chosen by size'})"


def more_vae_slabs(row: Row) -> str:
    """The setting for smaller slabs of the VAE."""
    if row["num_slabs"] == 1:
        return "optimization.vae_slabs: 0 (by size), which was 1"
    return f"optimization.vae_slabs: more than it was ({row['num_slabs'] or 'chosen by size'})"
