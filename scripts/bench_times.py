"""Predicted times beside measured ones: every row of measured_times.yaml is predicted here, without a GPU.

    python scripts/bench_times.py                     # about ten minutes on two cores
    python scripts/bench_times.py 1.3B "14B, fa3"     # some configurations
    python scripts/bench_times.py --gpu my_gpu.yaml   # by another profile, of ray-memprof calibrate

What is timed of a run:

    step          the last denoise step, two forward passes
    forward       half of it
    decode        from latents to frames in host memory, without the loading of the network
    dit.block     the median of such spans in the last step, when the host waits for the device; of t5.block and clip.block
                  it is that of all spans, in which the host is ahead

The last lines are the table of docs/prediction.md, and medians and worst errors by kind.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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


def predicted(keys: Mapping[str, Any], gpu: str, folder: Path, processes: Any) -> dict[str, float]:
    """Seconds of one configuration, by what is timed."""
    from ray_memprof.config.load import from_mapping
    from ray_memprof.predictor.run import predict
    from ray_memprof.query.database import open_run

    sections: dict[str, Any] = {"name": "times", "logging": {"output_dir": str(folder)}}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    config = from_mapping(sections, source=MEASURED.name)
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
    names = names or list(measured["configurations"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Image.linear_gradient("L").convert("RGB").resize((1280, 720)).save(folder / "picture.png")
        with Processes() as processes, ThreadPoolExecutor(NUM_PROCESSES) as pool:

            def one(name: str) -> dict[str, float]:
                found = predicted(keys_of(name, measured, folder), gpu, folder / "runs", processes)
                print(name, {what: round(value, 5) for what, value in found.items()}, flush=True)
                return found

            known = dict(zip(names, pool.map(one, names), strict=True))
    return [
        {"name": name, "what": what, "measured": seconds, "predicted": known[name][what], "source": source}
        for name, what, seconds, source in measured["times"]
        if name in known
    ]


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
