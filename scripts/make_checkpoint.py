"""Writes a checkpoint folder of the official layout, filled with random weights, for tests and measurements.

    python scripts/make_checkpoint.py --task t2v-tiny --out /tmp/ckpt
    python scripts/make_checkpoint.py --task i2v-14B --out /tmp/ckpt --components dit,tokenizer

Imports the package: run it with the python of `make env` (.venv/bin/python), or with PYTHONPATH=. in the environment.

Names, shapes, dtypes and files are those of the published folders; the values are RandomSource's, so that a
run from the folder and a run from random weights of the same seed are the same run. One tensor is in memory
at a time (the .pth files are filled through a shared mapping, which the kernel may write back at any moment).
"""

import argparse
import json
import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import set_default_mmap_options, skip_data
from transformers import PreTrainedTokenizerFast

from wan.config import TASKS, ClipConfig, DitConfig, Task
from wan.networks.dit import WanDit
from wan.networks.image import build_image_encoder
from wan.networks.text import build_text_encoder
from wan.networks.vae.network import WanVae
from wan.weights.checkpoint import (
    CLIP_FILE,
    DIT_FILE,
    DIT_INDEX_FILE,
    TEXT_FILE,
    VAE_FILE,
)
from wan.weights.fill import RandomSource, expected_shapes, on_meta
from wan.weights.keymap import (
    KeyMap,
    clip_origin,
    dit_origin,
    text_origin,
    vae_origin,
)
from wan.weights.tokenizer import TOKENIZER_DIR

COMPONENTS = ("dit", "vae", "text", "clip", "tokenizer")
SHARD_BYTES = 9_900_000_000
_SAFETENSORS_DTYPE = {torch.float32: "F32", torch.bfloat16: "BF16"}

log = logging.getLogger("make_checkpoint")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as the official file stores it."""

    shape: torch.Size
    dtype: torch.dtype = torch.float32

    @property
    def num_bytes(self) -> int:
        """Size of its data in the file."""
        return self.shape.numel() * self.dtype.itemsize


Tensors = dict[str, Stored]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTower:
    """Shapes of CLIP's text tower, which the file holds and video generation never reads."""

    vocab_size: int
    dim: int
    num_layers: int
    num_positions: int


# --------------------------------------------------------------------------------
# What the official files hold


def official_tensors(module: torch.nn.Module, origin: KeyMap) -> Tensors:
    """The official tensors that the parameters of `module` come from."""
    tensors = {}
    for name, shape in expected_shapes(module).items():
        place = origin(name)
        tensors[place.key] = Stored(place.official_shape(shape), place.dtype)
    return tensors


def dit_tensors(task: Task) -> Tensors:
    """Everything in diffusion_pytorch_model*.safetensors."""
    return official_tensors(on_meta(lambda: WanDit(task.dit), torch.float32), dit_origin)


def vae_tensors(task: Task) -> Tensors:
    """Everything in Wan2.1_VAE.pth."""
    return official_tensors(on_meta(lambda: WanVae(task.vae), torch.float32), vae_origin)


def text_tensors(task: Task) -> Tensors:
    """Everything in the T5 file."""
    return official_tensors(build_text_encoder(task.text, torch.bfloat16), text_origin)


def clip_tensors(task: Task) -> Tensors:
    """Everything in the CLIP file: the image tower with its last layer and head, and the text tower."""
    clip = task.clip
    assert clip is not None
    tower = official_tensors(build_image_encoder(clip, torch.float32), clip_origin)
    # ImageEncoder ends one layer early; the last layer has the shapes of the first.
    first, last = "visual.transformer.0.", f"visual.transformer.{clip.num_layers - 1}."
    tower |= {last + key.removeprefix(first): value for key, value in tower.items() if key.startswith(first)}
    tower |= {
        key.replace("pre_norm", "post_norm"): value for key, value in tower.items() if "pre_norm" in key
    }
    tower["visual.head"] = Stored(torch.Size((clip.hidden_dim, clip.embed_dim)))
    tower["log_scale"] = Stored(torch.Size(()))
    return tower | _textual_tensors(_text_tower(task, clip), clip.embed_dim)


def _text_tower(task: Task, clip: ClipConfig) -> TextTower:
    if task.is_tiny:
        return TextTower(vocab_size=64, dim=clip.embed_dim, num_layers=2, num_positions=18)
    return TextTower(vocab_size=250002, dim=1024, num_layers=24, num_positions=514)


def _textual_tensors(tower: TextTower, embed_dim: int) -> Tensors:
    dim = tower.dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (tower.vocab_size, dim),
        "type_embedding.weight": (1, dim),
        "pos_embedding.weight": (tower.num_positions, dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.0.weight": (embed_dim, dim),
        "head.2.weight": (embed_dim, embed_dim),
    }
    for index in range(tower.num_layers):
        block = f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        for linear in ("q", "k", "v", "o"):
            shapes |= {f"{block}attn.{linear}.weight": (dim, dim), f"{block}attn.{linear}.bias": (dim,)}
        shapes |= {f"{block}ffn.0.weight": (4 * dim, dim), f"{block}ffn.0.bias": (4 * dim,)}
        shapes |= {f"{block}ffn.2.weight": (dim, 4 * dim), f"{block}ffn.2.bias": (dim,)}
    return {f"textual.{name}": Stored(torch.Size(shape)) for name, shape in shapes.items()}


def dit_config(dit: DitConfig) -> dict[str, object]:
    """The config.json of the folder; nothing here reads it."""
    config: dict[str, object] = {
        "_class_name": "VaceWanModel" if dit.model_type == "vace" else "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": dit.dim,
        "eps": dit.eps,
        "ffn_dim": dit.ffn_dim,
        "freq_dim": dit.freq_dim,
        "in_dim": dit.in_dim,
        "model_type": dit.model_type,
        "num_heads": dit.num_heads,
        "num_layers": dit.num_layers,
        "out_dim": dit.out_dim,
        "text_len": dit.text_len,
    }
    if dit.model_type == "vace":
        config |= {"vace_layers": list(dit.vace_layers), "vace_in_dim": dit.vace_in_dim}
    return config


# --------------------------------------------------------------------------------
# Writing


def write_dit(task: Task, out: Path, *, seed: int, shard_bytes: int) -> None:
    """Write config.json and the DiT: one file, or, over `shard_bytes`, shards and their index."""
    (out / "config.json").write_text(json.dumps(dit_config(task.dit), indent=2) + "\n", encoding="utf-8")
    shards = _split(dit_tensors(task), shard_bytes)
    if len(shards) == 1:
        _write_safetensors(out / DIT_FILE, shards[0], seed)
        return
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        name = DIT_FILE.replace(".safetensors", f"-{index:05}-of-{len(shards):05}.safetensors")
        _write_safetensors(out / name, shard, seed)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(stored.num_bytes for shard in shards for stored in shard.values())
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / DIT_INDEX_FILE).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _split(tensors: Tensors, shard_bytes: int) -> list[Tensors]:
    """`tensors` in order, cut where a shard would grow over `shard_bytes`."""
    shards: list[Tensors] = [{}]
    size = 0
    for key, stored in tensors.items():
        if shards[-1] and size + stored.num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = stored
        size += stored.num_bytes
    return shards


def _write_safetensors(path: Path, tensors: Tensors, seed: int) -> None:
    """Write tensor by tensor. safetensors' own writer cannot do that: it takes a dict of all tensors."""
    log.info("writing %s", path)
    header = json.dumps(_safetensors_header(tensors)).encode()
    header += b" " * (-len(header) % 8)
    source = RandomSource(seed)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key, stored in tensors.items():
            tensor = torch.empty(stored.shape, dtype=stored.dtype)
            source.read_into(key, tensor)
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def _safetensors_header(tensors: Tensors) -> dict[str, object]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, stored in tensors.items():
        begin, end = end, end + stored.num_bytes
        dtype = _SAFETENSORS_DTYPE[stored.dtype]
        header[key] = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": [begin, end]}
    return header


def _write_torch(path: Path, tensors: Mapping[str, Stored], seed: int) -> None:
    """Write first the file with holes for the data, then the data through a mapping: no tensor is held."""
    log.info("writing %s", path)
    with FakeTensorMode():
        holes = {key: torch.empty(stored.shape, dtype=stored.dtype) for key, stored in tensors.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(holes, path)
    source = RandomSource(seed)
    with set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    for key, tensor in mapped.items():
        source.read_into(key, tensor)


def write_tokenizer(out: Path) -> None:
    """Write a small tokenizer of UMT5's kind: Unigram, byte fallback, ids 0 pad, 1 end, 2 unknown."""
    space = "\u2581"
    words = ["the", "of", "and", "in", "to", "on", "with", "cat", "fox", "red", "video", "sea"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*words, *letters]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocab += [(space, -2.0)]
    vocab += [(piece, -3.0 - 0.01 * index) for index, piece in enumerate(pieces)]
    vocab += [(space + word, -2.5 - 0.01 * index) for index, word in enumerate(words)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space)
    tokenizer.decoder = decoders.Metaspace(replacement=space)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(out / TOKENIZER_DIR)


def write_checkpoint(
    task: Task,
    out: Path,
    *,
    components: tuple[str, ...] = COMPONENTS,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the folder `out`; CLIP only where the task has it."""
    out.mkdir(parents=True, exist_ok=True)
    if "dit" in components:
        write_dit(task, out, seed=seed, shard_bytes=shard_bytes)
    if "vae" in components:
        _write_torch(out / VAE_FILE, vae_tensors(task), seed)
    if "text" in components:
        _write_torch(out / TEXT_FILE, text_tensors(task), seed)
    if "clip" in components and task.clip is not None:
        _write_torch(out / CLIP_FILE, clip_tensors(task), seed)
    if "tokenizer" in components:
        write_tokenizer(out)


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(
        description="Write an official-layout checkpoint folder of random weights."
    )
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder; it is made if it is missing")
    parser.add_argument("--components", default=",".join(COMPONENTS), help="comma-separated (default: all)")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    components = tuple(args.components.split(","))
    if unknown := [name for name in components if name not in COMPONENTS]:
        parser.error(f"--components: unknown {', '.join(unknown)}; choose from {', '.join(COMPONENTS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_checkpoint(
        TASKS[args.task], args.out, components=components, seed=args.seed, shard_bytes=args.shard_bytes
    )


if __name__ == "__main__":
    main()
