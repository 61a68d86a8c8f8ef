"""Predicted times beside measured ones: every row of measured_times.yaml is predicted here, without a GPU.

    python scripts/bench_times.py                     # about five minutes on two free cores
    python scripts/bench_times.py 1.3B "14B, fa3"     # some configurations
    python scripts/bench_times.py --gpu my_gpu.yaml   # by another profile, of ray-memprof calibrate

What is timed of a run:

    forward       one forward pass of the DiT, from one synchronisation to the next, as scripts/bench_wan.py times it
    step          two of them; on several GPUs the last denoise step of a whole prediction, and half of it is a forward
    decode        from latents to frames in host memory, without the loading of the network
    dit.block     the median of such spans in the last step, when the host waits for the device
    t5.block      the median of all such spans, in which the host is ahead; clip.block is the same

Steps and forward passes on one GPU are those of the pipeline's denoise loop alone; all else is read from whole
predictions. The last lines are the table of docs/prediction.md, and medians and worst errors by kind.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

MEASURED = Path(__file__).with_name("measured_times.yaml")
_KINDS = {"step": "steps and forward passes", "forward": "steps and forward passes", "decode": "VAE decode"}
_LAST_STEP = """
SELECT step, MAX(end_ns - start_ns) AS ns FROM spans WHERE stage = 'denoise' AND depth = 0
GROUP BY step ORDER BY step DESC LIMIT 1
"""
_DECODE = """
SELECT
    SUM(end_ns - start_ns) FILTER (WHERE depth = 0)
    - COALESCE(SUM(end_ns - start_ns) FILTER (WHERE depth = 1 AND (name LIKE 'load.%' OR name LIKE 'residency.%')), 0)
    AS ns
FROM spans WHERE stage = 'decode' AND rank = 0
"""
_SPAN = """
SELECT MEDIAN(end_ns - start_ns) AS ns FROM spans
WHERE name = ? AND rank = 0 AND step IS NOT DISTINCT FROM (SELECT MAX(step) FROM spans WHERE name = ?)
"""


def config_of(keys: Mapping[str, Any], folder: Path) -> Any:
    """A configuration of these keys, whose runs are in `folder`."""
    from ray_memprof.config.load import from_mapping

    sections: dict[str, Any] = {"name": "times", "logging": {"output_dir": str(folder)}}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return from_mapping(sections, source=MEASURED.name)


def denoised(keys: Mapping[str, Any], gpu: str, folder: Path) -> dict[str, float]:
    """Seconds of a forward pass on one GPU; in a process of its own, for it changes torch.

    All blocks are alike, or every few of them (vace): those of the whole network follow from a few and twice as many.
    """
    from wan.config import TASKS

    config = config_of(keys, folder)
    dit = TASKS[config.model.task].dit
    few = dit.num_layers // len(dit.vace_layers) if dit.vace_layers else 2
    short, long = (forward_s(config, gpu, num) for num in (few, 2 * few))
    seconds = short + (long - short) * (dit.num_layers - few) / few
    return {"forward": seconds, "step": 2 * seconds}


def forward_s(config: Any, gpu: str, num_layers: int) -> float:
    """Seconds of the second of two forward passes of a DiT of so many blocks."""
    from unittest.mock import patch

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ray_memprof.allocator.rules import Rules
    from ray_memprof.config.wan_keys import KEYS, wan_options
    from ray_memprof.predictor.fake_device import FakeDevice
    from ray_memprof.predictor.fake_rank import DEVICE, FakeRank, faked
    from ray_memprof.predictor.gpu_profile import gpu_profile
    from ray_memprof.predictor.operations import Operations
    from wan.config import TASKS, sides_of
    from wan.generate import make_pipeline
    from wan.pipeline import Request

    device = FakeDevice(gpu_profile(gpu), Rules(), keeps_events=False)
    moments: list[int] = []

    def on_step(step: int, total: int) -> None:
        device.synchronize()
        moments.append(device.now_ns)

    name, generation = config.model.task, config.generation
    task = TASKS[name]
    layers = tuple(layer for layer in task.dit.vace_layers if layer < num_layers)
    shorter = replace(task, dit=replace(task.dit, num_layers=num_layers, vace_layers=layers))
    plan = FakeRank(config=config, run_dir=Path(), gpu=gpu, begun_ns=0)
    with patch.dict(TASKS, {name: shorter}), faked(device, plan):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, Operations(device, mode), torch.no_grad():
            pipeline = make_pipeline(replace(wan_options(config), device=DEVICE), num_ranks=1, names=KEYS)
            size = sides_of(generation.size)
            request = Request(prompt="", size=size, frame_num=generation.frame_num, steps=2, guide_scale=1.0)
            text = task.text
            states = torch.empty(1, text.text_len, text.d_model, dtype=torch.bfloat16, device=DEVICE)
            pipeline.denoise(request, {"cond": states}, conditions_of(task, request), on_step)
    return (moments[1] - moments[0]) / 1e9


def conditions_of(task: Any, request: Any) -> Any:
    """What the DiT is told, of the shapes that the inputs of scripts/bench_wan.py have; vace has one reference."""
    import torch

    from ray_memprof.predictor.fake_rank import DEVICE
    from wan.pipeline import Conditions

    dit, kind = task.dit, task.dit.model_type
    channels, frames, height, width = task.latent_shape(*request.size, request.frame_num)
    if kind == "vace":
        frames += 1
    grid, shape = (frames, height, width), (channels, frames, height, width)
    if kind == "t2v":
        return Conditions(shape=shape)
    if kind == "vace":
        return Conditions(shape=shape, num_refs=1, control=torch.empty(dit.vace_in_dim, *grid, device=DEVICE))
    return Conditions(
        shape=shape,
        image_latents=torch.empty(dit.in_dim - channels, *grid, device=DEVICE),
        image_states=torch.empty(dit.image_len, dit.image_dim, device=DEVICE),
    )


def predicted(keys: Mapping[str, Any], gpu: str, folder: Path, processes: Any) -> dict[str, float]:
    """Seconds of a whole prediction, by what is timed."""
    from ray_memprof.predictor.run import predict
    from ray_memprof.query.database import open_run

    config = config_of(keys, folder)
    code, path = predict(config, gpu=gpu, say=lambda line: None, processes=processes)
    if code:
        raise SystemExit(f"{dict(keys)}: the prediction ended with {code}")
    with open_run(path) as connection:

        def seconds(sql: str, *given: str) -> float:
            row = connection.execute(sql, given).fetchone()
            return float(row[-1] or 0) / 1e9 if row else 0.0

        step = seconds(_LAST_STEP)
        found = {"step": step, "forward": step / 2, "decode": seconds(_DECODE)}
        return found | {name: seconds(_SPAN, name, name) for name in ("dit.block", "t5.block", "clip.block")}


def keys_of(name: str, measured: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of a configuration; its pictures are made in `folder`."""
    keys = {**measured["defaults"], **measured["configurations"][name]}
    task, picture = keys["model_config.task"], str(folder / "picture.png")
    pictures = {
        "i2v": {"generation.image": picture},
        "flf2v": {"generation.first_frame": picture, "generation.last_frame": picture},
        "vace": {"generation.src_ref_images": [picture]},
    }
    return keys | pictures.get(task.split("-")[0], {})


def compare(names: list[str], gpu: str) -> list[dict[str, Any]]:
    """Predict the configurations; returns a row for each measured time of them."""
    from PIL import Image

    from ray_memprof.predictor.processes import NUM_PROCESSES, Processes

    measured = yaml.safe_load(MEASURED.read_text(encoding="ascii"))
    times = [row for row in measured["times"] if not names or row[0] in names]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Image.linear_gradient("L").convert("RGB").resize((1280, 720)).save(folder / "picture.png")
        keys = {name: keys_of(name, measured, folder) for name, *_ in times}
        short = list(dict.fromkeys(name for name, what, *_ in times if is_short(what, keys[name])))
        whole = list(dict.fromkeys(name for name, what, *_ in times if not is_short(what, keys[name])))
        known: dict[tuple[str, bool], dict[str, float]] = {}
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(NUM_PROCESSES, spawn) as workers:
            waiting = {name: workers.submit(denoised, keys[name], gpu, folder) for name in short}
            for name, one in waiting.items():
                known[name, True] = told(name, one.result())
        with Processes() as processes, ThreadPoolExecutor(NUM_PROCESSES) as pool:
            found = pool.map(lambda name: predicted(keys[name], gpu, folder / "runs", processes), whole)
            for name, values in zip(whole, found, strict=True):
                known[name, False] = told(name, values)
    return [
        {
            "name": name,
            "what": what,
            "measured": seconds,
            "predicted": known[name, is_short(what, keys[name])][what],
            "source": source,
        }
        for name, what, seconds, source in times
    ]


def is_short(what: str, keys: Mapping[str, Any]) -> bool:
    """Whether the denoise loop alone tells it: on one GPU."""
    return what in ("step", "forward") and not any(key.startswith("parallel.") for key in keys)


def told(name: str, values: dict[str, float]) -> dict[str, float]:
    """Print the values, and return them."""
    print(name, {what: round(value, 5) for what, value in values.items() if value}, flush=True)
    return values


def error(row: Mapping[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return float(row["predicted"] / row["measured"] - 1)


def print_tables(rows: list[dict[str, Any]]) -> None:
    """As docs/prediction.md has them."""
    print(
        "\n| configuration | time of | measured, s | predicted, s | error | measured by |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        times = f"{row['measured']:.4g} | {row['predicted']:.4g}"
        print(f"| {row['name']} | {row['what']} | {times} | {error(row):+.1%} | {row['source']} |")
    print("\n| relative error | times | median | worst |\n|---|---|---|---|")
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(_KINDS.get(row["what"], "spans"), []).append(error(row))
    for kind, errors in kinds.items():
        middle, worst = statistics.median(map(abs, errors)), max(errors, key=abs)
        print(f"| {kind} | {len(errors)} | {middle:.1%} | {worst:+.1%} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CONFIGURATION", help="default: all")
    parser.add_argument("--gpu", default="H200", help="a GPU model, or the file of a profile")
    parser.add_argument("--json", type=Path, help="where all rows are kept")
    given = parser.parse_args()
    rows = compare(given.names, given.gpu)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1), encoding="ascii")
    print_tables(rows)


if __name__ == "__main__":
    main()
