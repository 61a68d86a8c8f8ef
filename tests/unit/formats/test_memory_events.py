"""memory_events.json: an empty run, the objects of a span, disks full."""

import errno
import json
import os
from pathlib import Path

import pytest
from run_tables import make_run, span

from ray_memprof.errors import ConfigError, DiskFull
from ray_memprof.formats.memory_events import write_memory_events


def test_a_run_without_spans_gives_an_empty_list(tmp_path: Path) -> None:
    path = write_memory_events(make_run(tmp_path, {0: {}}))
    assert path == tmp_path / "memory_events.json"
    assert json.loads(path.read_text()) == []


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        write_memory_events(tmp_path)


def test_a_step_gives_its_beginning_and_its_end(tmp_path: Path) -> None:
    times = (1_800_000_000_250_000_000, 1_800_000_001_500_000_000)
    step = span(
        *(1, "denoise", times),
        allocated=(1, 2, 3),
        reserved=(4, 5, 6),
        active=(7, 8, 9),
        device_used=(10, 11, 12),
        host_rss=(13, 14, 15),
        step=3,
    )
    make_run(tmp_path, {1: {"spans": [step]}})
    about = {"rank": 1, "stage": "denoise", "step": 3, "path": "denoise"}
    known = {"num_samples": 1, "peak_at_least": False}
    assert json.loads(write_memory_events(tmp_path).read_text()) == [
        {
            "name": "denoise",
            "timestamp": 1_800_000_000.25,
            "memory_log": {
                "allocated_bytes": 1,
                "reserved_bytes": 4,
                "active_bytes": 7,
                "device_used_bytes": 10,
                "host_rss_bytes": 13,
            },
            "metadata": {**about, "phase": "start", "failed": False},
        },
        {
            "name": "denoise",
            "timestamp": 1_800_000_001.5,
            "memory_log": {
                "allocated_bytes": 2,
                "reserved_bytes": 5,
                "active_bytes": 8,
                "device_used_bytes": 11,
                "host_rss_bytes": 14,
                "allocated_peak_bytes": 3,
                "reserved_peak_bytes": 6,
                "active_peak_bytes": 9,
                "device_used_peak_bytes": 12,
            },
            "metadata": {**about, "phase": "end", "failed": False, **known},
        },
    ]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, {0: {}})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as raised:
        write_memory_events(tmp_path)
    assert str(raised.value) == (
        f"the driver: cannot write {tmp_path / 'memory_events.json'}: No space left on device"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
