"""Is the first row of a plan as good as the best of an exhaustive search? Predicts every legal choice in full.

    python scripts/check_plan.py --task t2v-1.3B --frames 17 --limit '9 GiB' --set optimization.ffn_chunks=0 ...

Narrow the space with --set: each choice takes seconds to a minute. Exit code 1 if the plan's row is more than 3 %
slower, or if the bound of any choice is above its prediction.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ray_memprof.planner.full import predict_all
from ray_memprof.planner.search import NEAR_FRACTION, Predictions, search
from ray_memprof.planner.space import Asked, choices
from ray_memprof.planner.table import levers_text
from ray_memprof.wording import parse_size, size_text


def main() -> int:
    """Compare, and print both; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True)
    parser.add_argument("--gpu", default="RTX 4090")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--limit", type=parse_size, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        asked = Asked(
            task=given.task, gpu=given.gpu, num_gpus=given.gpus, limit_bytes=given.limit, frame_num=given.frames,
            overrides=tuple(given.overrides), folder=Path(folder),
        )  # fmt: skip
        with Predictions(asked) as tools:
            plan = search(asked, num_rows=1, say=print, tools=tools)
        legal = choices(asked)
        print(f"predicting all {len(legal)}", flush=True)
        every = dict(zip(legal, predict_all(asked, legal), strict=True))
    wrong = [one for one, bound in plan.bounds.items() if bound.floor_bytes > every[one].device_used_bytes]
    for one in wrong:
        print(f"bound too high: {levers_text(one)}")
    fitting = [
        one for one, found in every.items() if not found.exit_code and found.most_bytes <= asked.limit_bytes
    ]
    if not fitting:
        print(f"nothing fits; the plan has {len(plan.rows)} rows")
        return int(bool(plan.rows or wrong))
    seconds = {
        one: every[one].run_s + (plan.bounds[one].cpu_s if one in plan.bounds else 0) for one in fitting
    }
    best = min(fitting, key=lambda one: seconds[one])
    row = plan.rows[0]
    ratio = row.run_s / seconds[best]
    print(f"{len(fitting)} of {len(legal)} fit; the best: {levers_text(best)}, {seconds[best]:.2f} s, "
          f"{size_text(every[best].device_used_bytes)}")  # fmt: skip
    print(f"the plan's: {levers_text(row.choice)}, {row.run_s:.2f} s: {ratio:.4f} of it")
    return int(ratio > 1 + NEAR_FRACTION or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
