"""What keeps others out of our own Ray, without starting one."""

import os
import sys
from pathlib import Path

import pytest

from ray_memprof.driver import own_ray


@pytest.mark.parametrize(
    ("address", "before", "is_imported", "is_set"),
    [
        (None, {}, False, True),
        ("auto", {}, False, False),
        (None, {"RAY_AUTH_MODE": "disabled"}, False, False),
        (None, {}, True, False),  # too late: Ray has read its environment
    ],
)
def test_a_token_for_our_own_ray(
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    before: dict[str, str],
    is_imported: bool,
    is_set: bool,
) -> None:
    modules = {name: module for name, module in sys.modules.items() if name != "ray"}
    monkeypatch.setattr(sys, "modules", modules | ({"ray": sys} if is_imported else {}))
    environ, other = dict(before), dict(before)
    own_ray.guard(address, environ)
    own_ray.guard(address, other)
    assert (environ != before) == is_set
    if is_set:
        assert environ["RAY_AUTH_MODE"] == "token"
        assert len(environ["RAY_AUTH_TOKEN"]) == 64
        assert environ["RAY_AUTH_TOKEN"] != other["RAY_AUTH_TOKEN"]


def test_loopback_for_our_own_ray_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants

    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.delenv(name, raising=False)
    seen = []
    for is_own in (False, True, True, False, False):
        own_ray.stay_on_loopback(is_own)
        seen.append((ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)))
    assert seen == [(True, None), (False, "0"), (False, "0"), (True, None), (True, None)]
    monkeypatch.setenv(name, "1")  # the user knows better
    own_ray.stay_on_loopback(True)
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_a_private_folder_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp", f"r{os.getpid()}")  # as short as the real one
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(short))
    short.mkdir()
    try:
        folder = own_ray.temp_dir()
        assert folder == str(short / f"ray_memprof-{os.geteuid()}" / "ray")
        assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
        assert own_ray.logs(folder) == Path(folder) / "session_latest" / "logs"
        Path(folder).parent.rmdir()
    finally:
        short.rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    assert own_ray.temp_dir() == f"/tmp/ray_memprof-{os.geteuid()}/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/chosen")
    assert (own_ray.temp_dir(), own_ray.logs(None)) == (None, Path("/chosen/session_latest/logs"))


def test_last_words(tmp_path: Path) -> None:
    assert own_ray.last_words(tmp_path) == ""
    (tmp_path / "gcs_server.err").write_text("\n")
    (tmp_path / "raylet.out").write_text("one\nThe raylet failed: port 1 is taken\n\n")
    assert own_ray.last_words(tmp_path) == "The raylet failed: port 1 is taken"
