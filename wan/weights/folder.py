"""Tells from the names in a folder whether it has the official layout of a checkpoint, or what it is instead.

    refuse_wrong(task, Path("models"))    # WeightsError: models is no checkpoint folder, models/Wan2.1-T2V-1.3B is one

Only names and a few bytes are read, so that a wrong folder is refused at once; checkpoint.py checks what a right one
holds. Imports no torch.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from wan.config import Task
from wan.errors import WeightsError
from wan.inputs.files import (
    Found,
    Trouble,
    trouble_with_file,
    trouble_with_folder,
    what_is_at,
)

DIT_FILE = "diffusion_pytorch_model.safetensors"
DIT_INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_PATH = "google/umt5-xxl/tokenizer.json"

# What every task reads besides the DiT; only the tasks that read pictures ask for CLIP, later.
_COMMON_FILES = (VAE_FILE, TEXT_FILE, TOKENIZER_PATH)
_SHARD = re.compile(r"diffusion_pytorch_model-(\d+)-of-(\d+)\.safetensors")
_WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_UNFINISHED_SUFFIXES = (".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".tmp")
_LFS_POINTER = b"version https://git-lfs"
# How deep to look for folders (models--X/snapshots/HASH is two levels), and at how many of them at most.
_DEPTH, _MOST_FOLDERS = 3, 2000
_NUM_NAMED = 3


def folder_hint(task: Task) -> str:
    """Which folder to give."""
    if task.is_tiny:
        return (
            f"no folder of {task.name} is published; scripts/make_checkpoint.py --task {task.name} makes one"
        )
    return f"give the official folder of {task.name}: {task.repo}"


def trouble_with_ckpt_dir(task: Task, path: Path) -> Trouble | None:
    """Why `path` is no folder that can be listed; None: it is one."""
    trouble = trouble_with_folder(path)
    if trouble is not None and _seems(path) == "file" and path.suffix in _WEIGHT_SUFFIXES:
        return Trouble(f"{path} is one file, not a checkpoint folder", _hint_for_one_file(task))
    return trouble


def refuse_wrong(task: Task, folder: Path) -> None:
    """Raise WeightsError for a folder that has not the official layout, and say what it is.

    A folder that has a part of that layout is left to checkpoint.py, which names the first file that is missing.
    """
    if trouble := trouble_with_ckpt_dir(task, folder):
        raise WeightsError(trouble.what, hint=trouble.hint)
    for name in (*_COMMON_FILES, DIT_FILE, DIT_INDEX_FILE, CLIP_FILE):
        _refuse_broken_link(folder / name)
    missing = _missing(folder)
    if not missing:
        return
    names = sorted(entry.name for entry in os.scandir(folder))
    for look in (_other_layout, _elsewhere, _not_complete, _single_file):
        if found := look(task, folder, names):
            raise WeightsError(found.what, hint=found.hint)
    if len(missing) <= len(_COMMON_FILES):
        return
    what = f"has nothing of a Wan2.1 checkpoint: no {listed(missing)}" if names else "is empty"
    raise WeightsError(f"folder {folder} {what}", hint=folder_hint(task))


def refuse_unusable(path: Path) -> None:
    """Refuse with WeightsError a file that may not be read, is empty, or stands for another (git LFS)."""
    if trouble := trouble_with_file(path):
        raise WeightsError(trouble.what, hint=trouble.hint)
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise WeightsError(f"{path} is empty (0 bytes)", hint="download it again")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise WeightsError(
                f"{path} ({size_bytes:,} bytes) is a pointer of git LFS, not the file that it stands for",
                hint=f"git -C {path.parent} lfs pull",
            )


def _seems(path: Path) -> Found:
    """As what_is_at(), but "nothing" where that cannot be found out."""
    try:
        return what_is_at(path)
    except OSError:
        return "nothing"


def _hint_for_one_file(task: Task) -> str:
    return f"checkpoints in one file, as other programs use them, are not read; {folder_hint(task)}"


def _refuse_broken_link(path: Path) -> None:
    if os.path.islink(path) and _seems(path) == "nothing" and (trouble := trouble_with_file(path)):
        raise WeightsError(trouble.what, hint=f"{trouble.hint}, or download the file again")


def _missing(folder: Path) -> list[str]:
    """Names of the official layout that are missing in `folder`."""
    missing = [name for name in _COMMON_FILES if _seems(folder / name) == "nothing"]
    if all(_seems(folder / name) == "nothing" for name in (DIT_FILE, DIT_INDEX_FILE)):
        missing.insert(0, DIT_FILE)
    return missing


def _other_layout(task: Task, folder: Path, names: list[str]) -> Trouble | None:
    """The layout of diffusers, whole or the folder of its transformer alone."""
    marks: tuple[str, ...] = ("model_index.json", "transformer")
    seen = next((name for name in marks if name in names), None)
    if seen is None and str(_config(folder).get("_class_name")).endswith("Transformer3DModel"):
        seen = "config.json"
    if seen is None:
        return None
    repo = task.repo if not task.is_tiny else "the official one"
    return Trouble(
        f"folder {folder} is of the diffusers layout (by its {seen}), not of the official one",
        f"use the repository whose name does not end with -Diffusers: {repo}",
    )


def _config(folder: Path) -> dict[str, object]:
    try:
        body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _elsewhere(task: Task, folder: Path, names: list[str]) -> Trouble | None:
    """A folder above or below that has everything."""
    above = [one for one in list(folder.absolute().parents)[:2] if not _missing(one)]
    fitting = above or [one for one in _folders_in(folder) if not _missing(one)]
    if not fitting:
        return None
    what = "is a part of a checkpoint folder" if above else "is not a checkpoint folder"
    where = "is one" if len(fitting) == 1 else "are some"
    # If there are several, the hint names the one with the published name.
    named = fitting if len(fitting) == 1 else [one for one in fitting if one.name == task.repo]
    return Trouble(
        f"folder {folder} {what}: {listed([str(one) for one in fitting])} {where}",
        f"give {named[0]}" if len(named) == 1 else folder_hint(task),
    )


def _folders_in(folder: Path) -> Iterator[Path]:
    """Folders below, the nearest first, as far as they may be read."""
    level, num_seen = [folder], 0
    for _ in range(_DEPTH):
        below: list[Path] = []
        for one in level:
            try:
                below += sorted(Path(entry.path) for entry in os.scandir(one) if entry.is_dir())
            except OSError:
                continue
        for one in below:
            num_seen += 1
            if num_seen > _MOST_FOLDERS:
                return
            yield one
        level = below


def _not_complete(task: Task, folder: Path, names: list[str]) -> Trouble | None:
    """A download that has not ended, or shards without the index that says which key is where."""
    unfinished = [name for name in names if name.endswith(_UNFINISHED_SUFFIXES)]
    cache = folder / ".cache" / "huggingface" / "download"
    if _seems(cache) == "folder":
        unfinished += sorted(str(path.relative_to(folder)) for path in cache.rglob("*.incomplete"))
    if unfinished:
        return Trouble(
            f"folder {folder} is downloaded in part: {listed(unfinished)}",
            f"let the download go on to its end: {listed(_missing(folder))} are missing",
        )
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not shards:
        return None
    num_shards = int(shards[0][2])
    absent = sorted(set(range(1, num_shards + 1)) - {int(shard[1]) for shard in shards})
    also = f", nor the shards {listed([str(number) for number in absent])} of {num_shards}" if absent else ""
    return Trouble(
        f"folder {folder} holds {len(shards)} shards of a DiT and no {DIT_INDEX_FILE}{also}",
        "download the index too: it is a small file of the same repository",
    )


def _single_file(task: Task, folder: Path, names: list[str]) -> Trouble | None:
    official = {DIT_FILE, VAE_FILE, TEXT_FILE, CLIP_FILE}
    files = [name for name in names if name.endswith(_WEIGHT_SUFFIXES) and name not in official]
    if not files or len(names) > len(files) + len(official):
        return None
    return Trouble(f"folder {folder} holds {listed(files)}, not the official files", _hint_for_one_file(task))


def listed(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
