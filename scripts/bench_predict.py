"""Predictions beside measurements: many configurations, each measured on a GPU and predicted without one.

    python scripts/bench_predict.py measure RUNS                # on a GPU: every row, 20 minutes on one H200
    python scripts/bench_predict.py measure RUNS --part 1/2     # one half of the rows, for the first of two GPUs
    python scripts/bench_predict.py measure RUNS --first 21     # the rows from number 21 on
    python scripts/bench_predict.py measure RUNS --gpus 2       # the rows that need two GPUs
    python scripts/bench_predict.py compare RUNS                # anywhere: predicts each run in RUNS; prints the table

Weights are random, of the true shapes. `compare` predicts with the configuration, the GPU and the allocator's variables
that a run was recorded with; its last lines are medians, p95 and worst errors over all ranks and stages. Times are not
compared: in two steps the host is up to a thousand kernels ahead of the GPU, and scripts/bench_times.py compares times.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STAGE_FLOOR_BYTES = 2**30
"""Stages below it are not held against the aim: their errors are told by themselves."""
MEASURES = ("allocated", "reserved", "device_used")


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration."""

    task: str
    size: str
    frame_num: int
    load_strategy: str = "block"
    options: dict[str, Any] = field(default_factory=dict)
    num_gpus: int = 1

    def keys(self, folder: Path) -> dict[str, Any]:
        """The keys of a row of a matrix; pictures are in `folder`."""
        keys = {
            "model_config.task": self.task,
            "model_config.load_strategy": self.load_strategy,
            "generation.size": self.size,
            "generation.frame_num": self.frame_num,
        }
        if self.task.startswith("i2v"):
            keys["generation.image"] = str(folder / "picture.png")
        if self.task.startswith("flf2v"):
            keys["generation.first_frame"] = keys["generation.last_frame"] = str(folder / "picture.png")
        return keys | {_key(name): value for name, value in self.options.items()}


_SECTIONS = {
    "model_config": ("precision", "weights_dtype", "offload", "t5_cpu"),
    "generation": ("sample_steps", "sample_solver", "sample_guide_scale"),
    "parallel": ("ulysses", "ring", "cfg", "dit_fsdp", "t5_fsdp", "vae"),
}
WIDE, TALL, HD, HD_TALL = "832*480", "480*832", "1280*720", "720*1280"
FP8 = {"weights_dtype": "fp8"}
FP8_PRODUCTS = {**FP8, "matmul": "fp8"}
FEWEST = {"offload": True, "attention_slicing": True, "expandable_segments": True}
NONE = {"fused_kernels": False, "ffn_chunks": 1, "rope_chunks": 1, "vae_slabs": 1}
FSDP = {"dit_fsdp": True, "t5_fsdp": True, "offload": True}
ROWS = (
    Row("t2v-1.3B", WIDE, 81, "block", {"offload": False}),
    Row("t2v-14B", HD, 81, "stream", {**FEWEST, "sample_steps": 1}),
    Row("i2v-14B", WIDE, 33, "stream", FEWEST),
    Row("t2i-14B", "1024*1024", 1, "stream", FEWEST),
    Row("vace-1.3B", WIDE, 49, "block", {"offload": True}),
    Row("flf2v-14B", HD, 17, "block", {"offload": True}),
    Row("t2v-14B", WIDE, 17, "block", {**FP8_PRODUCTS, "offload": True}),
    Row("t2v-1.3B", TALL, 49, "full", {"precision": "fp32"}),
    Row("t2v-1.3B", WIDE, 33, "block", NONE),
    Row("vace-14B", WIDE, 17, "stream", {"offload": True}),
    Row("t2v-1.3B", WIDE, 81, "stream", FEWEST),
    Row("t2v-14B", HD, 33, "block", {"offload": True}),
    Row("i2v-14B", HD, 17, "block", {**FP8, "offload": True}),
    Row("t2v-1.3B", WIDE, 81, "block", {"attention_kernel": "fa3", "offload": True}),
    Row("t2v-14B", TALL, 49, "stream", {**FP8, **FEWEST}),
    Row("t2v-1.3B", TALL, 1, "block", {"t5_cpu": True}),
    Row("t2i-14B", HD_TALL, 1, "block", {"offload": True, "attention_slicing": True}),
    Row("t2v-1.3B", WIDE, 81, "block", {**FP8_PRODUCTS, "attention_kernel": "fa3_fp8"}),
    Row("flf2v-14B", HD_TALL, 33, "stream", {"offload": True, "vae_slabs": 4}),
    Row("t2v-1.3B", WIDE, 81, "block", {"precision": "fp16", "vae_slabs": 8}),
    Row("t2v-14B", HD, 9, "stream", {"offload": False}),
    Row("vace-1.3B", TALL, 17, "stream", {**FEWEST, "fused_kernels": False}),
    Row("t2v-1.3B", WIDE, 5, "full", {"precision": "fp16"}),
    Row("i2v-14B", TALL, 81, "block", {"offload": True, "attention_slicing": True, "sample_steps": 1}),
    Row("t2v-14B", WIDE, 33, "block", {"precision": "fp16", "t5_cpu": True}),
    Row("t2v-1.3B", TALL, 81, "stream", {"precision": "fp32", "offload": True}),
    Row("vace-14B", HD, 9, "block", {"offload": True}),
    Row("t2v-1.3B", WIDE, 65, "block", {"sample_guide_scale": 1.0, "offload": True}),
    Row("t2i-14B", WIDE, 1, "full", {**FP8, "offload": True}),
    Row("t2v-14B", HD, 81, "block", {"attention_kernel": "fa3", "offload": True, "sample_steps": 1}),
    Row("t2v-1.3B", WIDE, 21, "block", {"sample_solver": "dpm++", "expandable_segments": True}),
    Row("flf2v-14B", WIDE, 49, "stream", {**FP8_PRODUCTS, **FEWEST}),
    Row("t2v-1.3B", TALL, 13, "stream", {**NONE, "offload": True}),
    Row("i2v-14B", HD_TALL, 33, "stream", {"offload": True, "ffn_chunks": 2}),
    Row("t2v-14B", TALL, 81, "block", {"offload": True, "attention_slicing": True, "sample_steps": 1}),
    Row("t2v-1.3B", WIDE, 81, "block", {"vae_slabs": 1, "offload": True, "expandable_segments": True}),
    Row("vace-1.3B", WIDE, 81, "stream", {"offload": True}),
    Row("t2v-14B", WIDE, 5, "stream", {"precision": "fp32", "offload": True}),
    Row("t2i-14B", "1024*1024", 1, "block", {"offload": False}),
    Row("t2v-1.3B", TALL, 77, "stream", {**FP8, "offload": True}),
    Row("vace-14B", TALL, 33, "block", {**FP8_PRODUCTS, "offload": True}),
    Row("flf2v-14B", HD, 5, "block", {"t5_cpu": True, "ffn_chunks": 1}),
    Row("t2v-14B", HD_TALL, 17, "stream", {"fused_kernels": False, "offload": True}),
    Row("i2v-14B", WIDE, 5, "full", {"precision": "fp16", "offload": True}),
    Row(
        "t2v-1.3B", WIDE, 41, "block", {"sample_solver": "dpm++", "attention_slicing": True, "ffn_chunks": 3}
    ),
    Row("t2v-14B", WIDE, 65, "block", {**FP8, "offload": True, "expandable_segments": True}),
    Row("t2i-14B", TALL, 1, "stream", {"precision": "fp16", "offload": False}),
    Row("vace-1.3B", WIDE, 1, "full", {"offload": True}),
    Row("t2v-14B", WIDE, 33, "block", {"ulysses": 2, **FSDP}, 2),
    Row("t2v-14B", WIDE, 33, "block", {"ring": 2, **FSDP}, 2),
    Row("t2v-14B", WIDE, 33, "block", {"cfg": 2, **FSDP}, 2),
    Row("t2v-1.3B", WIDE, 81, "block", {"ulysses": 2}, 2),
    Row("i2v-14B", HD, 17, "block", {"ulysses": 2, **FSDP, "expandable_segments": True}, 2),
    Row("t2v-1.3B", WIDE, 81, "block", {"ring": 2, "attention_slicing": True}, 2),
    Row("vace-1.3B", WIDE, 49, "block", {"cfg": 2, "vae": "rank0"}, 2),
    Row("t2v-14B", TALL, 49, "stream", {"ulysses": 2, "offload": True, **FP8}, 2),
    Row("t2v-14B", HD, 33, "block", {"ulysses": 2, **FSDP, "attention_kernel": "fa3"}, 2),
)


def _key(name: str) -> str:
    """The key of a configuration that `name` stands for."""
    section = next((section for section, names in _SECTIONS.items() if name in names), "optimization")
    return f"{section}.{name}"


def measure(folder: Path, part: tuple[int, int], num_gpus: int, first: int) -> int:
    """Run the rows of one part, from number `first` on, under Ray; returns the exit code."""
    from PIL import Image

    from ray_memprof.launch import app

    folder.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").resize((1280, 720)).save(folder / "picture.png")
    rows = [(number, row) for number, row in enumerate(ROWS) if row.num_gpus == num_gpus and number >= first]
    mine = rows[part[0] - 1 :: part[1]]
    config = {
        "name": "row",
        "generation": {"sample_steps": 2, "base_seed": 42},
        "logging": {"level": "stage", "predict": False, "output_dir": str(folder)},
        "matrix": [{"name": f"{number:02d}", "set": row.keys(folder)} for number, row in mine],
    }
    file = folder / f"rows_{num_gpus}gpu_{part[0]}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="ascii")
    try:
        app([str(file), "--plain"], standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def compare(folder: Path, file: Path | None) -> None:
    """Predict every run in `folder` and print how far off each prediction is."""
    import ray_memprof
    from ray_memprof.predictor.processes import NUM_PROCESSES, Processes

    runs = [run for run in ray_memprof.runs(output_dir=folder) if run.facts.status == "ok"]
    runs.sort(key=lambda run: run.facts.name)
    with Processes() as processes, ThreadPoolExecutor(NUM_PROCESSES) as pool:
        predictions = pool.map(lambda run: _predicted(run, folder / "predicted", processes), runs)
        found = [row for run, one in zip(runs, predictions, strict=True) for row in _errors(run, one)]
    if file is not None:
        file.write_text(json.dumps(found, indent=1), encoding="ascii")
    _print_summary(found)


def _predicted(run: Any, folder: Path, processes: Any) -> Any:
    """The prediction of a run, as a run."""
    import ray_memprof
    from ray_memprof.config.load import load_config
    from ray_memprof.predictor.audit import attention_packages
    from ray_memprof.predictor.run import predict
    from ray_memprof.store.run_json import run_facts

    config = load_config(run.path / "config.yaml", [f"logging.output_dir={folder}"])
    packages = attention_packages(run_facts(run.path) or {})
    _, path = predict(config, gpu="H200", say=lambda line: None, packages=packages, processes=processes)
    return ray_memprof.open_run(path)


def _errors(measured: Any, predicted: Any) -> Iterator[dict[str, Any]]:
    """Of each rank and stage, and of each rank's peak (stage "")."""
    if predicted.facts.status != "ok":
        print(f"{measured.facts.name}: left out, its prediction ended as {predicted.facts.status}")
        return
    ours, theirs = _by_stage(predicted), _by_stage(measured)
    for place in theirs | ours:
        if place not in ours or place not in theirs:
            print(f"{measured.facts.name}: rank {place[0]}, {place[1]}: only in one of the two")
            continue
        row = {"name": measured.facts.name, "rank": place[0], "stage": place[1]}
        for measure in MEASURES:
            row |= {measure: theirs[place][measure], f"predicted_{measure}": ours[place][measure]}
        if place[1] == "":
            print(_line(row))
        yield row


def _by_stage(run: Any) -> dict[tuple[int, str], dict[str, int]]:
    """rank, stage -> peaks; stage "" is the whole run."""
    stages = {(row["rank"], row["stage"]): row for row in run.ask("peak_by_stage").to_pylist()}
    whole = {(row["rank"], ""): row for row in run.ask("peak_by_rank").to_pylist()}
    return {
        place: {measure: row[f"{measure}_peak_bytes"] for measure in MEASURES}
        for place, row in (stages | whole).items()
    }


def _line(row: dict[str, Any]) -> str:
    figures = [f"{row[measure] / 2**30:.3f} {_error(row, measure):+.3%}" for measure in MEASURES]
    return " | ".join([f"{row['name']} rank {row['rank']}", *figures])


def _error(row: dict[str, Any], measure: str) -> float:
    return float(row[f"predicted_{measure}"] / row[measure] - 1) if row[measure] else 0.0


def _print_summary(found: list[dict[str, Any]]) -> None:
    peaks = [row for row in found if row["stage"] == ""]
    stages = [row for row in found if row["stage"] != "" and row["device_used"] >= STAGE_FLOOR_BYTES]
    print("\n| per rank | ranks | median | p95 | worst |\n|---|---|---|---|---|")
    for measure in MEASURES:
        _print_errors(measure, [_error(row, measure) for row in peaks])
    _print_errors("stage peaks (device used)", [_error(row, "device_used") for row in stages])


def _print_errors(name: str, errors: list[float]) -> None:
    sizes = sorted(map(abs, errors))
    p95 = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
    worst = max(errors, key=abs)
    print(f"| {name} | {len(sizes)} | {statistics.median(sizes):.3%} | {p95:.3%} | {worst:+.3%} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("runs", type=Path)
    measuring.add_argument("--part", default="1/1", help="N/M: each M-th row from the N-th on")
    measuring.add_argument("--gpus", type=int, default=1)
    measuring.add_argument("--first", type=int, default=0, help="the number of the first row")
    comparing = commands.add_parser("compare")
    comparing.add_argument("runs", type=Path)
    comparing.add_argument("--json", type=Path, help="where all figures are kept")
    given = parser.parse_args()
    if given.command == "compare":
        compare(given.runs, given.json)
        return
    number, of = map(int, given.part.split("/"))
    sys.exit(measure(given.runs.resolve(), (number, of), given.gpus, given.first))


if __name__ == "__main__":
    main()
