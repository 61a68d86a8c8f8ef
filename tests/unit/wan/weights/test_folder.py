"""wan.weights.folder: a folder that is not the official one is told for what it is, before anything is read."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wan.config import TASKS
from wan.errors import EXIT_WEIGHTS, WeightsError
from wan.weights.folder import (
    CLIP_FILE,
    DIT_FILE,
    DIT_INDEX_FILE,
    TEXT_FILE,
    TOKENIZER_PATH,
    VAE_FILE,
    refuse_unusable,
    refuse_wrong,
)

TASK = TASKS["t2v-1.3B"]
OFFICIAL = (DIT_FILE, VAE_FILE, TEXT_FILE, TOKENIZER_PATH)
HINT = "give the official folder of t2v-1.3B: Wan2.1-T2V-1.3B"
ONE_FILE = f"checkpoints in one file, as other programs use them, are not read; {HINT}"


def put(folder: Path, *names: str, text: str = "x") -> Path:
    """Small files of these names, with the folders they need."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(WeightsError) as caught:
        refuse_wrong(TASK, folder)
    assert caught.value.exit_code == EXIT_WEIGHTS
    return str(caught.value), caught.value.hint


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (f"folder {tmp_path} is empty", HINT)
    with pytest.raises(WeightsError) as caught:
        refuse_wrong(TASKS["t2v-tiny"], tmp_path)
    assert caught.value.hint == (
        "no folder of t2v-tiny is published; scripts/make_checkpoint.py --task t2v-tiny makes one"
    )


def test_the_official_layout_passes_in_one_file_or_in_shards(tmp_path: Path) -> None:
    refuse_wrong(TASK, put(tmp_path / "one", *OFFICIAL))
    refuse_wrong(TASK, put(tmp_path / "shards", DIT_INDEX_FILE, *OFFICIAL[1:]))
    refuse_wrong(TASK, put(tmp_path / "more", *OFFICIAL, CLIP_FILE, "README.md", "config.json"))


@pytest.mark.parametrize("missing", OFFICIAL)
def test_one_missing_file_is_left_to_those_who_read_it(tmp_path: Path, missing: str) -> None:
    refuse_wrong(TASK, put(tmp_path, *(name for name in OFFICIAL if name != missing)))


def test_no_folder_and_a_file(tmp_path: Path) -> None:
    put(tmp_path, "wan.safetensors", "wan.ckpt", "notes.txt")
    gone = tmp_path / "gone"
    assert refusal(gone)[0] == f"there is no folder {gone}"
    for name in ("wan.safetensors", "wan.ckpt"):
        assert refusal(tmp_path / name) == (
            f"{tmp_path / name} is one file, not a checkpoint folder",
            ONE_FILE,
        )
    assert refusal(tmp_path / "notes.txt")[0] == f"{tmp_path / 'notes.txt'} is not a folder"


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    put(tmp_path, "README.md", "a/b/c/d.txt")
    assert refusal(tmp_path) == (
        f"folder {tmp_path} has nothing of a Wan2.1 checkpoint: no {DIT_FILE}, {VAE_FILE}, {TEXT_FILE} and 1 more",
        HINT,
    )


# --------------------------------------------------------------------------------
# Other layouts


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        (("model_index.json", "transformer/config.json", "vae/config.json"), "model_index.json"),
        (("transformer/config.json", "vae/config.json"), "transformer"),
    ],
)
def test_the_layout_of_diffusers(tmp_path: Path, names: tuple[str, ...], seen: str) -> None:
    assert refusal(put(tmp_path, *names)) == (
        f"folder {tmp_path} is of the diffusers layout (by its {seen}), not of the official one",
        "use the repository whose name does not end with -Diffusers: Wan2.1-T2V-1.3B",
    )


@pytest.mark.parametrize("kind", ["WanTransformer3DModel", "WanVACETransformer3DModel"])
def test_the_transformer_folder_of_diffusers(tmp_path: Path, kind: str) -> None:
    put(tmp_path, DIT_INDEX_FILE)
    put(tmp_path, "config.json", text=json.dumps({"_class_name": kind}))
    assert refusal(tmp_path)[0] == (
        f"folder {tmp_path} is of the diffusers layout (by its config.json), not of the official one"
    )


@pytest.mark.parametrize("text", ["[]", "{", "\x00", '{"_class_name": "WanModel"}', '{"_class_name": 3}'])
def test_a_config_that_says_nothing_of_diffusers(tmp_path: Path, text: str) -> None:
    put(tmp_path, "config.json", text=text)
    assert "has nothing of a Wan2.1 checkpoint" in refusal(tmp_path)[0]


@pytest.mark.parametrize("name", ["wan2.1_t2v_1.3B_fp16.safetensors", "wan.ckpt", "wan-Q8_0.gguf"])
def test_a_checkpoint_in_one_file(tmp_path: Path, name: str) -> None:
    assert refusal(put(tmp_path, name)) == (
        f"folder {tmp_path} holds {name}, not the official files",
        ONE_FILE,
    )
    put(tmp_path, VAE_FILE)
    assert refusal(tmp_path)[0] == f"folder {tmp_path} holds {name}, not the official files"
    # With as many more files as the official ones are it is that still, with one more somebody's own folder.
    put(tmp_path, "a.txt", "b.txt", "c.txt")
    assert refusal(tmp_path)[0] == f"folder {tmp_path} holds {name}, not the official files"
    refuse_wrong(TASK, put(tmp_path, "d.txt"))  # what it lacks is told by whoever reads it


# --------------------------------------------------------------------------------
# The right folder is another


def test_the_folder_is_below(tmp_path: Path) -> None:
    right = put(tmp_path / "models" / "Wan", *OFFICIAL)
    for folder in (tmp_path, tmp_path / "models"):
        assert refusal(folder) == (
            f"folder {folder} is not a checkpoint folder: {right} is one", f"give {right}"
        )  # fmt: skip


def test_several_folders_are_below(tmp_path: Path) -> None:
    for name in ("Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "a", "b"):
        put(tmp_path / name, *OFFICIAL)
    assert refusal(tmp_path) == (
        f"folder {tmp_path} is not a checkpoint folder: {tmp_path}/Wan2.1-T2V-1.3B, {tmp_path}/Wan2.1-T2V-14B, "
        f"{tmp_path}/a and 1 more are some",
        f"give {tmp_path}/Wan2.1-T2V-1.3B",
    )
    with pytest.raises(WeightsError) as caught:
        refuse_wrong(TASKS["i2v-14B"], tmp_path)
    assert caught.value.hint.startswith("give the official folder of i2v-14B")


def test_the_folder_is_above(tmp_path: Path) -> None:
    put(tmp_path, *OFFICIAL)
    for folder in (tmp_path / "google", tmp_path / "google" / "umt5-xxl"):
        assert refusal(folder) == (
            f"folder {folder} is a part of a checkpoint folder: {tmp_path} is one", f"give {tmp_path}"
        )  # fmt: skip


def test_the_search_below_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a" / "b" / "c" / "d", *OFFICIAL)  # four levels down: too deep
    assert "has nothing" in refusal(tmp_path)[0]
    right = put(tmp_path / "z", *OFFICIAL)
    assert refusal(tmp_path)[1] == f"give {right}"
    monkeypatch.setattr("wan.weights.folder._MOST_FOLDERS", 1)
    assert "has nothing" in refusal(tmp_path)[0]


# --------------------------------------------------------------------------------
# Downloads that have not ended


@pytest.mark.parametrize(
    "name",
    [
        f"{DIT_FILE}.incomplete", f"{DIT_FILE}.part", f"{DIT_FILE}.aria2", f"{DIT_FILE}.crdownload",
        f".cache/huggingface/download/{DIT_FILE}.abc.incomplete",
    ],
)  # fmt: skip
def test_half_a_download(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, VAE_FILE)
    assert refusal(tmp_path) == (
        f"folder {tmp_path} is downloaded in part: {name}",
        f"let the download go on to its end: {DIT_FILE}, {TEXT_FILE}, {TOKENIZER_PATH} are missing",
    )


@pytest.mark.parametrize(
    ("numbers", "also"),
    [((1, 2, 3), ""), ((1, 3), ", nor the shards 2 of 3"), ((2,), ", nor the shards 1, 3 of 3")],
)
def test_shards_without_their_index(tmp_path: Path, numbers: tuple[int, ...], also: str) -> None:
    shards = [f"diffusion_pytorch_model-{number:05}-of-00003.safetensors" for number in numbers]
    put(tmp_path, *shards, *OFFICIAL[1:])
    assert refusal(tmp_path) == (
        f"folder {tmp_path} holds {len(numbers)} shards of a DiT and no {DIT_INDEX_FILE}{also}",
        "download the index too: it is a small file of the same repository",
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_broken_link(tmp_path: Path, name: str) -> None:
    put(tmp_path, *OFFICIAL)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("../blobs/abc")
    assert refusal(tmp_path) == (
        f"{tmp_path / name} is a link to ../blobs/abc, which is not there",
        "repair the link, or download the file again",
    )


# --------------------------------------------------------------------------------
# Single files


def test_a_file_that_can_be_used(tmp_path: Path) -> None:
    refuse_unusable(put(tmp_path, "a") / "a")


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("", "is empty (0 bytes)", "download it again"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "(63 bytes) is a pointer of git LFS, not the file that it stands for",
            "git -C {} lfs pull",
        ),
    ],
)
def test_a_file_that_stands_for_another(tmp_path: Path, text: str, told: str, hint: str) -> None:
    path = put(tmp_path, "a", text=text) / "a"
    with pytest.raises(WeightsError) as caught:
        refuse_unusable(path)
    assert (str(caught.value), caught.value.hint) == (f"{path} {told}", hint.format(tmp_path))


@pytest.mark.parametrize(
    "ask", [lambda folder: refuse_wrong(TASK, folder), lambda folder: refuse_unusable(folder / VAE_FILE)]
)
def test_no_permission_is_neither_absent_nor_damaged(
    tmp_path: Path, ask: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, whom nothing refuses.
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    put(tmp_path, *OFFICIAL)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(WeightsError, match="may not be read: Permission denied") as caught:
        ask(tmp_path)
    assert "run as a user who may read it" in caught.value.hint
