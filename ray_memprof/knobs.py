"""For each finding, the key or variable that would change it.

    text = knobs.fragments(row)          # a row of sql/diagnosis/fragments.sql

Nothing is suggested that the run had set already. The keys of wan have no effect on a script: for scripts, the text
names an environment variable, or what to look for.
"""

from typing import Any

from ray_memprof.wording import size_text

Row = dict[str, Any]

_LOOK = "ray-memprof query alive_at_peak, and largest_allocations"
_BUFFER_BYTES, _SMALL_BUFFER_BYTES = 2**20, 2**19
"""Of NCCL_BUFFSIZE: what wan.parallel sets, and the least that was measured (docs/parallel.md)."""
_SEGMENT_BYTES = 20 * 2**20
"""By how much the allocator may have wanted more than was asked for: whole segments."""


def retries(row: Row) -> str:
    """Segments that grow, then less at the peak."""
    if row["is_expandable"]:
        return f"what is alive when {row['stage']} peaks: {_LOOK}"
    return f"{_expandable(row)}; and less at the peak"


def out_of_memory(row: Row) -> str:
    """A limit, another process, gaps between blocks, or else the largest part of what was held."""
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
            return _expandable(row)
    levers = _levers(row) if row["workload"] == "wan" else []
    return "; or ".join(levers) or f"the largest of what is alive: {_LOOK}"


def _for_others(row: Row) -> str:
    """Who asks the device and not torch's allocator finds nothing of what that one keeps."""
    levers = _levers(row) if row["workload"] == "wan" else []
    if row["reserved_bytes"] > row["bytes"]:
        levers.insert(
            0,
            f"torch.cuda.empty_cache() before it, or torch.cuda.set_per_process_memory_fraction: {row['oom_by']} asks "
            "the device itself, and what the allocator holds unused is out of its reach",
        )
    return "; or ".join(levers) or f"the largest of what is alive: {_LOOK}"


def _levers(row: Row) -> list[str]:
    """What shrinks the largest part of a wan run, as far as it is not set."""
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
            ffn_hidden({"num_chunks": row["ffn_chunks"]}),
            "more ranks in parallel.ulysses or parallel.ring",
        ]
    elif component == "t5":
        found.append(_t5_away(row))
    elif component == "vae":
        if several and row["vae"] == "rank0":
            found.append("parallel.vae: split")
        found.append(decode_peaks({"num_slabs": row["vae_slabs"]}))
    return found


def t5_stays(row: Row) -> str:
    """Off the device after its stage, or never on it."""
    return "model_config.offload: true, which was false" if row["offload"] is False else _t5_away(row)


def _t5_away(row: Row) -> str:
    return f"model_config.t5_cpu: true{', and parallel.t5_fsdp: false' if row['t5_fsdp'] else ''}"


def encode_peaks(row: Row) -> str:
    """Off the device, block by block on it, or a share of it on each rank."""
    levers = [_t5_away(row)]
    if not row["t5_fsdp"]:
        if row["load_strategy"] != "stream" and not row["dit_fsdp"]:
            levers.append("model_config.load_strategy: stream")
        if row["num_ranks"] > 1:
            levers.append("parallel.t5_fsdp: true")
    return "; or ".join(levers)


def weights_fp32(row: Row) -> str:
    """The dtype that was asked for, unless it was not what came."""
    if row["precision"] == "fp32":
        return "model_config.precision: bf16, which was fp32"
    return f"model_config.precision was {row['precision']}, yet they came in fp32: look at what loads them"


def ffn_hidden(row: Row) -> str:
    """More chunks."""
    if row["num_chunks"] == 1:
        return "optimization.ffn_chunks: 0 (by size), which was 1"
    return f"optimization.ffn_chunks: more than it was ({row['num_chunks'] or 'chosen by size'})"


def decodes_alone(row: Row) -> str:
    """Everybody decodes."""
    return "parallel.vae: split"


def decode_peaks(row: Row) -> str:
    """Smaller slabs."""
    if row["num_slabs"] == 1:
        return "optimization.vae_slabs: 0 (by size), which was 1"
    return f"optimization.vae_slabs: more than it was ({row['num_slabs'] or 'chosen by size'})"


def holds_more(row: Row) -> str:
    """Where one rank works for all; else what to look at."""
    if row["component"] == "vae" and row["vae"] == "rank0":
        return "parallel.vae: split, which was rank0"
    if row["component"] == "t5" and row["stage"] == "encode.text" and row["t5_fsdp"] is False:
        return "parallel.t5_fsdp: true, which was false"
    return f"compare rank {row['ranks'][0]} with rank {row['typical_rank']}: {_LOOK}"


def nccl_holds(row: Row) -> str:
    """Fewer groups first, then smaller buffers, as far as they were found to cost nothing."""
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
        return f"NCCL_BUFFSIZE={_SMALL_BUFFER_BYTES} in the environment, which was {was}; time a ring with it"
    return (
        f"NCCL_MAX_NCHANNELS=8 in the environment, where NCCL_BUFFSIZE was {was}; "
        "it costs an all-to-all 60 % of its speed"
    )


def fragments(row: Row) -> str:
    """Segments that grow; where they do already, smaller tensors."""
    if not row["is_expandable"]:
        return _expandable(row)
    if row["workload"] == "wan":
        lever = {"denoise": "optimization.ffn_chunks", "decode": "optimization.vae_slabs"}.get(row["stage"])
        return f"the largest tensors, with more {lever}" if lever else f"the largest tensors: {_LOOK}"
    return "the largest tensors, or torch.cuda.empty_cache() between stages"


def _expandable(row: Row) -> str:
    """The way to switch growing segments on, from how they were switched off."""
    if row["allocator_variable"] is not None:
        return (
            f"{row['allocator_variable']}: add expandable_segments:True in the environment, "
            f"which was {row['allocator_conf']}"
        )
    if row["workload"] == "wan" and row["wants_expandable"] is False:
        return "optimization.expandable_segments: true, which was false"
    unless = ", if it was not set" if row["is_expandable"] is None else ""
    return f"PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment{unless}"


def outside_grows(row: Row) -> str:
    """No key: whose memory it is, is not known well enough."""
    return "the versions of cuDNN and NCCL, and what allocates by itself: ray-memprof query books, and collectives"


def starts_late(row: Row) -> str:
    """What comes before the first span."""
    key = ", model_config.load_strategy" if row["workload"] == "wan" else ", and what the script reads first"
    return f"what its node does before: see the logs of that rank in logs/, its disk{key}"
