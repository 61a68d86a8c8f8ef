"""Files that a task reads: missing, refused, or not what they should be."""

import errno
import os
from pathlib import Path

import pytest
from command_line import NO_FILE, refusal

from wan.options import parse
from wan.options_check import check

INPUTS = {
    "t2v-tiny": ([], [], "a prompt only"),
    "t2i-tiny": ([], [], "a prompt only"),
    "i2v-tiny": (["image"], ["image"], "--image"),
    "flf2v-tiny": (
        ["first_frame", "last_frame"], ["first_frame", "last_frame"], "--first_frame, --last_frame",
    ),
    "vace-tiny": (
        ["src_video", "src_mask", "src_ref_images"], [], "--src_video, --src_mask, --src_ref_images",
    ),
}  # fmt: skip


def flags_for(task: str, given: list[str], files: dict[str, str]) -> list[str]:
    flags = ["--task", task, "--weights", "random"]
    for name in given:
        flags += [f"--{name}", files[name]]
    return flags


@pytest.mark.parametrize("task", INPUTS)
def test_every_input_that_a_task_reads_is_taken(task: str, files: dict[str, str]) -> None:
    reads, needs, _ = INPUTS[task]

    check(parse(flags_for(task, reads, files)))
    check(parse(flags_for(task, needs, files)))


@pytest.mark.parametrize("task", INPUTS)
def test_every_other_input_is_refused(task: str, files: dict[str, str]) -> None:
    reads, needs, used = INPUTS[task]
    for name in files.keys() - set(reads):
        assert refusal(*flags_for(task, [*needs, name], files)) == (
            f"--{name} has no use in {task}",
            f"{task} reads {used}",
        )


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in INPUTS for name in INPUTS[task][1]])
def test_every_needed_input_is_missed(task: str, name: str, files: dict[str, str]) -> None:
    others = [other for other in INPUTS[task][1] if other != name]
    assert refusal(*flags_for(task, others, files)) == (
        f"--{name} is missing: {task} starts from it",
        f"give it: --{name} FILE",
    )


@pytest.mark.parametrize("task", INPUTS)
def test_every_input_must_be_a_file(task: str, files: dict[str, str], tmp_path: Path) -> None:
    reads, _, _ = INPUTS[task]
    for name in reads:
        gone = str(tmp_path / "gone.png")
        assert refusal(*flags_for(task, reads, files | {name: gone})) == (
            f"--{name} {gone}: there is no such file",
            NO_FILE,
        )


@pytest.mark.parametrize("name", ["src_video", "src_mask", "src_ref_images"])
def test_what_is_no_file_is_told_for_what_it_is(name: str, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to("gone")
    long = "x" * 300
    for given, told in (
        (str(tmp_path), f"{tmp_path} is a folder, not a file"),
        (str(tmp_path / "broken.png"), f"{tmp_path / 'broken.png'} is a link to gone, which is not there"),
        (long, f"{long} cannot be read: File name too long"),
    ):
        given_files = files | {name: given}
        assert refusal(*flags_for("vace-tiny", INPUTS["vace-tiny"][0], given_files))[0] == f"--{name} {told}"


def test_a_file_and_a_folder_that_may_not_be_read(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, whom nothing refuses.
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    image = files["image"]
    assert refusal(*flags_for("i2v-tiny", ["image"], files))[0] == (
        f"--image {image} may not be read: Permission denied"
    )
    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal("--task", "t2v-1.3B", "--ckpt_dir", str(tmp_path))[0] == (
        f"--ckpt_dir {tmp_path} may not be read: Permission denied"
    )


def test_one_reference_of_several_is_missing(files: dict[str, str]) -> None:
    refs = f"{files['src_ref_images']}, gone.png"
    assert refusal("--task", "vace-tiny", "--weights", "random", "--src_ref_images", refs) == (
        "--src_ref_images gone.png: there is no such file",
        NO_FILE,
    )


def test_a_mask_needs_its_video(files: dict[str, str]) -> None:
    assert refusal(*flags_for("vace-tiny", ["src_mask"], files)) == (
        "--src_mask is given without --src_video",
        "give the video that the mask belongs to",
    )
