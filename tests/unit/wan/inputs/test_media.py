"""wan.inputs.media: what is written can be read back, and every unusable file is told by name."""

import builtins
import errno
import math
import os
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import grey, write_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from wan.errors import EXIT_MEDIA, InputError, MediaError
from wan.inputs import media

av = pytest.importorskip("av")


def moving_picture(num_frames: int, height: int = 64, width: int = 96) -> Tensor:
    """[3, F, H, W]: smooth colour ramps whose brightness changes from frame to frame."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    gains = [1 - index / (2 * num_frames) for index in range(num_frames)]
    return torch.stack([torch.stack([x * gain, y * gain, -x * y]) for gain in gains], dim=1)


def psnr(one: Tensor, other: Tensor) -> float:
    difference = (one - other).pow(2).mean().sqrt().item()
    return 20 * math.log10(2 / difference) if difference else math.inf


def test_psnr_of_the_same_is_infinite() -> None:
    assert psnr(moving_picture(1), moving_picture(1)) == math.inf
    assert psnr(torch.zeros(4), torch.ones(4)) == pytest.approx(20 * math.log10(2))


def test_video_round_trip(tmp_path: Path) -> None:
    # GIVEN a video of 17 frames
    video, path = moving_picture(17), tmp_path / "out.mp4"
    # WHEN it is written and read
    media.save_video(video, path, fps=16)
    read = media.read_video(path, frame_num=81)
    # THEN frames, size, rate and colours are the same, and nothing else lies in the folder
    assert read.shape == video.shape
    assert read.dtype == torch.float32
    assert psnr(read, video) > 30
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = (stream.average_rate, stream.frames, stream.codec_context.name, stream.codec_context.pix_fmt)
    assert facts == (Fraction(16), 17, "h264", "yuv420p")
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_video_starts_with_its_index_and_names_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "green.mp4"
    green = torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    media.save_video(green, path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    # BT.709 luma of pure green, 16 + 219 * 0.7152; BT.601 would be 145.
    assert abs(int(frame.to_ndarray()[0, 0]) - 173) <= 2


def test_video_from_pieces_is_the_same_video(tmp_path: Path) -> None:
    video = moving_picture(9)
    media.save_video(video, tmp_path / "whole.mp4")
    media.save_video(iter(video.split(4, dim=1)), tmp_path / "pieces.mp4")
    whole, pieces = (media.read_video(tmp_path / f"{name}.mp4", frame_num=81) for name in ("whole", "pieces"))
    assert whole.shape == pieces.shape == video.shape
    assert psnr(whole, pieces) > 40  # x264 itself is not the same to the bit from run to run


def test_bytes_are_rounded_and_clamped() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 6).expand(3, 1, 6)
    assert media._as_bytes(levels)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_what_is_not_finite_has_a_colour() -> None:
    levels = torch.tensor([math.nan, math.inf, -math.inf, 0.0]).view(1, 1, 4).expand(3, 1, 4)
    assert media._as_bytes(levels)[0, :, 0].tolist() == [0, 255, 0, 128]


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    image = media.read_image(tmp_path / "in.png")
    media.save(image[:, None], tmp_path / "out.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "out.png")), pixels)
    assert torch.equal(media.read_image(tmp_path / "out.png"), image)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.equal(image, expected)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_images_are_close(tmp_path: Path, suffix: str) -> None:
    image = moving_picture(1)[:, 0]
    media.save_image(image, tmp_path / f"out{suffix}")
    assert psnr(media.read_image(tmp_path / f"out{suffix}"), image) > 35


def test_one_frame_to_mp4_is_a_video(tmp_path: Path) -> None:
    media.save(moving_picture(1), tmp_path / "one.mp4")
    assert media.read_video(tmp_path / "one.mp4", frame_num=5).shape == (3, 1, 64, 96)


def test_image_is_turned_upright_and_alpha_dropped(tmp_path: Path) -> None:
    # GIVEN a picture 20 wide and 10 high whose EXIF says "rotate by 90 degrees"
    picture = Image.new("RGB", (20, 10), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.jpg", exif=exif)
    assert media.read_image(tmp_path / "phone.jpg").shape == (3, 20, 10)
    Image.new("RGBA", (4, 4), (255, 0, 0, 7)).save(tmp_path / "alpha.png")
    assert media.read_image(tmp_path / "alpha.png")[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[40, 80], [120, 160]]),
        (2, [[80, 40], [160, 120]]),
        (3, [[160, 120], [80, 40]]),
        (4, [[120, 160], [40, 80]]),
        (5, [[40, 120], [80, 160]]),
        (6, [[120, 40], [160, 80]]),
        (7, [[160, 80], [120, 40]]),
        (8, [[80, 160], [40, 120]]),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_orientation_of_exif_is_followed(
    tmp_path: Path, suffix: str, orientation: int, expected: list[list[int]]
) -> None:
    # GIVEN a picture 32 wide and 16 high whose four corners differ
    pixels = np.array([[40, 80], [120, 160]], dtype=np.uint8).repeat(8, 0).repeat(16, 1)
    picture = Image.fromarray(pixels).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"phone{suffix}", exif=exif, quality=100)
    upright = media.read_image(tmp_path / f"phone{suffix}")
    assert upright.shape == ((3, 16, 32) if orientation < 5 else (3, 32, 16))
    corners = upright[0, 2 :: upright.shape[1] - 5, 2 :: upright.shape[2] - 5]
    assert corners.add(1).mul(12.75).round().mul(10).int().tolist() == expected


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".png"), ("LA", ".png"), ("P", ".png"), ("1", ".png"), ("L", ".jpg"), ("CMYK", ".jpg"),
     ("YCbCr", ".jpg"), ("RGBA", ".webp"), ("P", ".gif"), ("CMYK", ".tif"), ("LAB", ".tif")],
)  # fmt: skip
def test_every_mode_of_a_picture_is_read(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    white = Image.new("RGB", (16, 8), (255, 255, 255))
    made = white if mode == "LAB" else white.convert(mode)
    if mode == "LAB":
        made = Image.frombytes("LAB", (16, 8), bytes([255, 0, 0]) * 128)
    made.save(path)
    with Image.open(path) as image:
        assert image.mode == mode or suffix in (".jpg", ".gif", ".webp")
    picture = media.read_image(path)
    assert picture.shape == (3, 8, 16)
    assert picture.min() > 0.95


def test_of_a_picture_that_moves_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 8), (level, level, level)) for level in (0, 255)]
    for suffix in (".gif", ".webp", ".png"):
        frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
        assert media.read_image(tmp_path / f"x{suffix}").max() < -0.95


def test_a_picture_far_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(
        MediaError, match=r"cannot read image .*bomb.png: Image size \(10000 pixels\) exceeds"
    ):
        media.read_image(tmp_path / "bomb.png")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([".png", ".jpg", ".webp", ".gif", ".tif"]), st.data())
def test_damaged_pictures_are_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"whole{suffix}"
    if not path.exists():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        whole[start : start + len(patch)] = patch
    damaged = path.with_name(f"damaged{suffix}")
    damaged.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = media.open_image(damaged)
        except MediaError as error:
            assert "\n" not in str(error)
            assert error.hint
        else:
            assert picture.mode == "RGB"


@pytest.mark.parametrize(
    "name", ["run:2/x", "-x", "http:/host/x", "%03d", "a b\u00e9", "file:x", "concat:a|b"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".png", ".WebP"])
def test_a_path_is_a_file_whatever_its_name_looks_like(
    tmp_path: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    media.check_output(path, num_frames=1)
    media.save(moving_picture(1), path)
    assert [item.relative_to(tmp_path) for item in tmp_path.rglob("*") if item.is_file()] == [path]
    read = media.read_video(path, frame_num=1)[:, 0] if suffix.lower() == ".mp4" else media.read_image(path)
    assert psnr(read, moving_picture(1)[:, 0]) > 30


def test_what_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe.mp4: it is a pipe, socket or device"):
        media.check_output(tmp_path / "pipe.mp4", num_frames=5)
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match=r"there is no folder .*file"):
        media.check_output(tmp_path / "file" / "x.mp4", num_frames=5)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("grey.png", np.array([[0, 257 * 51, 257 * 128, 65535]], dtype=np.uint16)),
        ("grey.tif", np.array([[0, 257 * 51, 257 * 128, 65535]], dtype=">u2")),
        ("wide.tif", np.array([[0, 257 * 51, 257 * 128, 70000]], dtype=np.int32)),
        ("float.tif", np.array([[-1, 0.2, 128 / 255, 7]], dtype=np.float32)),
    ],
)
def test_wide_greys_keep_their_levels(tmp_path: Path, name: str, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode[0] in "IF"
    assert np.array(media.open_image(tmp_path / name)).tolist() == [
        [[level] * 3 for level in (0, 51, 128, 255)]
    ]


def test_a_video_is_spread_over_its_whole_time(tmp_path: Path) -> None:
    for fps in (8, 16, 30):
        path = write_frames(tmp_path / f"{fps}.mp4", [grey(level) for level in range(0, 180, 20)], fps=fps)
        for frame_num, expected in ((81, range(0, 180, 20)), (5, (0, 40, 80, 120, 160)), (1, (0,))):
            video = media.read_video(path, frame_num=frame_num)
            levels = [round((frame.mean().item() + 1) * 127.5 / 10) * 10 for frame in video.unbind(1)]
            assert levels == list(expected)


def test_masks(tmp_path: Path) -> None:
    write_frames(tmp_path / "mask.mp4", map(grey, (0, 255, 255)), fps=30)
    mask = media.read_mask(tmp_path / "mask.mp4", frame_num=81)
    assert mask.shape == (1, 3, 16, 32)
    torch.testing.assert_close(mask.mean((0, 2, 3)), torch.tensor([0.0, 1.0, 1.0]), rtol=0, atol=0.01)
    Image.new("L", (6, 4), 255).save(tmp_path / "mask.png")
    assert torch.equal(media.read_mask(tmp_path / "mask.png", frame_num=81), torch.ones(1, 1, 4, 6))
    with pytest.raises(InputError, match=r"suffix '.txt' is not known") as caught:
        media.read_mask(tmp_path / "mask.txt", frame_num=81)
    assert ".png" in caught.value.hint and ".mp4" in caught.value.hint


def test_missing_empty_and_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "noise.png").write_bytes(b"not a picture" * 20)
    for read in (media.read_image, lambda path: media.read_video(path, frame_num=5)):
        with pytest.raises(MediaError, match=r"there is no file .*absent.png"):
            read(tmp_path / "absent.png")
        with pytest.raises(MediaError, match=r"empty.png is empty"):
            read(tmp_path / "empty.png")
        with pytest.raises(MediaError, match=r"cannot read (image|video) .*noise.png") as caught:
            read(tmp_path / "noise.png")
        assert caught.value.hint
        assert caught.value.exit_code == EXIT_MEDIA


def test_a_video_too_short(tmp_path: Path) -> None:
    write_frames(tmp_path / "short.mp4", map(grey, (0, 20, 40)))
    with pytest.raises(MediaError, match=r"short.mp4 has 3 frames, 5 are needed"):
        media.read_video(tmp_path / "short.mp4", frame_num=81, min_frames=5)


def test_suffixes_that_cannot_be_written(tmp_path: Path) -> None:
    video = moving_picture(2)
    for write in (
        lambda: media.save(video, tmp_path / "a.png"),
        lambda: media.save_video(video, tmp_path / "a.avi"),
        lambda: media.save_image(video[:, 0], tmp_path / "a.bmp"),
        lambda: media.check_output(tmp_path / "a.png", num_frames=81),
        lambda: media.check_output(tmp_path / "a", num_frames=1),
    ):
        with pytest.raises(InputError, match="suffix") as caught:
            write()
        assert caught.value.hint.startswith("use .")
    assert os.listdir(tmp_path) == []


def test_odd_sizes_and_no_frames(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="33x32 pixels, H.264 needs an even"):
        media.save_video(torch.zeros(3, 2, 32, 33), tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="there are no frames"):
        media.save_video(iter([]), tmp_path / "a.mp4")


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent" / "a.mp4"
    with pytest.raises(MediaError, match="there is no folder"):
        media.check_output(absent, num_frames=5)
    for write in (
        lambda: media.save_video(moving_picture(1), absent),
        lambda: media.save_image(moving_picture(1)[:, 0], absent.with_suffix(".png")),
    ):
        with pytest.raises(MediaError, match=r"cannot write .*absent/a\."):
            write()
    media.check_output(tmp_path / "a.mp4", num_frames=5)

    # Tests may run as root, whom few folders refuse.
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(MediaError, match=r"cannot write .*a.mp4: Permission denied") as caught:
        media.check_output(tmp_path / "a.mp4", num_frames=5)
    assert caught.value.hint == "choose another folder or name"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a file")
def test_a_folder_that_takes_no_file_though_its_mode_says_so() -> None:
    with pytest.raises(MediaError, match=r"cannot write /proc/self/a.mp4: "):
        media.check_output(Path("/proc/self/a.mp4"), num_frames=5)


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(MediaError, match=r"cannot write .*dir.png: it is a folder") as caught:
        media.check_output(tmp_path / "dir.png", num_frames=1)
    assert caught.value.hint == "choose another name"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = tmp_path / ("a" * (longest - 4) + ".png")
    media.check_output(path, num_frames=1)
    media.save(moving_picture(1), path)
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(MediaError, match="File name too long"):
        media.check_output(path.with_name("a" + path.name), num_frames=1)


def test_checking_leaves_the_folder_and_an_old_file_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("old.mp4", "new.mp4"):
        media.check_output(tmp_path / name, num_frames=5)
    assert os.listdir(tmp_path) == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")

    def pieces():
        yield moving_picture(2)
        raise RuntimeError("decode failed")

    with pytest.raises(RuntimeError, match="decode failed"):
        media.save_video(pieces(), path)
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert path.read_bytes() == b"old"


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(MediaError, match="PyAV") as caught:
        media.save_video(moving_picture(1), tmp_path / "a.mp4")
    assert caught.value.hint == "pip install av"
