"""What a limit is checked against: the peak of a test on its devices, and of a run on its ranks."""

from pathlib import Path

import pytest
import torch
from plugin_fakes import GIB, FakeCuda, a_run

from ray_memprof.pytest_plugin import peaks


def test_of_several_devices_the_fullest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    held = [(GIB, 2 * GIB), (3 * GIB, 5 * GIB), (4 * GIB, 4 * GIB)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: held[index][0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: held[index][1])
    with peaks.watched() as watch:
        pass
    found = [(one.bytes, one.who) for one in map(watch.measured, ("allocated", "reserved"))]
    assert found == [(4 * GIB, "the test, on cuda:2"), (5 * GIB, "the test, on cuda:1")]


def test_the_device_of_a_run_may_be_fullest_between_two_spans(tmp_path: Path) -> None:
    run_dir = a_run(
        tmp_path,
        {"allocated": [GIB, GIB], "reserved": [GIB, 2 * GIB], "device_used": [3 * GIB, 3 * GIB]},
        {0: [{"t_ns": 15, "device_used_bytes": 4 * GIB}], 1: [{"t_ns": 99, "device_used_bytes": 5 * GIB}]},
    )
    found = {
        (measure, rank): (measured.bytes // GIB, measured.details[0])
        for measure, rank in (
            ("device_used", 0),
            ("device_used", "max"),
            ("reserved", "max"),
            ("allocated", 1),
        )
        for measured in [peaks.of_run(run_dir, measure, rank)]
    }
    assert found == {
        ("device_used", 0): (4, "rank 0 has 4.00 GiB in stage denoise, denoise of step 1"),
        ("device_used", "max"): (5, "rank 1 has 5.00 GiB in no span"),
        ("reserved", "max"): (2, "rank 1 has 2.00 GiB in stage denoise, denoise/dit.block of step 2"),
        ("allocated", 1): (1, "rank 1 has 1.00 GiB in stage denoise, denoise/dit.block of step 2"),
    }
