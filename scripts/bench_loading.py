"""Host memory of loading an official-layout folder, network by network and strategy by strategy, on the CPU.

    python scripts/make_checkpoint.py --task t2v-1.3B --out /tmp/ckpt       # or a real one
    python scripts/bench_loading.py --task t2v-1.3B --folder /tmp/ckpt
    python scripts/bench_loading.py --task t2v-1.3B --folder /tmp/ckpt --components vae,dit --strategies block

Both import the package: run them with the python of `make env` (.venv/bin/python), or with PYTHONPATH=. in the
environment.

Every case is a process of its own that uses one Component twice: loaded, released, used again. On a CPU device the
"device" copy of a network is host memory too: `full` and `block` are the same there, and what the host of a GPU would
hold under `block` is `above model`. A thread samples /proc/self/status; the kernel's own high-water mark (ru_maxrss)
stands beside it and catches what falls between two samples. GiB of 1024^3 bytes:

    model         parameters in the dtype they are used in
    largest file  the largest file that the network is read from
    before        resident before loading: the interpreter and its libraries
    peak          largest resident set seen, `before` included
    anonymous     largest part of it that is memory of the process: parameters, copies, buffers
    mapped        largest part of it that is pages of files, which the kernel can take back at any time
    above model   peak - before - model; the target under `block` is at most 2
    of budget     (peak - before) / (1.2 * largest file + model); the target under `full` is at most 1

Prints a Markdown table to stdout and progress to stderr. Linux only.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import SAMPLE_EVERY_S, in_process, peaks, proc_bytes

GIB = 2**30
BUDGET_FILES = 1.2
FILES = {
    "dit": "diffusion_pytorch_model*.safetensors",
    "vae": "Wan2.1_VAE.pth",
    "text": "models_t5_*.pth",
    "clip": "models_clip_*.pth",
}
STRATEGIES = ("full", "block", "stream")
PRECISIONS = ("bf16", "fp32")
RESIDENT = {"peak": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile"}
COLUMNS = (
    "case", "strategy", "model", "largest file", "before", "peak", "ru_maxrss", "anonymous", "mapped", "above model",
    "of budget",
)  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load one network in this process; sizes in bytes."""
    import torch

    from wan.components import Components
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.networks.dtypes import DTYPES

    made = Components(
        TASKS[args.task],
        ckpt_dir=args.folder,
        device=torch.device("cpu"),
        strategy=args.strategies[0],
        offload=True,
        seed=0,
    )
    dtype = DTYPES[args.precisions[0]]
    make: dict[str, Callable[[], Any]] = {
        "dit": lambda: made.dit(Levers(), dtype),
        "vae": lambda: made.vae(Levers(), encoder=False),
        "text": lambda: made.text(torch.bfloat16, on_cpu=False),
        "clip": lambda: made.clip(torch.float16),
    }
    part = make[args.components[0]]()
    assert part is not None
    torch.set_num_threads(1)  # copies are bound by memory anyway; a pool of threads brings stacks of its own
    before = proc_bytes()["VmRSS"]
    with peaks(proc_bytes) as most:
        for _ in range(2):
            with part.on_device() as module:
                model = sum(parameter.nbytes for parameter in module.parameters())
                time.sleep(5 * SAMPLE_EVERY_S)
            del module
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident = {kind: most[name] for kind, name in RESIDENT.items()}
    return {"model": model, "before": before, "ru_maxrss": highest, **resident}


def row(args: argparse.Namespace, component: str, precision: str, strategy: str) -> list[str]:
    """Measure one case in a process of its own; a row of the table."""
    case = ("--components", component, "--strategies", strategy, "--precisions", precision)
    sizes = in_process(__file__, "--task", args.task, "--folder", args.folder, *case, "--in-process")
    sizes["largest file"] = max(path.stat().st_size for path in args.folder.glob(FILES[component]))
    taken = max(sizes["peak"], sizes["ru_maxrss"]) - sizes["before"]
    sizes["above model"] = taken - sizes["model"]
    budget = BUDGET_FILES * sizes["largest file"] + sizes["model"]
    name = f"{component} {precision}" if component == "dit" else component
    cells = [f"{sizes[column] / GIB:.2f}" for column in COLUMNS[2:-1]]
    return [name, strategy, *cells, f"{taken / budget:.2f}"]


def cases(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Component, precision and strategy of every case."""
    listed = []
    for component in args.components:
        # Only the DiT is measured in fp32 too; for the others the first precision is enough.
        for precision in args.precisions if component == "dit" else args.precisions[:1]:
            for strategy in args.strategies:
                if component == "vae" and strategy == "stream":
                    continue  # it has no blocks to stream and is read as under `block`
                listed.append((component, precision, strategy))
    return listed


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="an official-layout checkpoint folder")
    for flag, values in (("components", ("dit", "vae", "text")), ("strategies", STRATEGIES)):
        parser.add_argument(f"--{flag}", type=lambda text: text.split(","), default=list(values))
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=list(PRECISIONS))
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(measure(args)))
        return
    rows = []
    for case in cases(args):
        print(" ".join(case), file=sys.stderr, flush=True)
        rows.append(row(args, *case))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---:|" * (len(COLUMNS) - 2))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
