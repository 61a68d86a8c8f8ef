"""What becomes of a run that is sent when it is complete: a line for each service, and never an error of the run."""

from pathlib import Path

import pytest

from ray_memprof.config.load import from_mapping
from ray_memprof.driver import exporting, preflight, ray_metrics
from ray_memprof.driver.exporting import exported
from ray_memprof.recorder.status import Beat

AGAIN = "hint: ray-memprof export name/r1 --to tensorboard"


def lines_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    *,
    limit_s: float = 60.0,
    stopped: bool = False,
) -> list[str]:
    """What is said if `program` stands for the process that sends the run."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(exporting.sys, "executable", str(python))
    run_dir = tmp_path / "name" / "r1"
    return list(exported(run_dir, ["tensorboard"], limit_s=limit_s, is_stopped=lambda: stopped))


def test_without_a_service_nothing_is_said(tmp_path: Path) -> None:
    assert list(exported(tmp_path, [], limit_s=1.0, is_stopped=lambda: False)) == []


def test_where_the_run_is_now_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(tmp_path, monkeypatch, 'echo noise; echo "tensorboard: $4"; echo more >&2')
    assert said == [f"tensorboard: {tmp_path}/name/r1"]


def test_a_failure_is_a_line_with_the_command_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = lines_of(tmp_path, monkeypatch, 'printf "x\\nerror: no login\\nhint: y\\n" >&2; exit 5')
    assert said == [f"warning: no login; {AGAIN}"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('printf "Traceback\\n  x\\nE: gone\\n" >&2; exit 1', "E: gone"),
        ("exit 3", "tensorboard: ended with 3"),
    ],
)
def test_so_is_a_process_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    assert lines_of(tmp_path, monkeypatch, program) == [f"warning: {reason}; {AGAIN}"]


def test_one_that_cannot_be_started_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.sys, "executable", str(tmp_path / "nowhere"))
    (said,) = exported(tmp_path / "name" / "r1", ["tensorboard"], limit_s=1.0, is_stopped=lambda: False)
    assert said.startswith("warning: tensorboard: the run was not sent: [Errno 2]") and said.endswith(AGAIN)


def test_a_server_that_does_not_answer_is_left_with_all_that_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child of the child holds the pipes open, for longer than a test may take.
    said = lines_of(tmp_path, monkeypatch, "sleep 1000 & sleep 1000", limit_s=0.3)
    assert said == [
        f"warning: tensorboard: the run was not sent within 0.3 s (ray.timeouts.export_s); {AGAIN}"
    ]


def test_a_signal_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines_of(tmp_path, monkeypatch, "sleep 100", stopped=True)
    assert said == [f"warning: tensorboard: the run was not sent: it was interrupted; {AGAIN}"]


def test_what_is_missing_for_it_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_memprof.installed.find_spec", lambda name: None)
    monkeypatch.setattr(ray_metrics, "find_spec", lambda name: None)
    config = from_mapping(
        {"name": "x", "logging": {"export": ["mlflow"], "ray_metrics": True}}, source="x.yaml"
    )
    lines = preflight.check_driver(config, tmp_path)
    assert lines == [
        "logging.export: an export to mlflow needs mlflow, which is not installed here "
        "(pip install 'ray-memprof[mlflow]')",
        "logging.ray_metrics has no effect: Ray hands out no metrics without aiohttp_cors, prometheus_client "
        "(pip install 'ray[default]')",
    ]


def test_without_records_nothing_can_be_sent() -> None:
    from ray_memprof.config.rules import warnings

    config = from_mapping(
        {"name": "x", "logging": {"export": ["wandb"], "profile_memory": False}}, source="x.yaml"
    )
    assert "logging.export has no effect: logging.profile_memory is false" in warnings(config)


def test_gauges_are_set_for_every_rank_that_sent_a_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, str], int] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name
            assert description and tag_keys == ("name", "run_id", "rank")

        def set(self, value: int, tags: dict[str, str]) -> None:
            assert (tags["name"], tags["run_id"]) == ("x", "r1")
            seen[self.name, tags["rank"]] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    beat = Beat(
        rank=3,
        sequence=1,
        path="denoise",
        stage="denoise",
        step=7,
        num_steps=9,
        allocated_bytes=1,
        reserved_bytes=2,
        device_used_bytes=3,
    )
    gauges = ray_metrics.RankGauges("x", "r1")
    gauges.show([])
    assert seen == {}
    gauges.show([beat])
    assert seen == {
        ("memprof_allocated_bytes", "3"): 1,
        ("memprof_reserved_bytes", "3"): 2,
        ("memprof_device_used_bytes", "3"): 3,
        ("memprof_step", "3"): 7,
    }
    assert {name for name, _ in seen} == ray_metrics.GAUGES.keys()
