"""What a program that is no configuration of ours can change, in general, and for the public Wan2.1 by its own flags.

Takes rows of the rules, which have `is_public_wan` and `num_ranks` of the evidence settings; returns texts.
"""

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.wording import size_text

NETWORKS = {"t5": "text encoder", "clip": "image encoder", "dit": "diffusion transformer"}
"""What the components of Wan2.1 are, in words; those of other programs have names of classes."""


def is_script(row: Row) -> bool:
    """Whether the run obeys no key of wan."""
    return bool(row["workload"] == "script")


def text_encoder_leaves(row: Row) -> str:
    """How the text encoder leaves the device after it has encoded the prompt."""
    if row["is_public_wan"]:
        return "--offload_model True, which moves it to the CPU after the prompt; or --t5_cpu, which keeps it there"
    return "move it to the CPU, or drop it, once the prompt is encoded; then torch.cuda.empty_cache()"


def text_encoder_elsewhere(row: Row) -> str:
    """How the text is encoded with less on the device."""
    levers = ["encode the text on the CPU, or before the other networks come to the device"]
    if row["is_public_wan"]:
        levers = ["--t5_cpu, which encodes on the CPU"]
    if row["num_ranks"] > 1:
        levers.append("--t5_fsdp" if row["is_public_wan"] else "shard the text encoder over the ranks (FSDP)")
    return "; or ".join(levers)


def stored_in_bf16(row: Row) -> str:
    """How weights come in bf16."""
    if row["component"] == "dit" and row["is_public_wan"]:
        return (
            "load the DiT in bf16: model.to(torch.bfloat16) after WanModel.from_pretrained, before it goes to the "
            "device; autocast multiplies in bf16 in any case"
        )
    return "model.to(torch.bfloat16) before it goes to the device, if what it computes allows that"


def decoding_smaller(row: Row) -> str:
    """How decoding takes less: less is decoded at once, or nothing else is on the device."""
    return "; or ".join([*_others_leave(row), "decode in tiles or in parts of the frames"])


def decoding_shared(row: Row) -> str:
    """What helps if one rank decodes for all."""
    return "; or ".join(["let every rank decode a part of the video", *_others_leave(row)])


def _others_leave(row: Row) -> list[str]:
    """How the other networks leave the device before decoding, if they are known to be there."""
    if not row["others_bytes"]:
        return []
    flag = "--offload_model True" if row["is_public_wan"] else "move the other networks to the CPU first"
    return [f"{flag}: they have {size_text(row['others_bytes'])} of weights there while it decodes"]
