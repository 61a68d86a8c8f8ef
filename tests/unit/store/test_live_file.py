"""The file by which others see where ranks are: replaced whole, at little cost, and gone when the ranks have ended."""

import os
from pathlib import Path
from typing import Any

import pytest

from ray_memprof.store.live_file import LiveFile, read_live


class Clock:
    """Goes on by `step` seconds with each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_there_is_no_file(tmp_path: Path) -> None:
    assert read_live(tmp_path) is None
    LiveFile(tmp_path).remove()
    (tmp_path / "live.json").write_text("[]")
    assert read_live(tmp_path) is None


def test_what_is_noted_is_read_until_the_ranks_have_ended(tmp_path: Path) -> None:
    with LiveFile(tmp_path) as live:
        live.note(lambda: {"beats": [{"rank": 1}], "pace": {}})
        found = read_live(tmp_path)
        assert found is not None
        assert found.pop("t_ns") > 0
        assert found == {"beats": [{"rank": 1}], "pace": {}}
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_also_if_the_launcher_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), LiveFile(tmp_path) as live:
        live.note(lambda: {"beats": []})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_written_to_more_seldom(tmp_path: Path) -> None:
    """GIVEN a disk that takes a second for the file, WHEN 60 s pass, THEN three of them go into it."""
    clock, written = Clock(), 0

    def facts() -> dict[str, Any]:
        nonlocal written
        clock.now += 1.0
        written += 1
        return {}

    live = LiveFile(tmp_path, clock=clock)
    while clock.now < 60.0:
        live.note(facts)
        clock.now += 0.2
    assert written == 3


def test_a_fast_disk_is_written_to_every_time(tmp_path: Path) -> None:
    written = []
    live = LiveFile(tmp_path, clock=Clock(0.001))
    for _ in range(5):
        live.note(lambda: {"n": written.append(1)})
        live._clock.now += 0.2  # type: ignore[attr-defined]
    assert len(written) == 5


def test_a_full_disk_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with LiveFile(tmp_path) as live:
        live.note(lambda: {})
        assert read_live(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
