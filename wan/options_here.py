"""Checks of what depends on the files, the memory and the packages of this host; imports no torch.

check_here(options)      # InputError: a file or folder that cannot be read, a video that cannot be held
check_packages(options, save_file)  # InputError: torch or another package that this run imports is not installed
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from wan.config import TASKS, sides_of
from wan.errors import InputError
from wan.host import memory_bytes
from wan.inputs.files import CHECK_PATH, IMAGE_SUFFIXES, SAVE_VIDEO_SUFFIX, is_absent, trouble_with_file
from wan.options import Names, Options
from wan.weights.folder import trouble_with_ckpt_dir

FILES = ("image", "first_frame", "last_frame", "src_video", "src_mask", "src_ref_images")
"""Options that name files to read."""
PACKAGES = ("torch", "safetensors", "diffusers", "transformers", "tokenizers", "ftfy", "PIL")
"""What the pipeline imports, by the names of the modules; the extra `run` of pyproject.toml brings them."""
VIDEO_PACKAGES = ("av",)
"""What is imported where a video is read or written; `run` brings it, too."""


class Sources(Protocol):
    """Options, or a configuration with the same names: the files that may be videos."""

    @property
    def src_video(self) -> Path | None: ...  # noqa: D102 - as in Options
    @property
    def src_mask(self) -> Path | None: ...  # noqa: D102


def packages_of(sources: Sources, save_file: Path | None) -> tuple[str, ...]:
    """What a run imports: PyAV only where it reads or writes a video.

    Args:
        sources: the files that it reads.
        save_file: what it writes; None: nothing.
    """
    mask = sources.src_mask
    is_read = sources.src_video is not None or (
        mask is not None and mask.suffix.lower() not in IMAGE_SUFFIXES
    )
    is_written = save_file is not None and save_file.suffix.lower() == SAVE_VIDEO_SUFFIX
    return PACKAGES + (VIDEO_PACKAGES if is_read or is_written else ())


def check_packages(sources: Sources, save_file: Path | None) -> None:
    """Refuse to begin where a package is missing, before the first of them is imported; see packages_of().

    Raises InputError.
    """
    if missing := [name for name in packages_of(sources, save_file) if find_spec(name) is None]:
        be = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"wan.generate needs {', '.join(missing)}, which {be} not installed here",
            hint="pip install 'ray-memprof[run]'",
        )


def check_here(options: Options, names: Names) -> None:
    """Refuse a checkpoint folder or file that cannot be read here, and a video too large for this host.

    Raises InputError.
    """
    _check_folder(options, names)
    _check_files(options, names)
    check_memory(options, names)


def check_memory(options: Options, names: Names) -> None:
    """Refuse a video that the memory of this host could not hold, whatever would make it. Raises InputError."""
    width, height = sides_of(options.size)
    frame_bytes, there = 3 * 4 * width * height, memory_bytes()
    if frame_bytes * options.frame_num > there:
        stride = TASKS[options.task].vae.stride[0]
        most = max(1, (there // frame_bytes - 1) // stride * stride + 1)
        wanted_gib = frame_bytes * options.frame_num / 2**30
        raise InputError(
            f"{names['frame_num']} {options.frame_num}: the video alone takes {wanted_gib:,.1f} "
            f"GiB of host memory (fp32, {options.size}), this host has {there / 2**30:,.1f}",
            hint=f"use at most {most}; 81 is the length the model was made for",
        )


def _check_folder(options: Options, names: Names) -> None:
    task, path = TASKS[options.task], options.ckpt_dir
    if path is None:
        return
    if is_absent(path):
        raise InputError(
            f"{names['ckpt_dir']} {path}: there is no such folder",
            hint=f"download {task.repo}, or check the path",
        )
    if trouble := trouble_with_ckpt_dir(task, path):
        raise InputError(f"{names['ckpt_dir']} {trouble.what}", hint=trouble.hint)


def _check_files(options: Options, names: Names) -> None:
    for name in FILES:
        value = getattr(options, name)
        for path in value if isinstance(value, tuple) else (value,) if value else ():
            if is_absent(path):
                raise InputError(f"{names[name]} {path}: there is no such file", hint=CHECK_PATH)
            if trouble := trouble_with_file(path):
                raise InputError(f"{names[name]} {trouble.what}", hint=trouble.hint)
