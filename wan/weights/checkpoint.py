"""The official checkpoint folders as Sources: headers say what the files hold before anything is read.

    source = open_dit(TASKS["t2v-14B"], Path("Wan2.1-T2V-14B"))
    source.check(expected_shapes(dit))            # strict: every key, every shape, floats only
    source.read_into("blocks.0.ffn.0.weight", target)

Files are memory-mapped, never read whole. What a folder holds is inferred from its keys: the config.json
of published copies is not always true.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from wan.config import TASKS, DitConfig, ModelType, Task
from wan.errors import WeightsError
from wan.inputs.files import is_absent
from wan.weights.folder import (
    CLIP_FILE,
    DIT_FILE,
    DIT_INDEX_FILE,
    TEXT_FILE,
    VAE_FILE,
    folder_hint,
    listed,
    refuse_unusable,
    trouble_with_ckpt_dir,
)
from wan.weights.keymap import (
    KeyMap,
    clip_origin,
    dit_origin,
    text_origin,
    vae_origin,
)

# A mapping is dropped before more than this is read through it: pages of a file stay in the process as long as the
# mapping does, and would add up to a second copy of the model.
MAPPED_LIMIT_BYTES = 2**30

_FLOATS = ("float32", "bfloat16", "float16", "float64")
_SAFETENSORS_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says about one of its tensors."""

    shape: torch.Size
    dtype: str
    """One of _FLOATS, or, for a dtype that is not read, the file's own name of it."""


class _OpenFile(Protocol):
    """An official file, mapped into memory."""

    def headers(self) -> dict[str, _Header]:
        """Shape and dtype of every tensor in the file."""

    def tensor(self, key: str) -> torch.Tensor:
        """A tensor that reads from the mapped file when it is used."""


class SafetensorsFile:
    """A safetensors file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        refuse_unusable(path)
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def headers(self) -> dict[str, _Header]:
        """Shape and dtype of every tensor in the file."""
        return {key: self.header(key) for key in self._file.keys()}

    def header(self, key: str) -> _Header:
        """Those of one tensor."""
        entry = self._file.get_slice(key)
        dtype: str = entry.get_dtype()
        return _Header(torch.Size(entry.get_shape()), _SAFETENSORS_FLOATS.get(dtype, dtype))

    def tensor(self, key: str) -> torch.Tensor:
        """A tensor that reads from the mapped file when it is used."""
        tensor: torch.Tensor = self._file.get_tensor(key)
        return tensor


class _TorchFile:
    def __init__(self, path: Path) -> None:
        refuse_unusable(path)
        _refuse_not_zip(path)
        try:
            held: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the class of the error depends on the damage
            raise _refused_class(path, error) or _damaged(path, error) from error
        self._tensors = _flat_tensors(path, held)

    def headers(self) -> dict[str, _Header]:
        return {
            key: _Header(tensor.shape, str(tensor.dtype).removeprefix("torch."))
            for key, tensor in self._tensors.items()
        }

    def tensor(self, key: str) -> torch.Tensor:
        return self._tensors[key].detach()  # some files hold parameters


def _flat_tensors(path: Path, held: object) -> dict[str, torch.Tensor]:
    """What a .pth file holds, if it is tensors by key and nothing else."""
    hint = "the official files hold tensors by key and nothing else: download it again, or save only that"
    if not isinstance(held, dict):
        raise WeightsError(
            f"{path} holds an object of type {type(held).__name__}, expected a dict of tensors", hint=hint
        )
    tensors = {}
    for key, value in held.items():
        if not isinstance(key, str):
            raise WeightsError(
                f"{path} holds key {key!r} of type {type(key).__name__}, expected str", hint=hint
            )
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} holds an object of type {type(value).__name__} under key {key}, expected a tensor",
                hint=hint,
            )
        if value.layout != torch.strided or value.is_meta:
            kind = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
            raise WeightsError(
                f"{path} holds a {kind} tensor under key {key}, expected a dense one", hint=hint
            )
        tensors[key] = value
    return tensors


def _refuse_not_zip(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(len(_ZIP_MAGIC))
    if magic != _ZIP_MAGIC:
        raise WeightsError(
            f"{path} ({path.stat().st_size:,} bytes) is not a zip-format .pth file",
            hint="the official file is one: download it again; a file of an old torch.save must be saved anew",
        )


def _refused_class(path: Path, error: Exception) -> WeightsError | None:
    """The error for a pickle that wants to import something, which torch has refused to do."""
    wanted = re.search(r"\bGLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
    if wanted is None:
        return None
    return WeightsError(
        f"{path} asks for more than tensors and is refused: it wants {wanted[1]}",
        hint="loading it could run code of whoever made it; use the official file, which holds tensors alone",
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read: {reason}",
        hint="the file is cut short or damaged: compare its size with the published one, download it again",
    )


class FileSource:
    """The tensors of one or more official files, under our names.

    Before more than `mapped_limit_bytes` are read through mapped files, they are mapped again.
    """

    def __init__(
        self,
        files: Iterable[Path],
        open_file: Callable[[Path], _OpenFile],
        origin: KeyMap,
        unused: Callable[[str, Mapping[str, torch.Size]], bool],
    ) -> None:
        """Read the headers of `files`; `unused(key, wanted)` says whether a key is known but not asked for.

        Raises:
            WeightsError: a file is damaged, or two hold the same key.
        """
        self._files = list(files)
        self._open_file = open_file
        self._origin = origin
        self._unused = unused
        self._open: dict[Path, _OpenFile] = {}
        self._read_bytes = 0
        self.mapped_limit_bytes = MAPPED_LIMIT_BYTES
        self._shapes: dict[str, torch.Size] = {}
        self._dtypes: dict[str, str] = {}
        self._file_of: dict[str, Path] = {}
        for path in self._files:
            self._add(path)
        self.release()

    def _add(self, path: Path) -> None:
        for key, header in self._opened(path).headers().items():
            if key in self._file_of:
                raise WeightsError(
                    f"{self._file_of[key]} and {path.name} both hold key {key}",
                    hint="use the shards of one checkpoint, unchanged: download them again",
                )
            self._shapes[key], self._dtypes[key], self._file_of[key] = header.shape, header.dtype, path

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Official key and shape of everything in the files."""
        return self._shapes

    @property
    def file_of(self) -> Mapping[str, Path]:
        """The file that holds each official key."""
        return self._file_of

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Refuse files that do not hold exactly `expected` (our names); reads no tensor.

        Raises:
            WeightsError: keys are missing, unknown, of another shape, or not of a float dtype.
        """
        wanted = {}
        for name, shape in expected.items():
            origin = self._origin(name)
            wanted[origin.key] = origin.official_shape(shape)
        place = self._files[0] if len(self._files) == 1 else self._files[0].parent
        self._refuse_quantised(place, wanted)
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
            raise WeightsError(
                f"{place} does not fit the model: {'; '.join(filter(None, found))}",
                hint="use the official Wan2.1 folder of this task, unchanged",
            )

    def _refuse_quantised(self, place: Path, wanted: Iterable[str]) -> None:
        """Checked first, because the keys and shapes of a quantised copy differ too, but say less about the cause."""
        odd = [key for key in wanted if key in self._dtypes and self._dtypes[key] not in _FLOATS]
        if odd:
            described = _list(
                "of a wrong dtype", odd, lambda key: f"{self._located(key)} is {self._dtypes[key]}"
            )
            raise WeightsError(
                f"{place} does not fit the model: {described}, expected one of {', '.join(_FLOATS)}",
                hint="quantised copies are not supported: use the official Wan2.1 folder of this task",
            )

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Copy parameter `name` into `target` (any dtype, any device)."""
        self.read_rows(name, target, start=0, shape=target.shape)

    def read_rows(self, name: str, target: torch.Tensor, *, start: int, shape: torch.Size) -> None:
        """Copy rows from `start` on of parameter `name`, of `shape`, into `target`; only their pages are read."""
        rows = self._rows(name, target, start)
        if self._read_bytes and self._read_bytes + rows.nbytes > self.mapped_limit_bytes:
            del rows  # it would keep the old mapping, and the pages read through it, alive
            self.release()
            rows = self._rows(name, target, start)
        target.copy_(rows)
        self._read_bytes += rows.nbytes

    def _rows(self, name: str, target: torch.Tensor, start: int) -> torch.Tensor:
        """As many rows from `start` on as `target` has, a view of the mapped file."""
        origin = self._origin(name)
        whole = origin.cut(self._opened(self._file_of[origin.key]).tensor(origin.key))
        return whole[start : start + target.shape[0]] if target.dim() else whole

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
    return f"{len(keys)} {kind}: {listed([describe(key) for key in keys])}" if keys else ""


def open_dit(task: Task, ckpt_dir: Path) -> FileSource:
    """The DiT of `task`, in one file or in shards.

    Raises:
        WeightsError: no such folder or file, a damaged file, or the checkpoint of another task.
    """
    index = ckpt_dir / DIT_INDEX_FILE
    weight_map = {} if is_absent(index) else _weight_map(index)
    files = _shards(index, weight_map) if weight_map else [_required(task, ckpt_dir, DIT_FILE)]
    source = FileSource(files, SafetensorsFile, dit_origin, lambda key, wanted: False)
    if weight_map:
        _refuse_other_shards(index, weight_map, source.file_of)
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
    hint = folder_hint(task)
    if is_absent(ckpt_dir):
        raise WeightsError(f"no such checkpoint folder: {ckpt_dir}", hint=hint)
    if trouble := trouble_with_ckpt_dir(task, ckpt_dir):
        raise WeightsError(trouble.what, hint=trouble.hint)
    path = ckpt_dir / name
    if is_absent(path):
        raise WeightsError(f"no such file: {path}", hint=hint)
    refuse_unusable(path)
    return path


def _weight_map(index: Path) -> dict[str, str]:
    """Shard of every key, as the index says; never empty."""
    hint = "download it again"
    refuse_unusable(index)
    try:
        body = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{index} is not an index of shards: {type(error).__name__} {error}", hint=hint
        ) from error
    weight_map = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{index} is not an index of shards: it has no weight_map from keys to files", hint=hint
        )
    for key, shard in weight_map.items():
        if not isinstance(shard, str):
            raise WeightsError(
                f"{index} is not an index of shards: its weight_map gives {shard!r} as the file of key {key}",
                hint=hint,
            )
    return weight_map


def _shards(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    ckpt_dir = index.parent
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if is_absent(ckpt_dir / shard)]
    if absent:
        raise WeightsError(
            f"{index} names {len(shards)} shards; {_list('missing', absent, str)}",
            hint=f"the download is not complete; put the shards into {ckpt_dir}",
        )
    for shard in shards:
        refuse_unusable(ckpt_dir / shard)
    return [ckpt_dir / shard for shard in shards]


def _refuse_other_shards(index: Path, weight_map: Mapping[str, str], file_of: Mapping[str, Path]) -> None:
    """Check that every key is in the shard where the index puts it, and that the index names every key."""
    hint = "the index and the shards are not of one checkpoint: download all of them again"
    for key, shard in weight_map.items():
        if key not in file_of:
            raise WeightsError(f"{index} puts key {key} into {shard}, which does not hold it", hint=hint)
        if file_of[key] != index.parent / shard:
            raise WeightsError(
                f"{index} puts key {key} into {shard}, {file_of[key].name} holds it", hint=hint
            )
    for key, path in file_of.items():
        if key not in weight_map:
            raise WeightsError(f"{index} does not name key {key}, {path.name} holds it", hint=hint)


_PATCH_KEY = "patch_embedding.weight"
_PATCH_AXES = 5
_Kind = tuple[ModelType, int, int, int]


def _refuse_other_task(task: Task, ckpt_dir: Path, shapes: Mapping[str, torch.Size]) -> None:
    if _PATCH_KEY not in shapes:
        raise WeightsError(
            f"folder {ckpt_dir} holds no Wan2.1 DiT: it has no key {_PATCH_KEY}", hint=folder_hint(task)
        )
    if len(shapes[_PATCH_KEY]) != _PATCH_AXES:
        raise WeightsError(
            f"folder {ckpt_dir} holds no Wan2.1 DiT: {_PATCH_KEY} is {list(shapes[_PATCH_KEY])}, "
            f"expected {_PATCH_AXES} axes",
            hint=folder_hint(task),
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
            hint=folder_hint(task),
        )
    article = "an" if names[0][0] in "aeiou" else "a"
    raise WeightsError(
        f"folder {ckpt_dir} holds {article} {names[0]} checkpoint, the task is {task.name}",
        hint=" or ".join(f"--task {name}" for name in names),
    )


def _kind_of_config(dit: DitConfig) -> _Kind:
    return dit.model_type, dit.dim, dit.in_dim, dit.num_layers


def _kind_of_keys(shapes: Mapping[str, torch.Size]) -> _Kind:
    dim, in_dim = shapes[_PATCH_KEY][:2]
    num_layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    model_type: ModelType = "t2v"
    if any(key.startswith("vace_blocks.") for key in shapes):
        model_type = "vace"
    elif "img_emb.emb_pos" in shapes:
        model_type = "flf2v"
    elif any(key.startswith("img_emb.") for key in shapes):
        model_type = "i2v"
    return model_type, dim, in_dim, num_layers
