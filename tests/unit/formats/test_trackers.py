"""A run as other services are told of it: what is told, each service's own reading of it, and services that refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from run_tables import make_ranks, make_run
from tracked_runs import SECOND, START, tracked_run
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.config import keys
from ray_memprof.errors import ConfigError, ServiceFailed
from ray_memprof.formats.trackers import account, send, services
from ray_memprof.formats.trackers.services import Service
from ray_memprof.formats.trackers.to_prometheus import GAUGES


def test_a_run_of_which_nothing_was_recorded_is_told_without_numbers(tmp_path: Path) -> None:
    make_run(tmp_path / "x" / "r0", {0: {}})
    told = account.account_of(
        make_ranks(tmp_path / "x" / "r0", run_id="r0", name="x", status="failed", config="{}")
    )
    assert (told.title, told.is_ok, told.moments, told.peaks, told.report) == ("x/r0", False, [], [], None)
    assert told.numbers == {}


def test_a_run_is_told_by_headlines_peaks_and_curves(tmp_path: Path) -> None:
    told = account.account_of(tracked_run(tmp_path))
    assert told.facts == {"status": "ok", "source": "cuda", "workload": "wan"}
    assert told.numbers["allocated_peak_bytes"] == 2000
    assert {name: told.numbers[name] for name in told.numbers if name.startswith("rank0/")} == {
        "rank0/allocated_peak_bytes": 1000,
        "rank0/reserved_peak_bytes": 1010,
        "rank0/device_used_peak_bytes": 1020,
        "rank0/load/allocated_peak_bytes": 500,
        "rank0/load/reserved_peak_bytes": 510,
        "rank0/load/device_used_peak_bytes": 520,
        "rank0/denoise/allocated_peak_bytes": 1000,
        "rank0/denoise/reserved_peak_bytes": 1010,
        "rank0/denoise/device_used_peak_bytes": 1020,
    }
    first = told.moments[0]
    assert (first.t_ns, first.since_ns) == (START, 0)
    assert max(moment.numbers.get("rank1/device_used_bytes", 0) for moment in told.moments) == 2020
    assert [one.since_ns for one in told.moments] == sorted(one.since_ns for one in told.moments)
    assert told.findings.startswith("### pair/r1\n")


def test_peaks_that_may_have_been_more_say_so(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    run_dir = tracked_run(tmp_path)
    make_ranks(run_dir, {"peak_at_least": True}, {}, run_id="r1", name="pair", status="ok", config="{}")
    told = account.account_of(run_dir)
    assert told.numbers["peak_at_least"] == 1
    late = {name for name in told.numbers if name.startswith("at_least/")}
    assert late == {
        f"at_least/rank0/{stage}{measure}_peak_bytes"
        for stage in ("", "load/", "denoise/")
        for measure in ("allocated", "reserved")
    }
    path = tmp_path / "pair.prom"
    send.send(run_dir, Service.PROMETHEUS, path)
    lines = [one for one in path.read_text().splitlines() if one.startswith("ray_memprof_peak_at_least{")]
    flags = {
        line.split('measure="')[1].split('"')[0] + line.split('rank="')[1][0]: line[-3:] for line in lines
    }
    assert flags == {
        "allocated0": "1.0", "reserved0": "1.0", "device_used0": "0.0",
        "allocated1": "0.0", "reserved1": "0.0", "device_used1": "0.0",
    }  # fmt: skip


def test_of_many_ranks_the_fullest_are_told_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "MOST_RANKS", 2)
    told = account.account_of(tracked_run(tmp_path, num_ranks=4))
    assert ({peak.rank for peak in told.peaks}, told.num_left_out) == ({2, 3}, 2)
    assert {name.split("/")[0] for moment in told.moments for name in moment.numbers} == {"rank2", "rank3"}
    pytest.importorskip("tensorboard")
    where = send.send(tmp_path / "pair" / "r1", Service.TENSORBOARD, tmp_path / "events")
    assert where == f"tensorboard: {tmp_path}/events (without the 2 less full ranks)"


def test_a_configuration_is_told_by_full_key() -> None:
    assert account.flat({"a": {"b": 1, "c": {"d": None, "e": [1]}}, "f": "x"}) == {
        "a.b": "1",
        "a.c.e": "[1]",
        "f": "x",
    }


def test_tensorboard_reads_curves_peaks_and_findings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tracked_run(tmp_path)
    for _ in range(2):  # a second export replaces the first
        assert send.send(run_dir, Service.TENSORBOARD) == f"tensorboard: {run_dir}/tensorboard"
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    curve = read.Scalars("rank1/device_used_bytes")
    assert (curve[0].wall_time, curve[0].step) == (START / SECOND, 0)
    assert max(point.value for point in curve) == 2020
    (peak,) = read.Scalars("peaks/rank1/denoise/allocated_peak_bytes")
    assert peak.value == 2000
    (text,) = read.Tensors("findings")
    assert text.tensor_proto.string_val[0].decode().startswith("### pair/r1\n")
    (told,) = read.Tensors("configuration")
    assert "| parallel.ulysses | 2 |" in told.tensor_proto.string_val[0].decode()


def test_prometheus_reads_peaks_with_their_labels(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    path = tmp_path / "r1.prom"
    assert send.send(tracked_run(tmp_path), Service.PROMETHEUS, path) == f"prometheus: {path}"
    families = {one.name: one.samples for one in text_string_to_metric_families(path.read_text())}
    assert families.keys() == GAUGES.keys()
    run = {"name": "pair", "run_id": "r1"}
    peaks = {
        tuple(sorted(one.labels.items() - run.items())): one.value
        for one in families["ray_memprof_peak_bytes"]
    }
    assert peaks[("measure", "device_used"), ("rank", "1")] == 2020
    assert len(peaks) == 6
    stages = [one for one in families["ray_memprof_stage_peak_bytes"] if one.labels["stage"] == "load"]
    assert [one.value for one in stages if one.labels["measure"] == "allocated"] == [500, 1000]
    (info,) = families["ray_memprof_run_info"]
    assert info.labels == {**run, "status": "ok", "source": "cuda", "workload": "wan"}
    (end,) = families["ray_memprof_run_end_timestamp_seconds"]
    assert end.value == START / SECOND + 3


@pytest.mark.parametrize("status", ["ok", "failed"])
def test_mlflow_keeps_metrics_parameters_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not part of .[dev]: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    where = send.send(tracked_run(tmp_path, status=status), Service.MLFLOW)
    (run,) = mlflow.search_runs(experiment_names=["ray-memprof"], output_format="list")
    assert where == f"mlflow: run {run.info.run_id} in file:{tmp_path}/mlruns"
    assert run.info.status == ("FINISHED" if status == "ok" else "FAILED")
    assert (run.info.start_time, run.info.end_time) == (START // 10**6, START // 10**6 + 3000)
    assert run.data.params == {"parallel.ulysses": "2"}
    assert run.data.metrics["rank1/denoise/allocated_peak_bytes"] == 2000
    assert run.data.tags["versions.torch"] == "2.13.0"
    client = mlflow.MlflowClient()
    curve = client.get_metric_history(run.info.run_id, "rank1/device_used_bytes")
    assert max(point.value for point in curve) == 2020
    assert sorted(one.path for one in client.list_artifacts(run.info.run_id)) == [
        "findings.md",
        "report.html",
    ]


def test_wandb_keeps_a_run_that_can_be_sent_later(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not part of .[dev]: pip install wandb")
    program = "import sys; from ray_memprof.formats.trackers import send; sys.exit(send.main(*sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "wandb", str(tracked_run(tmp_path))],
        env={"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.removeprefix("wandb: ").strip())
    (kept,) = folder.glob("run-*.wandb")
    content = kept.read_bytes()
    for told in (
        b"rank1/denoise/allocated_peak_bytes",
        b"rank1/device_used_bytes",
        b"### pair/r1",
        b"report.html",
    ):
        assert told in content, told


def test_every_service_of_the_configuration_is_one_of_the_command() -> None:
    assert set(get_args(keys.Export)) == set(Service) - {Service.PROMETHEUS}


def test_a_service_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_PACKAGES", {Service.WANDB: "no_such_package"})
    with pytest.raises(ConfigError, match="an export to wandb needs no_such_package") as error:
        send.send(tracked_run(tmp_path), Service.WANDB)
    assert error.value.hint == "pip install 'ray-memprof[wandb]'"


def test_what_a_library_raises_is_one_line_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(send, "_sent", refuse)
    monkeypatch.setattr(services, "_PACKAGES", dict.fromkeys(Service, "json"))
    run_dir = tracked_run(tmp_path)
    with pytest.raises(ServiceFailed, match=r"^mlflow did not take pair/r1: OSError: no route"):
        send.send(run_dir, Service.MLFLOW)
    assert send.main("wandb", str(run_dir)) == 5
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: wandb did not take pair/r1: OSError: no route")
    assert errors[1].startswith("hint: log in with `wandb login`")


def exported(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["export", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_says_where_the_run_is_now(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    run_dir = tracked_run(tmp_path)
    out = tmp_path / "x.prom"
    assert exported(str(run_dir), "--to", "prometheus", "--out", str(out)) == (0, f"prometheus: {out}\n", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "csv"), "--format csv does not go with --to wandb"),
        (("--rank", "0"), "--rank 0 does not go with --to wandb"),
        (("--name", "spans"), "--name spans does not go with --to wandb"),
        (("--out", "x"), "--out x does not go with --to wandb"),
    ],
)
def test_flags_of_files_do_not_go_with_a_service(
    tmp_path: Path, flags: tuple[str, str], message: str
) -> None:
    code, told, errors = exported(str(tracked_run(tmp_path)), "--to", "wandb", *flags)
    assert (code, told, errors.splitlines()[0]) == (2, "", f"error: {message}")


def test_a_wrong_service_in_a_configuration_is_refused() -> None:
    from ray_memprof.config.load import from_mapping

    with pytest.raises(ConfigError, match="logging.export"):
        from_mapping(json.loads('{"name": "x", "logging": {"export": ["wandbb"]}}'), source="x.yaml")
