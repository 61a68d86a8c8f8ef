"""Questions about models and activations: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import answer, blank, columns, make_run, span


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """T5 is read straight to the device inside its stage and leaves; the DiT moves in from host memory, twice."""
    spans = [
        span(1, "encode.text", (0, 50), allocated=(0, 8, 140)),
        span(
            2,
            "encode.text/load.t5",
            (1, 10),
            parent_id=1,
            allocated=(0, 100, 100),
            reserved=(0, 120, 120),
            component="t5",
        ),
        span(
            3,
            "encode.text/residency.onload",
            (10, 12),
            parent_id=1,
            allocated=(100, 100, 100),
            component="t5",
        ),
        span(
            4,
            "encode.text/residency.offload",
            (40, 49),
            parent_id=1,
            allocated=(108, 8, 108),
            reserved=(120, 20, 120),
            component="t5",
        ),
        span(5, "load.dit", (50, 60), allocated=(8, 8, 8), host_rss=(5, 65, 65)),
        span(6, "residency.onload", (60, 70), allocated=(8, 68, 68), component="dit"),
        span(7, "denoise", (70, 80), allocated=(68, 70, 98), step=0),
        span(8, "denoise/dit.forward", (71, 79), parent_id=7, allocated=(68, 70, 98), step=0, branch="cond"),
        span(9, "denoise", (80, 90), allocated=(70, 68, 99), step=1),
        span(10, "residency.offload", (90, 92), allocated=(68, 8, 68), component="dit"),
        span(11, "residency.onload", (92, 95), allocated=(8, 69, 69), component="dit"),
        span(12, "decode", (95, 99), allocated=(69, 69, 75)),
    ]
    return make_run(tmp_path, {0: {"spans": spans}, 1: {"spans": [span(1, "denoise", (0, 9), step=0)]}})


@pytest.mark.parametrize(
    "name",
    ["component_visits", "base_memory", "activation_by_step", "activation_by_stage", "model_switching"],
)
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def test_component_visits(run_dir: Path) -> None:
    assert columns(run_dir, "component_visits") == [
        *("rank", "component", "visit", "start_ns", "end_ns", "base_bytes", "load_ns")
    ]
    assert answer(run_dir, "component_visits") == [
        (0, "t5", 0, 1, 40, 100, 11),
        (0, "dit", 0, 50, 90, 60, 20),
        (0, "dit", 1, 92, None, 61, 3),
    ]


def test_what_loading_and_moving_in_brought_is_added_up(tmp_path: Path) -> None:
    """A part is read straight to the device, in two goes; another comes with the rest."""
    spans = [
        span(1, "load.dit", (0, 10), allocated=(0, 40, 40)),
        span(2, "load.dit", (10, 15), allocated=(40, 60, 60)),
        span(3, "residency.onload", (15, 18), allocated=(60, 69, 69), component="dit"),
        span(4, "residency.offload", (20, 21), allocated=(69, 0, 69), component="dit"),
        span(5, "residency.onload", (30, 34), allocated=(0, 68, 68), component="dit"),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert answer(tmp_path, "component_visits") == [
        (0, "dit", 0, 0, 20, 69, 18),
        (0, "dit", 1, 30, None, 68, 4),
    ]
    assert answer(tmp_path, "base_memory") == [(0, "dit", 69, 2, 22)]


def test_what_sharding_gives_back_was_not_brought(tmp_path: Path) -> None:
    """One component comes whole and is sharded then, one was made on the device."""
    spans = [
        span(1, "load.dit", (0, 10), allocated=(0, 60, 60)),
        span(2, "residency.shard", (10, 15), allocated=(60, 30, 75), component="dit"),
        span(3, "residency.shard", (15, 18), allocated=(30, 10, 30), component="t5"),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert answer(tmp_path, "component_visits") == [(0, "dit", 0, 0, None, 30, 15)]


def test_base_memory_is_the_most_that_a_component_brought(run_dir: Path) -> None:
    assert answer(run_dir, "base_memory") == [(0, "t5", 100, 1, 11), (0, "dit", 61, 2, 23)]


def test_activation_by_step(run_dir: Path) -> None:
    assert columns(run_dir, "activation_by_step") == [
        *("rank", "stage", "step", "began_bytes", "allocated_peak_bytes", "activation_peak_bytes"),
        *("base_bytes", "above_base_bytes", "activation_bytes"),
    ]
    assert answer(run_dir, "activation_by_step") == [
        (0, "encode.text", None, 0, 140, 140, 100, 40, 40),
        (0, "denoise", 0, 68, 98, 30, 60, 38, 38),
        (0, "denoise", 1, 70, 99, 29, 60, 39, 39),
        (0, "decode", None, 69, 75, 6, 61, 14, 14),
        (1, "denoise", 0, 0, 0, 0, 0, 0, 0),
    ]


def test_activation_by_stage_takes_the_most_of_the_steps(run_dir: Path) -> None:
    assert answer(run_dir, "activation_by_stage") == [
        (0, "encode.text", 1, 140, None, 100, 40),
        (0, "denoise", 2, 30, 0, 60, 39),
        (0, "decode", 1, 6, None, 61, 14),
        (1, "denoise", 1, 0, 0, 0, 0),
    ]


def test_a_script_does_not_say_what_its_weights_are(tmp_path: Path) -> None:
    spans = [
        span(1, "script", (0, 9), allocated=(0, 2, 9)),
        span(2, "script/Model", (1, 4), allocated=(5, 6, 9), step=0, parent_id=1, stage="Model"),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert answer(tmp_path, "activation_by_stage") == [
        (0, "script", 1, 9, None, None, None),
        (0, "Model", 1, 4, 0, None, None),
    ]
    # What a stage added is all that is known of its activations.
    assert answer(tmp_path, "activation_by_step") == [
        (0, "script", None, 0, 9, 9, None, None, 9),
        (0, "Model", 0, 5, 9, 4, None, None, 4),
    ]


def test_model_switching(run_dir: Path) -> None:
    assert columns(run_dir, "model_switching") == [
        *("rank", "start_ns", "stage", "name", "component"),
        *("allocated_bytes", "reserved_bytes", "host_rss_bytes", "duration_ns"),
    ]
    assert answer(run_dir, "model_switching") == [
        (0, 1, "encode.text", "load.t5", "t5", 100, 120, 0, 9),
        (0, 10, "encode.text", "residency.onload", "t5", 0, 0, 0, 2),
        (0, 40, "encode.text", "residency.offload", "t5", -100, -100, 0, 9),
        (0, 50, "load.dit", "load.dit", "dit", 0, 0, 60, 10),
        (0, 60, "residency.onload", "residency.onload", "dit", 60, 0, 0, 10),
        (0, 90, "residency.offload", "residency.offload", "dit", -60, 0, 0, 2),
        (0, 92, "residency.onload", "residency.onload", "dit", 61, 0, 0, 3),
    ]


def test_collectives_summary(tmp_path: Path) -> None:
    assert answer(make_run(tmp_path / "none", {0: {}}), "collectives_summary") == []
    rows = [
        blank(
            "collectives",
            start_ns=0,
            end_ns=5,
            op="all_reduce",
            bytes=8,
            group="world",
            group_size=4,
            non_torch_growth_bytes=100,
        ),
        blank("collectives", start_ns=6, end_ns=7, op="all_reduce", bytes=2, group="world", group_size=4),
        blank(
            "collectives",
            start_ns=8,
            end_ns=9,
            op="all_to_all_single",
            bytes=99,
            group="ulysses",
            group_size=2,
        ),
    ]
    make_run(tmp_path / "some", {0: {"collectives": rows}})
    assert columns(tmp_path / "some", "collectives_summary") == [
        *("rank", "op", "group_name", "group_size", "num_calls"),
        *("total_bytes", "largest_bytes", "duration_ns", "non_torch_growth_bytes"),
    ]
    assert answer(tmp_path / "some", "collectives_summary") == [
        (0, "all_to_all_single", "ulysses", 2, 1, 99, 99, 1, 0),
        (0, "all_reduce", "world", 4, 2, 10, 8, 6, 100),
    ]
