"""One predicted rank, of tiny tasks: wan runs from the prompt to the last frame, and its rows are whole."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet
from ranks import EXPANDABLE, predicted

from ray_memprof.config.load import from_mapping
from ray_memprof.predictor.fake_rank import environment_of
from ray_memprof.query.database import query
from ray_memprof.store.gather import gather


@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
@pytest.mark.parametrize("task", ["t2v-tiny", "i2v-tiny"])
def test_every_strategy_runs_to_its_end_and_is_recorded_exactly(
    task: str, strategy: str, tmp_path: Path
) -> None:
    generation: dict[str, Any] = {"sample_steps": 2}
    if task == "i2v-tiny":
        Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
        generation["image"] = str(tmp_path / "a.png")
    made = predicted(tmp_path, generation=generation, model_config={"task": task, "load_strategy": strategy})
    check = made.outcome.check
    assert made.outcome.status == "ok" and check is not None
    assert check.num_lost_events == 0 and check.max_error_bytes == 0
    assert check.allocated_peak_bytes == check.replayed_allocated_peak_bytes > 33 * 2**20
    assert check.reserved_peak_bytes == check.replayed_reserved_peak_bytes
    gathered = gather(tmp_path, [0])
    assert not gathered.problems
    rows = gathered.ranks[0].rows
    assert rows["spans"] > 20 and rows["ledger"] >= 3 and rows["samples"] > 3


def span_peaks(folder: Path) -> dict[str, tuple[int, ...]]:
    """By path and step: the highest peaks of the spans there."""
    columns = ["path", "step", "allocated_peak_bytes", "reserved_peak_bytes", "active_peak_bytes",
               "device_used_peak_bytes"]  # fmt: skip
    found: dict[str, tuple[int, ...]] = {}
    for row in parquet.read_table(folder / "tables" / "spans", columns=columns).to_pylist():
        place = f"{row['path']} {row['step']}"
        found[place] = tuple(map(max, found.get(place, (0, 0, 0, 0)), list(row.values())[2:6]))
    return found


@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
def test_a_checkpoint_is_predicted_from_its_headers(
    strategy: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    peaks = {}
    for name, model in (
        ("random", {}),
        ("checkpoint", {"weights": "checkpoint", "ckpt_dir": str(folders["t2v-tiny"])}),
    ):
        made = predicted(tmp_path / name, model_config={**model, "load_strategy": strategy})
        assert made.outcome.status == "ok", made.outcome.reason
        peaks[name] = {place: one[0] for place, one in span_peaks(tmp_path / name).items()}
    files, drawn = peaks["checkpoint"], peaks["random"]
    assert files.keys() == drawn.keys()
    assert all(files[place] == drawn[place] for place in files if place.startswith("denoise"))
    # Random weights are drawn on the device in pieces of 64 MiB, those of files are copied there as they are.
    loading = {place for place in files if files[place] != drawn[place]}
    assert all(drawn[place] - files[place] > 50 * 2**20 for place in loading)
    assert bool(loading) == (strategy != "full")


def test_stages_have_the_same_peaks_without_events_as_with_them(tmp_path: Path) -> None:
    for level in ("stage", "event"):
        made = predicted(tmp_path / level, logging={"level": level}, model_config={"load_strategy": "stream"})
        assert made.outcome.status == "ok"
    stages, events = span_peaks(tmp_path / "stage"), span_peaks(tmp_path / "event")
    assert len(stages) > 8 and len({peaks[0] for peaks in stages.values()}) > 4
    assert stages == {place: events[place] for place in stages}


def test_levers_of_memory_lower_the_peak_of_their_stage(tmp_path: Path) -> None:
    plain = predicted(tmp_path / "plain", optimization={"fused_kernels": False, "rope_chunks": 1})
    fused = predicted(tmp_path / "fused", optimization={"fused_kernels": True, "rope_chunks": 1})
    checks = [one.outcome.check for one in (plain, fused)]
    assert checks[0] is not None and checks[1] is not None
    assert checks[0].num_events > checks[1].num_events


def test_fp8_weights_and_products_are_predicted(tmp_path: Path) -> None:
    made = predicted(tmp_path, model_config={"weights_dtype": "fp8"}, optimization={"matmul": "fp8"})
    assert made.outcome.status == "ok", made.outcome.reason


def test_every_step_is_predicted(tmp_path: Path) -> None:
    checks = [
        predicted(tmp_path / str(steps), generation={"sample_steps": steps}).outcome.check
        for steps in (6, 7, 8)
    ]
    events = [check.num_events for check in checks if check is not None]
    assert events[2] - events[1] == events[1] - events[0] > 100


def test_a_device_that_is_too_small_ends_the_rank_as_a_gpu_would(tmp_path: Path) -> None:
    outcome = predicted(tmp_path, total_bytes=740 * 2**20).outcome
    assert (outcome.status, outcome.exit_code) == ("oom", 11)
    assert "device out of memory in " in outcome.reason and "asked" in outcome.reason
    assert outcome.path and outcome.oom_free_bytes is not None
    assert not gather(tmp_path, [0]).problems


@pytest.mark.parametrize(
    "parallel",
    [
        {"ulysses": 2, "dit_fsdp": True, "t5_fsdp": True, "vae": "split"},
        {"ring": 2},
        {"cfg": 2},
    ],
    ids=["ulysses, FSDP, split VAE", "ring", "cfg"],
)
def test_ranks_run_one_by_one_and_the_second_knows_the_shapes_of_the_first(
    parallel: dict[str, Any], tmp_path: Path
) -> None:
    first = predicted(tmp_path, parallel=parallel)
    assert first.outcome.status == "ok", first.outcome.reason
    sent = (tmp_path / "shapes").read_text(encoding="ascii").splitlines()
    assert sent == (["end"] if "t5_fsdp" in parallel else ["bfloat16 2 32 32", "end"])
    second = predicted(tmp_path, rank=1, parallel=parallel)
    assert second.outcome.status == "ok", second.outcome.reason
    gathered = gather(tmp_path, [0, 1])
    assert not gathered.problems
    assert all(gathered.ranks[rank].rows["collectives"] > 0 for rank in (0, 1))


def test_where_the_first_rank_ends_early_the_others_are_recorded_up_to_what_it_did_not_send(
    tmp_path: Path,
) -> None:
    parallel = {"ulysses": 2}
    first = predicted(tmp_path, total_bytes=1560 * 2**20, parallel=parallel)
    assert first.outcome.status == "oom", first.outcome.reason
    assert (tmp_path / "shapes").read_text(encoding="ascii") == "end\n"
    second = predicted(tmp_path, rank=1, parallel=parallel)
    assert (second.outcome.status, second.outcome.path) == ("interrupted", "encode.text/comm.broadcast")
    assert second.outcome.reason == "ended with the run: rank 0 has ended before"
    assert not gather(tmp_path, [0, 1]).problems


def test_the_environment_is_what_a_launch_would_set(tmp_path: Path) -> None:
    mapping = {"name": "x", "model_config": {"task": "t2v-tiny", "weights": "random"}}
    config = from_mapping(mapping, source="x.yaml", folder=tmp_path)
    assert environment_of(config, 1, {}) == EXPANDABLE
    many = environment_of(config, 2, {"PATH": "/bin"})
    assert many == EXPANDABLE | {"NCCL_BUFFSIZE": "1048576", "NCCL_NVLS_ENABLE": "0"}
    own = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64", "NCCL_BUFFSIZE": "8388608"}
    assert environment_of(config, 1, own) == own


def test_a_stage_has_no_peak_of_the_stage_after_it(tmp_path: Path) -> None:
    assert predicted(tmp_path).outcome.status == "ok"
    stages = {row["stage"]: row for row in query(tmp_path, "peak_by_stage").to_pylist()}
    outside = 526.8125 + 92 + 74  # the context, kernels, libraries
    warmup = stages["warmup"]
    assert warmup["device_used_peak_bytes"] == warmup["reserved_peak_bytes"] + outside * 2**20
    assert stages["encode.text"]["device_used_peak_bytes"] > warmup["device_used_peak_bytes"]
