"""Before a run: what is refused, in which words, and what is told of a run that may go on."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ray_memprof.config.load import from_mapping
from ray_memprof.config.rules import warnings
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.overview import describe, disagreements, gaps, run_lines, with_versions
from ray_memprof.driver.preflight import check_driver, needed_bytes
from ray_memprof.errors import EXIT_DISK_FULL, EXIT_PREFLIGHT, DiskFull, PreflightFailed
from ray_memprof.rank.checks import check_gpu, check_rank, process_name
from ray_memprof.rank.messages import Prepared, RankFacts
from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.versions import versions
from ray_memprof.recorder.meters.nvml import Device, Holder

MIB, GIB = 2**20, 2**30


def config(**sections: Any) -> RunConfig:
    model = {"task": "t2v-tiny", **sections.pop("model_config", {})}
    return from_mapping({"name": "test", "model_config": model, **sections}, source="test")


def facts(rank: int = 0, *, gpu: bool = True) -> RankFacts:
    told: dict[str, Any] = {"gpu_index": -1}
    if gpu:
        told = {
            "gpu_index": 4 + rank, "gpu_uuid": f"GPU-{rank}", "gpu_name": "NVIDIA H200",
            "device_total_bytes": 140 * GIB,
        }  # fmt: skip
    return RankFacts(node_id="n0", host="alpha", node_ip="10.0.0.1", pid=77, **told)


def plan(given: RunConfig, **changes: Any) -> RankPlan:
    return RankPlan(
        run_id="r", config=given, rank=2, world_size=4, local_rank=2, local_world_size=4, node=0,
        facts=facts(2), run_dir=Path("nowhere"), **{"visible_devices": (), **changes},
    )  # fmt: skip


# --- the driver ---


def test_an_ordinary_run_has_nothing_to_be_told(tmp_path: Path) -> None:
    run_dir = tmp_path / "logs" / "test" / "1"
    assert check_driver(config(), run_dir) == []
    assert list(run_dir.iterdir()) == []


def test_warnings_of_the_configuration_are_told(tmp_path: Path) -> None:
    given = config(optimization={"gradient_checkpointing": True})
    assert check_driver(given, tmp_path) == warnings(given) != []


def test_a_trace_that_waits_for_more_steps_than_are_made_is_told_with_numbers(tmp_path: Path) -> None:
    asked = {"level": "torch_profiler", "profiler": {"wait": 4, "warmup": 2, "active": 3}}
    short = config(generation={"sample_steps": 7}, logging=asked)
    assert check_driver(short, tmp_path) == [
        "logging.profiler asks for 9 steps (wait 4, warmup 2, active 3), the run makes 7: traces will be short"
    ]
    two = config(generation={"sample_steps": 7}, optimization={"batch_size": 2}, logging=asked)
    assert check_driver(two, tmp_path) == []
    unrecorded = config(generation={"sample_steps": 7}, logging=asked | {"profile_memory": False})
    assert check_driver(unrecorded, tmp_path) == warnings(unrecorded)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightFailed) as raised:
        check_driver(config(), tmp_path / "file" / "run")
    assert (str(raised.value), raised.value.hint, raised.value.exit_code) == (
        f"logging.output_dir: {tmp_path}/file/run cannot be written: Not a directory",
        "set logging.output_dir to a folder of yours",
        EXIT_PREFLIGHT,
    )


def test_a_full_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(logging={"level": "stage"}, ray={"num_gpus": 2}, parallel={"ulysses": 2})
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * GIB, 10 * GIB - 127 * MIB, 127 * MIB))
    with pytest.raises(DiskFull) as raised:
        check_driver(given, tmp_path)
    assert (str(raised.value), raised.value.exit_code) == (
        f"{tmp_path}: 127 MiB are free, about 128 MiB will be written", EXIT_DISK_FULL,
    )  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * GIB, 10 * GIB - 128 * MIB, 128 * MIB))
    assert check_driver(given, tmp_path) == []


def test_the_estimate_of_disk_space_follows_its_formula() -> None:
    """Blocks * passes * steps * videos * 1200 allocations * 3 events * bytes, and 64 MiB, for every rank."""
    steps = {"sample_steps": 7}
    calls = 4 * 2 * 7  # t2v-tiny has four blocks
    levels = {"stage": 0, "event": 12, "stack": 16}
    for level, event_bytes in levels.items():
        given = config(generation=steps, logging={"level": level})
        assert needed_bytes(given) == 64 * MIB + calls * 1200 * 3 * event_bytes
    videos = config(generation=steps | {"sample_guide_scale": 1.0}, optimization={"batch_size": 5})
    assert needed_bytes(videos) == 64 * MIB + calls // 2 * 5 * 1200 * 3 * 12
    traced = config(generation=steps, logging={"level": "torch_profiler", "profiler": {"active": 2}})
    assert needed_bytes(traced) == 264 * MIB + calls * 1200 * 3 * 12
    assert needed_bytes(config(generation=steps, logging={"profile_memory": False})) == 64 * MIB
    script = config(workload="script", script={"path": "job.py"}, ranks=3)
    assert needed_bytes(script) == 3 * 64 * MIB


# --- a rank ---


@contextmanager
def no_device(*, uuid: str = "", index: int = -1) -> Iterator[Device | None]:
    yield None


class Opened:
    """Stands for device.open_device: a GPU with this much in use, by these."""

    def __init__(self, used_bytes: int, *holders: Holder, is_mig: bool = False) -> None:
        self._used_bytes, self._holders = used_bytes, None if is_mig else list(holders)
        self.asked: list[tuple[str, int]] = []

    @contextmanager
    def __call__(self, *, uuid: str = "", index: int = -1) -> Iterator[Any]:
        self.asked.append((uuid, index))
        yield self

    def used_bytes(self) -> int:
        return self._used_bytes

    def holders(self) -> list[Holder] | None:
        return self._holders

    def name(self) -> str:
        return "NVIDIA H200"


def test_on_the_cpu_there_is_nothing_to_look_at() -> None:
    assert check_rank(plan(config(model_config={"device": "cpu"}))) == {"device": "cpu"}


SCRIPT: dict[str, Any] = {"workload": "script", "script": {"path": "job.py"}, "ranks": 4}


def test_each_rank_of_a_script_looks_at_its_own_gpu() -> None:
    told = check_rank(plan(config(**SCRIPT)), devices=no_device)
    assert told == {"device": "cuda"} | check_gpu(2, facts(2), devices=no_device)


def test_of_the_ranks_of_a_script_the_first_of_a_node_asks_torch() -> None:
    script = plan(config(**SCRIPT))
    assert [replace(script, local_rank=rank).asks_torch for rank in range(3)] == [True, False, False]
    assert plan(config()).asks_torch


def test_a_rank_without_versions_has_those_of_its_node_and_what_it_saw_itself() -> None:
    nodes = [replace(facts(rank), node_id=node) for rank, node in enumerate(["a", "a", "b", "b"])]
    told = [({"torch": "2.11"}, {"held_bytes": 5, "nvml": "x"}), ({}, {"held_bytes": 6})]
    told += [({"torch": "2.13"}, {"held_bytes": 7}), ({"torch": "2.12"}, {"nvml": "y"})]
    ready = [
        Prepared(run_dir=Path(), shared=True, environment={}, versions=versions, checks=checks)
        for versions, checks in told
    ]
    assert with_versions(nodes, ready) == [
        {"torch": "2.11", "held_bytes": 5, "nvml": "x"},
        {"torch": "2.11", "held_bytes": 6},
        {"torch": "2.13", "held_bytes": 7},
        {"torch": "2.12", "nvml": "y"},
    ]


def test_versions_are_those_of_this_process() -> None:
    found = versions()
    assert list(found) == ["host", "python", "torch", "cuda", "cudnn", "nccl", "ray"]
    assert (found["torch"], found["cuda"]) == (torch.__version__, torch.version.cuda or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_gpu_a_cuda_run_is_refused() -> None:
    with pytest.raises(PreflightFailed) as raised:
        check_rank(plan(config(), visible_devices=("0", "1")))
    assert (str(raised.value), raised.value.hint) == (
        f"rank 2 on alpha: torch {torch.__version__} sees 0 CUDA devices, the run gives it 0, 1",
        "model_config.device: cpu runs the tiny tasks without a GPU",
    )


def test_without_the_drivers_library_it_is_said_that_nothing_can_be_told() -> None:
    assert check_gpu(2, facts(2), devices=no_device) == {
        "nvml": "not available: who holds memory of this GPU is not known"
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a driver")
def test_the_absent_driver_of_this_machine_is_such_a_case() -> None:
    assert list(check_gpu(2, facts(2))) == ["nvml"]


def test_an_idle_gpu_is_accepted_up_to_the_limit() -> None:
    opened = Opened(GIB, Holder(1, 300 * MIB))
    found = check_gpu(2, facts(2), devices=opened, driver=lambda: "570.1")
    assert found == {"driver": "570.1", "held_bytes": GIB, "num_holders": 1}
    assert opened.asked == [("GPU-2", 6)]


UNNAMED = "names no process on this GPU (MIG?): what others hold of it is not recorded"


def test_a_driver_that_names_no_process_is_told_and_ends_nothing() -> None:
    found = check_gpu(2, facts(2), devices=Opened(GIB, is_mig=True), driver=lambda: "570.1")
    assert found == {"driver": "570.1", "held_bytes": GIB, "nvml": UNNAMED}


def refusal(*given: Any, is_mig: bool = False) -> tuple[str, str]:
    with pytest.raises(PreflightFailed) as raised:
        check_gpu(2, facts(2), devices=Opened(*given, is_mig=is_mig))
    return str(raised.value), raised.value.hint


def test_a_gpu_that_others_hold_is_refused_and_they_are_named_the_largest_first() -> None:
    mine = process_name(os.getpid())
    assert refusal(70 * GIB, Holder(2**22 + 1, 20 * GIB), Holder(os.getpid(), 50 * GIB)) == (
        f"rank 2 on alpha: GPU 6 (NVIDIA H200) has 70.0 GiB in use before the run, by {mine} (pid {os.getpid()}) "
        "50.0 GiB, a process not visible here (pid 4194305) 20.0 GiB",
        "end them, or use other GPUs: at most 1.00 GiB may be in use",
    )


def test_memory_of_processes_that_cannot_be_seen_is_told_as_such() -> None:
    message, _ = refusal(30 * GIB)
    assert message.endswith(
        "in use before the run, by 30.0 GiB of processes that cannot be seen from here (another container?)"
    )


def test_an_amount_that_the_driver_does_not_tell_is_not_made_up() -> None:
    message, _ = refusal(30 * GIB, Holder(os.getpid(), None))
    assert message.endswith(f"by {process_name(os.getpid())} (pid {os.getpid()}) an unknown amount")


def test_holders_that_the_driver_does_not_name_are_not_made_up() -> None:
    message, _ = refusal(30 * GIB, is_mig=True)
    assert message.endswith("in use before the run, by processes that the driver does not name")


# --- what is shown ---


def shown(given: Any, ranks: Any) -> list[str]:
    """What is said before Ray starts, and after it has."""
    out = io.StringIO()
    if ranks:
        Console(file=out, width=200, color_system=None).print(describe(ranks))
    return run_lines(given) + [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_run_without_ranks_is_described_by_its_configuration() -> None:
    given = config(
        generation={"base_seed": 3}, logging={"level": "stage"}, model_config={"load_strategy": "full"}
    )
    assert shown(given, []) == [
        "test: t2v-tiny 64*48 9 frames, 4 steps of unipc, shift 5, guidance 5, seed 3, bf16 on cuda, "
        "weights random, load full",
        "1 rank, recording stage, about 64.0 MiB on disk",
    ]


def test_ranks_versions_and_warnings_have_a_line_each() -> None:
    given = config(workload="script", script={"path": "job.py", "args": ["--x", "1"]}, ranks=2)
    checks = {"torch": "2.11", "cuda": "12.8", "nccl": "", "driver": "570.1", "device": "cuda"}
    ranks = [
        (facts(0), checks | {"held_bytes": 512 * MIB}),
        (facts(1), checks | {"held_bytes": 0, "torch": "2.12"}),
    ]
    assert shown(given, ranks) == [
        "test: job.py --x 1",
        "2 ranks, recording event, about 128 MiB on disk",
        "torch 2.11, cuda 12.8, driver 570.1",
        "rank  host   GPU              memory  in use before",
        "   0  alpha  4: NVIDIA H200  140 GiB        512 MiB",
        "   1  alpha  5: NVIDIA H200  140 GiB            0 B",
        "warning: torch differs: 2.11 in rank 0; 2.12 in rank 1",
    ]


def test_ranks_on_the_cpu_are_described_as_such() -> None:
    given = config(model_config={"device": "cpu"}, parallel={"ulysses": 2}, generation={"base_seed": 3})
    checks = {"torch": "2.11", "device": "cpu"}
    assert shown(given, [(facts(0, gpu=False), checks), (facts(1, gpu=False), checks)])[1:] == [
        "2 ranks (ulysses 2, ring 1), recording event, about 131 MiB on disk",
        "torch 2.11",
        "rank  host   GPU               memory  in use before",
        "   0  alpha  none, on the CPU",
        "   1  alpha  none, on the CPU",
    ]


def test_passes_of_guidance_are_described_where_they_have_ranks_of_their_own() -> None:
    (line,) = shown(config(parallel={"ulysses": 2, "cfg": 2}, generation={"base_seed": 3}), [])[1:]
    assert line.startswith("4 ranks (ulysses 2, ring 1, cfg 2), recording event, ")


@pytest.mark.parametrize("world_size", ["4", "many"])
def test_the_launchers_own_world_size_says_nothing_of_the_ranks(
    monkeypatch: pytest.MonkeyPatch, world_size: str
) -> None:
    given = config(parallel={"ulysses": 2}, generation={"base_seed": 3})
    expected = shown(given, [])
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert shown(given, []) == expected


def test_ranks_that_agree_have_nothing_to_be_told() -> None:
    assert disagreements([]) == []
    assert disagreements([{"torch": "2.11"}, {"torch": "2.11"}]) == []
    assert disagreements([{"nccl": "2.28"}, {}, {"nccl": "2.28"}]) == [
        "nccl differs: 2.28 in ranks 0 and 2; none in rank 1"
    ]


def test_what_the_driver_does_not_tell_is_a_gap_with_the_ranks_that_it_concerns() -> None:
    assert gaps([]) == gaps([{"driver": "570.1"}]) == []
    assert gaps([{"nvml": UNNAMED}, {}, {"nvml": UNNAMED}, {"nvml": "not available"}]) == [
        f"ranks 0 and 2: NVML {UNNAMED}",
        "rank 3: NVML not available",
    ]
