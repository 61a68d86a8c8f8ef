"""wan.inputs.video_file: every frame by its number, upright, whatever clock, container and name the file has."""

import builtins
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import Pixels, grey, joined, write_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from wan import host
from wan.errors import EXIT_MEDIA, MediaError
from wan.inputs import video_file

av = pytest.importorskip("av")

LEVELS = [0, 20, 40, 60, 80, 100, 120, 140]


def clip_of(*starts_s: float, frame_s: float = 1.0) -> video_file.Clip:
    return video_file.Clip(path=Path("x.mp4"), starts_s=starts_s, frame_s=frame_s)


def levels(path: Path, numbers: list[int] | None = None) -> list[int]:
    """The greys of the frames with these numbers, or of all, to the nearest ten."""
    found = video_file.look(path)
    video = video_file.read(found, list(range(found.num_frames)) if numbers is None else numbers)
    return [round((frame.mean().item() + 1) * 127.5 / 10) * 10 for frame in video.unbind(1)]


def shown(path: Path) -> Pixels:
    """The first frame as bytes [H, W, 3]."""
    video = video_file.read(video_file.look(path), [0])
    return video[:, 0].add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def refusal(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        levels(path)
    assert caught.value.exit_code == EXIT_MEDIA
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------
# Which frames


def test_one_frame_is_the_first() -> None:
    assert video_file.spread(clip_of(0.0), 1) == [0]
    assert video_file.spread(clip_of(0.0, 1.0, 2.0), 1) == [0]


def test_a_still_of_one_frame_is_repeated() -> None:
    assert video_file.spread(clip_of(0.0), 3) == [0, 0, 0]


def test_frames_are_those_on_screen_at_equally_distant_moments() -> None:
    # GIVEN frames shown at 0, 1, 2 and 10 s, the last for 2 s: the moments are 0, 2.75, 5.5, 8.25 and 11 s
    assert video_file.spread(clip_of(0.0, 1.0, 2.0, 10.0, frame_s=2.0), 5) == [0, 2, 2, 2, 3]


def test_of_two_frames_at_one_moment_the_ending_one_is_taken_as_in_the_release() -> None:
    # The moments are 0, 1.25 and 2.5; 1.25 is where frame 0 ends and frame 1 begins.
    assert video_file.spread(clip_of(0.0, 1.25, frame_s=2.5), 3) == [0, 0, 1]


def release_numbers(num_there: int, fps: int, num_made: int) -> list[int]:
    """The release's way for a steady rate: a table of beginnings and ends, and the first one that fits."""
    begins = np.arange(num_there) / fps
    ends = (np.arange(num_there) + 1) / fps
    moments = np.linspace(0.0, (begins[-1] + ends[-1]) / 2, num_made)
    fits = (moments[:, None] >= begins[None]) & (moments[:, None] <= ends[None])
    return [int(number) for number in np.argmax(fits, axis=1)]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 400), st.sampled_from([8, 16, 24, 30, 60]), st.integers(0, 20))
def test_frames_are_those_of_the_release(num_there: int, fps: int, quarter: int) -> None:
    num_made = min(4 * quarter, (num_there - 1) // 4 * 4) + 1
    steady = clip_of(*(index / fps for index in range(num_there)), frame_s=1 / fps)

    numbers = video_file.spread(steady, num_made)

    # THEN they are the release's, but for moments that fall on the border of two frames to the last bit
    expected = release_numbers(num_there, fps, num_made)
    assert all(abs(one - other) <= 1 for one, other in zip(numbers, expected, strict=True))
    assert sum(one != other for one, other in zip(numbers, expected, strict=True)) <= len(numbers) // 4
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert num_made == 1 or numbers[-1] == num_there - 1
    if num_made == num_there:
        assert numbers == list(range(num_there))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".m4v"])
@pytest.mark.parametrize("fps", [8, 24, 30])
def test_frames_are_read_by_number_whatever_the_rate(tmp_path: Path, suffix: str, fps: int) -> None:
    path = write_frames(tmp_path / f"clip{suffix}", map(grey, LEVELS), fps=fps)
    assert levels(path) == LEVELS
    assert levels(path, [0, 3, 3, 7]) == [0, 60, 60, 140]
    assert video_file.spread(video_file.look(path), 5) == [0, 1, 3, 5, 7]


# --------------------------------------------------------------------------------
# Clocks


def test_a_clock_of_its_own_counts() -> None:
    assert list(video_file._starts([], 1.0)) == [0.0]
    assert list(video_file._starts([5.0, 6.0, 9.0], 1.0)) == [0.0, 1.0, 4.0]


def test_a_clock_that_is_missing_stands_or_goes_back_is_stood_in_for() -> None:
    assert list(video_file._starts([None, None, 3.0], 0.5)) == [0.0, 0.5, 1.0]
    assert list(video_file._starts([7.0, 7.0, 8.0], 0.5)) == [0.0, 0.5, 1.5]
    assert list(video_file._starts([7.0, 8.0, 0.0, 1.0], 0.5)) == [0.0, 1.0, 1.5, 2.5]


def test_the_rate_is_the_average_or_the_guessed_or_the_usual_one() -> None:
    def stream(average: Fraction | None, guessed: Fraction | None) -> Any:
        return SimpleNamespace(average_rate=average, guessed_rate=guessed)

    assert video_file._rate(stream(Fraction(30), Fraction(60))) == 30
    assert video_file._rate(stream(Fraction(0), Fraction(60))) == 60
    assert video_file._rate(stream(None, None)) == 25


def test_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 4, 5, 6, 100]
    path = write_frames(tmp_path / "vfr.mkv", map(grey, LEVELS), times=times, time_base=Fraction(1, 10))
    found = video_file.look(path)
    assert found.starts_s == pytest.approx([time / 10 for time in times])
    assert levels(path) == LEVELS
    assert set(video_file.spread(found, 5)) == {0, 6, 7}


def test_a_stream_without_times(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "raw.h264", map(grey, LEVELS), fps=25)
    found = video_file.look(path)
    assert found.starts_s == pytest.approx([index / 25 for index in range(8)])
    assert levels(path, video_file.spread(found, 5)) == [0, 20, 60, 100, 140]


def test_a_clock_that_starts_again(tmp_path: Path) -> None:
    parts = [
        write_frames(tmp_path / f"{index}.ts", map(grey, part), fps=8, codec="mpeg2video", pix_fmt="yuv420p")
        for index, part in enumerate((LEVELS[:4], LEVELS[4:]))
    ]
    path = joined(tmp_path / "joined.ts", *parts)
    found = video_file.look(path)
    assert found.starts_s == pytest.approx([index / 8 for index in range(8)], abs=0.01)
    assert levels(path) == LEVELS


# --------------------------------------------------------------------------------
# Upright


def corners() -> Pixels:
    """A picture 48 wide and 32 high whose four corners differ: 40 80 / 120 160."""
    pixels = grey(0, height=32, width=48)
    for index, (rows, columns) in enumerate(
        (rows, columns) for rows in (slice(0, 16), slice(16, 32)) for columns in (slice(0, 24), slice(24, 48))
    ):
        pixels[rows, columns] = 40 * (index + 1)
    return pixels


def corner_levels(pixels: Pixels) -> list[list[int]]:
    height, width, _ = pixels.shape
    picked = pixels[4 :: height - 8, 4 :: width - 8, 0][:2, :2].astype(int)
    return [[int(round(value / 10) * 10) for value in row] for row in picked]


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"degrees": 0}, [[40, 80], [120, 160]]),
        ({"degrees": 90}, [[80, 160], [40, 120]]),
        ({"degrees": 180}, [[160, 120], [80, 40]]),
        ({"degrees": -90}, [[120, 40], [160, 80]]),
        ({"degrees": 0, "hflip": True}, [[80, 40], [160, 120]]),
        ({"degrees": 0, "vflip": True}, [[120, 160], [40, 80]]),
        ({"degrees": 90, "hflip": True}, [[160, 80], [120, 40]]),
        ({"degrees": 90, "vflip": True}, [[40, 120], [80, 160]]),
    ],
    ids=str,
)
def test_the_display_matrix_is_followed(
    tmp_path: Path, turn: dict[str, Any], expected: list[list[int]]
) -> None:
    path = write_frames(
        tmp_path / "turned.mp4", [corners()], prepare=lambda stream: stream.set_display_rotation(**turn)
    )
    pixels = shown(path)
    assert pixels.shape == ((48, 32, 3) if abs(turn["degrees"]) == 90 else (32, 48, 3))
    assert corner_levels(pixels) == expected


def test_a_turn_that_is_not_by_quarters_is_told(tmp_path: Path) -> None:
    path = write_frames(
        tmp_path / "askew.mp4", [corners()], prepare=lambda stream: stream.set_display_rotation(30)
    )
    assert refusal(path) == f"video {path} is shown turned by 30 degrees, which is no multiple of 90"


def test_an_empty_display_matrix_says_nothing(tmp_path: Path) -> None:
    path = write_frames(
        tmp_path / "x.mp4", [corners()], prepare=lambda stream: stream.set_display_matrix([0] * 9)
    )
    assert corner_levels(shown(path)) == [[40, 80], [120, 160]]


@pytest.mark.parametrize(("aspect", "width"), [(2, 96), (Fraction(1, 2), 24), (Fraction(12, 11), 52)])
def test_pixels_are_made_square(tmp_path: Path, aspect: Fraction, width: int) -> None:
    def stretched(stream: Any) -> None:
        stream.sample_aspect_ratio = aspect

    pixels = shown(write_frames(tmp_path / "wide.mp4", [corners()], prepare=stretched))
    assert pixels.shape == (32, width, 3)
    assert corner_levels(pixels) == [[40, 80], [120, 160]]


def test_pixels_are_made_square_before_they_are_turned(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        stream.sample_aspect_ratio = 2
        stream.set_display_rotation(90)

    assert shown(write_frames(tmp_path / "both.mp4", [corners()], prepare=prepare)).shape == (96, 32, 3)


# --------------------------------------------------------------------------------
# Frames of several sizes


def two_sizes(folder: Path, height: int, width: int) -> Path:
    parts = [
        write_frames(folder / f"{name}.ts", frames, pix_fmt="yuv420p")
        for name, frames in (("a", [grey(40, 32, 64)] * 3), ("b", [grey(80, height, width)] * 2))
    ]
    return joined(folder / "joined.ts", *parts)


def test_another_size_of_the_same_shape_is_scaled_to_the_first(tmp_path: Path) -> None:
    path = two_sizes(tmp_path, 64, 128)
    found = video_file.look(path)
    assert video_file.read(found, range(5)).shape == (3, 5, 32, 64)
    assert levels(path) == [40, 40, 40, 80, 80]


def test_another_shape_is_told(tmp_path: Path) -> None:
    path = two_sizes(tmp_path, 48, 64)
    assert refusal(path) == (
        f"video {path}: frame 3 has 64x48 pixels, another shape than the first, of 64x32"
    )


# --------------------------------------------------------------------------------
# Colours


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("ten_bits.mkv", "libx264", "yuv422p10le"),
        ("full_range.mkv", "mjpeg", "yuvj444p"),
        ("rgb.avi", "rawvideo", "bgr24"),
        ("grey.mkv", "ffv1", "gray16le"),
        ("alpha.mov", "qtrle", "argb"),
        ("palette.gif", "gif", "rgb8"),
    ],
)
def test_pixels_of_other_formats(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = write_frames(tmp_path / name, map(grey, LEVELS), codec=codec, pix_fmt=pix_fmt)
    assert levels(path) == LEVELS


# --------------------------------------------------------------------------------
# Names


NAMES = [
    "run:2/z.mp4", "-x.mp4", "http:/host/x.mp4", "concat:a|b.mp4", "%03d.mp4", "a b\u00e9\u4e2d.mp4", "x?y=1.mp4",
    "pipe:0", "file:x.mp4", "a\nb.mp4",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_frames(tmp_path / "made.mp4", map(grey, LEVELS))
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.rename(path)
    assert levels(path) == LEVELS


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.mp4")
    write_frames(tmp_path / "made.mp4", map(grey, LEVELS)).rename(path)
    assert levels(path) == LEVELS


def test_a_title_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "title.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "abcdefgh"
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(100), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"\xff\xfe\xfd\xfcefgh"))
    assert levels(path) == [100]


# --------------------------------------------------------------------------------
# What cannot be read is one line


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "absent.mp4") == f"there is no file {tmp_path / 'absent.mp4'}"
    assert refusal(tmp_path / "empty.mp4") == f"file {tmp_path / 'empty.mp4'} is empty"
    assert refusal(tmp_path) == f"{tmp_path} is a folder, not a file"


def test_sound_alone_and_the_cover_of_a_song(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 32, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey(9), format="rgb24")))
        container.mux(sound.encode(None))
    assert refusal(path) == f"{path} holds no video"


@pytest.mark.parametrize("whole_frames", [True, False])
def test_a_file_cut_off(tmp_path: Path, whole_frames: bool) -> None:
    def index_first(path: Path) -> Path:
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "index.mp4"), "w", options={"movflags": "+faststart"}) as target,
        ):
            (stream,) = source.streams.video
            copied = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    target.mux(packet)
        return tmp_path / "index.mp4"

    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 32, 3), dtype=np.uint8)
    path = index_first(write_frames(tmp_path / "x.mp4", noise))
    with av.open(str(path)) as container:
        entries = sorted((entry.pos, entry.size) for entry in container.streams.video[0].index_entries)
    os.truncate(path, entries[4][0] - (0 if whole_frames else 10))
    assert refusal(path) == (
        f"cannot read video {path}: it is cut off, frames that it names lie behind its end"
    )


def test_a_file_whose_index_is_cut_off(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "x.mp4", map(grey, LEVELS))
    os.truncate(path, path.stat().st_size // 2)
    refusal(path)


def test_a_codec_that_nobody_knows(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "x.mp4", map(grey, LEVELS))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9"))
    assert refusal(path) == f"cannot read video {path}: its codec is not known here"


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_files_are_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = bytearray(_damage_base(folder))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=16))
        whole[start : start + len(patch)] = patch
    path = folder / "damaged.mp4"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        found = video_file.look(path)
        video = video_file.read(found, video_file.spread(found, 5))
    except MediaError as error:
        assert "\n" not in str(error)
    else:
        assert video.shape[:2] == (3, 5)


def _damage_base(folder: Path) -> bytes:
    path = folder / "damage_base.mp4"
    if not path.exists():
        write_frames(path, map(grey, LEVELS))
    return path.read_bytes()


def test_what_the_host_cannot_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_frames(tmp_path / "x.mp4", [grey(0, 32, 64)] * 5)
    one_bytes = 3 * 32 * 64 * 4
    monkeypatch.setattr(host, "memory_bytes", lambda: 4 * one_bytes)
    assert video_file.read(video_file.look(path), [0, 1, 2, 3]).shape == (3, 4, 32, 64)
    with pytest.raises(MediaError, match=r"5 frame\(s\) of 64x32 take 0.0 GiB in fp32, this host has 0.0"):
        video_file.read(video_file.look(path), [0, 1, 2, 3, 4])
    monkeypatch.setattr(host, "memory_bytes", lambda: one_bytes - 1)
    with pytest.raises(MediaError, match=r"1 frame\(s\) of 64x32"):
        video_file.read(video_file.look(path), [0])


def test_gib_are_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory_bytes", lambda: 24 * 2**30)
    with pytest.raises(MediaError) as caught:
        video_file._room(Path("x.mp4"), 81, 2**14, 2**14)
    assert str(caught.value) == (
        "video x.mp4: 81 frame(s) of 16384x16384 take 243.0 GiB in fp32, this host has 24.0"
    )


def test_pixels_too_wide_for_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stretched(stream: Any) -> None:
        stream.sample_aspect_ratio = 16

    path = write_frames(tmp_path / "x.mp4", [grey(0)], prepare=stretched)
    monkeypatch.setattr(host, "memory_bytes", lambda: 2**16)
    with pytest.raises(MediaError, match=r"1 frame\(s\) of 512x16 take"):
        video_file.read(video_file.look(path), [0])


def test_a_file_that_shrinks_between_two_looks(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "x.mp4", map(grey, LEVELS))
    found = video_file.look(path)
    write_frames(path, map(grey, LEVELS[:3]))
    with pytest.raises(MediaError, match="has changed while it was read"):
        video_file.read(found, [0, 7])


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_av(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(MediaError, match="PyAV") as caught:
        video_file.look(tmp_path / "out.mp4")
    assert caught.value.hint == "pip install av"
