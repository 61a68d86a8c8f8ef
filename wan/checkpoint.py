"""The official checkpoint folders as Sources: headers say what they hold before anything is read.

    source = open_dit(TASKS["t2v-14B"], Path("Wan2.1-T2V-14B"))
    source.check(expected_shapes(dit))            # strict: every key, every shape
    source.read_into("blocks.0.ffn.0.weight", target)

Files are memory-mapped, never read whole. What a folder holds is inferred from its keys: the config.json
of published copies is not always true.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from wan.config import TASKS, DitConfig, ModelType, Task
from wan.errors import WeightsError
from wan.keymap import KeyMap, clip_origin, dit_origin, text_origin, vae_origin

DIT_FILE = "diffusion_pytorch_model.safetensors"
DIT_INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

# A mapping is dropped before more than this is read through it: pages of a file stay in the process as long as the
# mapping does, and would add up to a second copy of the model.
_MAPPED_LIMIT_BYTES = 2**30
_NUM_NAMED = 3


class _OpenFile(Protocol):
    """An official file, mapped into memory."""

    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor in the file."""

    def tensor(self, key: str) -> torch.Tensor:
        """A tensor that reads from the mapped file when it is used."""


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def shapes(self) -> dict[str, torch.Size]:
        return {key: torch.Size(self._file.get_slice(key).get_shape()) for key in self._file.keys()}

    def tensor(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(key)
        return tensor


class _TorchFile:
    def __init__(self, path: Path) -> None:
        try:
            self._tensors: dict[str, torch.Tensor] = torch.load(
                path, map_location="cpu", weights_only=True, mmap=True
            )
        except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
            raise _damaged(path, error) from error

    def shapes(self) -> dict[str, torch.Size]:
        return {key: tensor.shape for key, tensor in self._tensors.items()}

    def tensor(self, key: str) -> torch.Tensor:
        return self._tensors[key]


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read: {reason}",
        hint="the file is cut short or damaged: compare its size with the published one, download it again",
    )


class FileSource:
    """The tensors of one or more official files, under our names."""

    def __init__(
        self,
        files: Iterable[Path],
        open_file: Callable[[Path], _OpenFile],
        origin: KeyMap,
        unused: Callable[[str, Mapping[str, torch.Size]], bool],
    ) -> None:
        """Read the headers of `files`; `unused(key, wanted)` tells keys that are known and not asked for.

        Raises:
            WeightsError: a file is damaged.
        """
        self._files = list(files)
        self._open_file = open_file
        self._origin = origin
        self._unused = unused
        self._open: dict[Path, _OpenFile] = {}
        self._read_bytes = 0
        self._shapes: dict[str, torch.Size] = {}
        self._file_of: dict[str, Path] = {}
        for path in self._files:
            shapes = self._opened(path).shapes()
            self._shapes.update(shapes)
            self._file_of.update(dict.fromkeys(shapes, path))
        self.release()

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Official key and shape of everything in the files."""
        return self._shapes

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Refuse files that do not hold exactly `expected` (our names); reads no tensor.

        Raises:
            WeightsError: keys are missing, unknown or of another shape.
        """
        wanted = {}
        for name, shape in expected.items():
            origin = self._origin(name)
            wanted[origin.key] = origin.official_shape(shape)
        missing = [key for key in wanted if key not in self._shapes]
        unknown = [key for key in self._shapes if key not in wanted and not self._unused(key, wanted)]
        wrong = [key for key, shape in wanted.items() if self._shapes.get(key, shape) != shape]
        found = [
            _list("missing", missing, str),
            _list("unknown", unknown, self._located),
            _list("wrong shape", wrong, lambda key: f"{self._located(key)} is {list(self._shapes[key])}, "
                  f"expected {list(wanted[key])}"),
        ]  # fmt: skip
        if missing or unknown or wrong:
            place = self._files[0] if len(self._files) == 1 else self._files[0].parent
            raise WeightsError(
                f"{place} does not fit the model: {'; '.join(filter(None, found))}",
                hint="use the official Wan2.1 folder of this task, unchanged",
            )

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Copy parameter `name` into `target` (any dtype, any device)."""
        origin = self._origin(name)
        path = self._file_of[origin.key]
        tensor = self._opened(path).tensor(origin.key)
        if self._read_bytes and self._read_bytes + tensor.nbytes > _MAPPED_LIMIT_BYTES:
            del tensor  # it would keep the old mapping, and the pages read through it, alive
            self.release()
            tensor = self._opened(path).tensor(origin.key)
        target.copy_(origin.cut(tensor))
        self._read_bytes += tensor.nbytes

    def release(self) -> None:
        """Unmap the files; the next read maps them again."""
        self._open.clear()
        self._read_bytes = 0

    def _opened(self, path: Path) -> _OpenFile:
        if path not in self._open:
            self._open[path] = self._open_file(path)
        return self._open[path]

    def _located(self, key: str) -> str:
        return key if len(self._files) == 1 else f"{key} (in {self._file_of[key].name})"


def _list(kind: str, keys: list[str], describe: Callable[[str], str]) -> str:
    """The first few of `keys`, described, and how many more there are; nothing when there are none."""
    named = ", ".join(describe(key) for key in keys[:_NUM_NAMED])
    more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
    return f"{len(keys)} {kind}: {named}{more}" if keys else ""


def open_dit(task: Task, ckpt_dir: Path) -> FileSource:
    """The DiT of `task`, in one file or in shards.

    Raises:
        WeightsError: no such folder or file, a damaged file, or the checkpoint of another task.
    """
    files = _dit_files(task, ckpt_dir)
    source = FileSource(files, _SafetensorsFile, dit_origin, lambda key, wanted: False)
    _refuse_other_task(task, ckpt_dir, source.shapes)
    return source


def open_vae(task: Task, ckpt_dir: Path) -> FileSource:
    """The VAE, for a module with both halves or with either one."""
    path = _required(task, ckpt_dir, VAE_FILE)
    return FileSource([path], _TorchFile, vae_origin, _is_other_half)


def open_text(task: Task, ckpt_dir: Path) -> FileSource:
    """The UMT5 encoder, for text.TextEncoder."""
    path = _required(task, ckpt_dir, TEXT_FILE)
    return FileSource([path], _TorchFile, text_origin, lambda key, wanted: False)


def open_clip(task: Task, ckpt_dir: Path) -> FileSource:
    """The image tower of CLIP, for image.ImageEncoder; the text tower in the file stays unread."""
    assert task.clip is not None
    last = f"visual.transformer.{task.clip.num_layers - 1}."
    unused = ("textual.", "log_scale", "visual.head", "visual.post_norm.", last)
    path = _required(task, ckpt_dir, CLIP_FILE)
    return FileSource([path], _TorchFile, clip_origin, lambda key, wanted: key.startswith(unused))


def _is_other_half(key: str, wanted: Mapping[str, torch.Size]) -> bool:
    """Whether `key` is in a half of the VAE not asked for (encoder and conv1, conv2 and decoder)."""
    part = key.split(".")[0] + "."
    known = part in ("encoder.", "conv1.", "decoder.", "conv2.")
    return known and not any(other.startswith(part) for other in wanted)


def _required(task: Task, ckpt_dir: Path, name: str) -> Path:
    """The path of file `name` in the folder, which must be there."""
    hint = f"--ckpt_dir takes the official folder of {task.name}: {task.repo}"
    if not ckpt_dir.is_dir():
        raise WeightsError(f"no such checkpoint folder: {ckpt_dir}", hint=hint)
    path = ckpt_dir / name
    if not path.is_file():
        raise WeightsError(f"no such file: {path}", hint=hint)
    return path


def _dit_files(task: Task, ckpt_dir: Path) -> list[Path]:
    index = ckpt_dir / DIT_INDEX_FILE
    if not index.is_file():
        return [_required(task, ckpt_dir, DIT_FILE)]
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"{index} is not an index of shards: {type(error).__name__} {error}", hint="download it again"
        ) from error
    absent = [shard for shard in shards if not (ckpt_dir / shard).is_file()]
    if absent:
        raise WeightsError(
            f"{index} names {len(shards)} shards; {_list('missing', absent, str)}",
            hint=f"the download is not complete; put the shards into {ckpt_dir}",
        )
    return [ckpt_dir / shard for shard in shards]


_Kind = tuple[ModelType, int, int, int]


def _refuse_other_task(task: Task, ckpt_dir: Path, shapes: Mapping[str, torch.Size]) -> None:
    if "patch_embedding.weight" not in shapes:
        raise WeightsError(
            f"folder {ckpt_dir} holds no Wan2.1 DiT: there is no key patch_embedding.weight in {DIT_FILE}",
            hint=f"--ckpt_dir takes the official folder of {task.name}: {task.repo}",
        )
    kind = _kind_of_keys(shapes)
    names = [other.name for other in TASKS.values() if _kind_of_config(other.dit) == kind]
    if task.name in names:
        return
    if not names:
        model_type, dim, in_dim, num_layers = kind
        raise WeightsError(
            f"folder {ckpt_dir} holds a {model_type} checkpoint of width {dim}, {in_dim} input channels and "
            f"{num_layers} layers, the task is {task.name}",
            hint=f"--ckpt_dir takes the official folder of {task.name}: {task.repo}",
        )
    article = "an" if names[0][0] in "aeiou" else "a"
    raise WeightsError(
        f"folder {ckpt_dir} holds {article} {names[0]} checkpoint, the task is {task.name}",
        hint=" or ".join(f"--task {name}" for name in names),
    )


def _kind_of_config(dit: DitConfig) -> _Kind:
    return dit.model_type, dit.dim, dit.in_dim, dit.num_layers


def _kind_of_keys(shapes: Mapping[str, torch.Size]) -> _Kind:
    dim, in_dim = shapes["patch_embedding.weight"][:2]
    num_layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    model_type: ModelType = "t2v"
    if any(key.startswith("vace_blocks.") for key in shapes):
        model_type = "vace"
    elif "img_emb.emb_pos" in shapes:
        model_type = "flf2v"
    elif any(key.startswith("img_emb.") for key in shapes):
        model_type = "i2v"
    return model_type, dim, in_dim, num_layers
