"""Devices of an imported snapshot: each is a rank of its own, and is called what its file says."""

import json
from pathlib import Path
from typing import Any

import pytest
from snapshots import MIB, event, peaks, segment, snapshot, write

from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot
from ray_memprof.formats.torch_snapshot.read import import_snapshots
from ray_memprof.formats.torch_snapshot.write import write_snapshot
from ray_memprof.query import database
from ray_memprof.report.derive import derive


def two_devices(*, events: tuple[int, int] = (1, 2), held: int = 0) -> dict[str, Any]:
    """A process that worked on two devices; `held`: bytes on a third one, of which no event speaks."""
    content = snapshot([event("segment_alloc", 0, 2 * MIB)] * events[0], [])
    second = [event("segment_alloc", 0, 20 * MIB), event("alloc", 0, 2 * MIB)]
    content["device_traces"] += [second[: events[1]], []]
    content["segments"] = [
        {**segment(0, (2 * MIB, "inactive")), "device": 0},
        {**segment(0, (2 * MIB, "active_allocated"), (18 * MIB, "inactive")), "device": 1},
    ]
    if held:
        content["segments"].append({**segment(0, (held, "active_allocated")), "device": 2})
    return content


def test_each_device_of_a_file_is_a_rank(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.pickle", two_devices())
    lines: list[str] = []

    assert import_snapshots([path], tmp_path / "run", "x", lines.append) == []

    assert lines == [f"rank 0: {path}, cuda:0", f"rank 1: {path}, cuda:1"]
    assert peaks(tmp_path / "run") == [(0, 2 * MIB, 0), (2 * MIB, 20 * MIB, 2 * MIB)]
    with database.open_run(tmp_path / "run") as connection:
        found = connection.execute("SELECT rank, local_rank, gpu_index FROM ranks ORDER BY rank").fetchall()
    assert found == [(0, 0, 0), (1, 1, 1)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_ranks"] == 2
    assert not (tmp_path / "run" / "waiting").exists()


def test_a_rank_that_left_something_on_another_device_stays_itself(tmp_path: Path) -> None:
    one = snapshot([event("segment_alloc", 0, 4 * MIB)], [segment(0, (4 * MIB, "inactive"))])
    paths = [write(tmp_path / "rank0.pickle", one), write(tmp_path / "rank1.pickle", two_devices())]
    lines: list[str] = []
    import_snapshots(paths, tmp_path / "run", "x", lines.append)
    assert lines == [
        f"rank 0: {paths[0]}, cuda:0",
        f"rank 1: {paths[1]}, cuda:1",
        f"rank 2: {paths[1]}, cuda:0",
    ]
    assert [row[1] for row in peaks(tmp_path / "run")] == [4 * MIB, 20 * MIB, 2 * MIB]


def test_a_device_that_holds_memory_and_has_no_events_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.pickle", two_devices(held=3 * MIB))
    (line,) = import_snapshots([path], tmp_path / "run", "x")
    assert (
        line
        == f"rank 0: {path} has no events of cuda:2, which holds 3.00 MiB: this device is no rank of the run"
    )


def of_device(device: object = 0, **settings: Any) -> dict[str, Any]:
    """A snapshot with one segment on `device`, whose allocator settings have these variables alone."""
    content = snapshot([event("segment_alloc", 0, 2 * MIB)], [segment(0, (2 * MIB, "inactive"))])
    content["segments"][0]["device"] = device
    content["allocator_settings"] = settings
    return content


@pytest.mark.parametrize(
    ("content", "name", "source"),
    [
        (of_device(), "cuda:0", "cuda"),
        (of_device(PYTORCH_CUDA_ALLOC_CONF=""), "cuda:0", "cuda"),
        (of_device(PYTORCH_HIP_ALLOC_CONF=""), "cuda:0", "cuda"),
        (of_device(PYTORCH_XPU_ALLOC_CONF=""), "xpu:0", "xpu"),
        # As torch.xpu writes it, and as any other device may.
        (of_device(PYTORCH_ALLOC_CONF=""), "device 0 (the file does not say of what kind)", "device"),
        (of_device("xpu", PYTORCH_ALLOC_CONF=""), "xpu:0", "xpu"),
        (of_device("privateuseone:0"), "privateuseone:0", "privateuseone"),
        (of_device("meta"), "meta:0", "meta"),
    ],
)
def test_a_device_is_called_what_the_file_says(
    tmp_path: Path, content: dict[str, Any], name: str, source: str
) -> None:
    path = write(tmp_path / "dump.pickle", content)
    lines: list[str] = []
    import_snapshots([path], tmp_path / "run", "x", lines.append, derive=derive)
    assert lines == [f"rank 0: {path}, {name}"]
    with database.open_run(tmp_path / "run") as connection:
        assert connection.execute("SELECT source FROM runs").fetchall() == [(source,)]
    # An export of it says the same.
    again = tmp_path / "again.pickle"
    write_snapshot(tmp_path / "run", 0, again)
    lines.clear()
    import_snapshots([again], tmp_path / "second", "x", lines.append)
    assert lines == [f"rank 0: {again}, {name}"]


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("xpu:x", "has a damaged segment: ValueError 'xpu:x' names no device"),
        ("", "has a damaged segment: ValueError '' names no device"),
        (1.5, "has a damaged segment: TypeError a float is no number"),
    ],
)
def test_a_device_that_cannot_be_is_refused(tmp_path: Path, device: object, told: str) -> None:
    path = write(tmp_path / "dump.pickle", of_device(device))
    with pytest.raises(NotASnapshot) as caught:
        import_snapshots([path], tmp_path / "run", "x")
    assert str(caught.value) == f"{path} {told}"


def test_devices_of_two_kinds_in_one_file_are_refused(tmp_path: Path) -> None:
    content = of_device("xpu:0")
    content["segments"].append({**segment(4 * MIB, (2 * MIB, "inactive")), "device": "cuda:0"})
    path = write(tmp_path / "dump.pickle", content)
    with pytest.raises(NotASnapshot) as caught:
        import_snapshots([path], tmp_path / "run", "x")
    assert str(caught.value) == (
        f"{path}: it has segments on cuda and on xpu, and its events do not say on which of them they were"
    )
