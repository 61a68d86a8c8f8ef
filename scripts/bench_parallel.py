"""wan/parallel on N GPUs of one host: time, and memory of every rank, of forwards, decodes and whole runs.

    python scripts/bench_parallel.py                        # every case on all GPUs, each in processes of its own
    python scripts/bench_parallel.py --gpus 4 dit vae       # cases whose name holds one of the words
    NCCL_BUFFSIZE=4194304 python scripts/bench_parallel.py comm     # settings are given in the environment
    torchrun --nproc_per_node 4 scripts/bench_parallel.py --case "dit ulysses N, fsdp"     # one case, ranks given
    python scripts/bench_parallel.py --list

Random weights of the true shapes, 14B at 720P and 81 frames unless the name says otherwise. N is the number of GPUs.
Columns, GiB of 1024^3 bytes, of the rank where they are largest:

    weights         allocated before the first call
    above           peak allocated, less the weights
    allocated       peak of torch.cuda.max_memory_allocated()
    reserved        peak of torch.cuda.max_memory_reserved()
    device used     peak of what nvidia-smi would show for the GPU, sampled every 2 ms
    outside         device used less reserved when the case is done: context, NCCL, libraries
    imbalance       device used of the worst rank over the mean of the ranks
    seconds         median of the timed calls after one warm-up; for whole runs, of one denoise step

`comm` shows, step by step, what NCCL takes and how fast all_to_all is; `agree` shows how far results are from those of
one GPU; `load`, with --ckpt_dir, shows the host memory (PSS: shared pages once) of all ranks together while DiT and T5
are read from a folder of t2v-1.3B (scripts/make_checkpoint.py makes one). --json FILE keeps everything, each rank
apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import device_bytes, measure_on_gpu, peaks, proc_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan.parallel.environment import NCCL_DEFAULTS, Place, set_defaults
from wan.parallel.layout import Layout

GIB = 2**30
RESULT = "result: "
GRIDS = {"t2v-14B": (21, 90, 160), "t2v-1.3B": (21, 60, 104)}
"""T', h, w of 81 frames at the task's larger usual size."""
COLUMNS = ("weights", "above", "allocated", "reserved", "device used", "outside")
HOST_BEFORE, HOST_PEAK = "host before, all ranks", "host peak, all ranks"
NUM_ROUNDS = 10
A2A_BYTES = 128 * 2**20

Row = dict[str, Any]


# ---- measuring ---------------------------------------------------------------------------------------------


def outside_bytes(device: Any) -> int:
    """Bytes in use on the device now that no allocator of torch holds."""
    import torch

    return device_bytes(device)["device used"] - int(torch.cuda.memory_reserved(device))


def measure(call: Callable[[], object], device: Any, num_timed: int = 2) -> Row:
    """Peaks over a warm-up and `num_timed` timed calls, which all ranks begin together; the median time."""
    import torch
    import torch.distributed as dist

    from wan.parallel.ranks import gather_into

    def meet() -> None:
        if dist.is_initialized():
            # Not a barrier: a barrier is an all_reduce, for which NCCL would allocate buffers that only --t5_fsdp
            # needs.
            everyone = torch.empty(dist.get_world_size(), device=device)
            gather_into(everyone, everyone[:1].clone(), group=dist.group.WORLD)
            torch.cuda.synchronize()

    weights, device_used, seconds = measure_on_gpu(call, num_timed, device, prepare=meet)
    return memory_row(weights, device_used, device) | {"seconds": seconds}


def memory_row(weights: int, device_used: int, device: Any) -> Row:
    """The columns of this rank, in GiB."""
    import torch

    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    values = (weights, allocated - weights, allocated, reserved, device_used, outside_bytes(device))
    return dict(zip(COLUMNS, (value / GIB for value in values), strict=True))


# ---- cases: each runs on every rank and returns that rank's row ---------------------------------------------


def dit_on(layout: Layout, device: Any, task: str = "t2v-14B", seed: int = 0) -> Any:
    """A Component of the DiT, bf16, laid out as `layout` says."""
    import torch

    from wan.components import Components
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.parallel.ranks import Ranks

    layout.check(task, TASKS[task].dit.num_heads)
    ranks = Ranks(layout, device) if layout.ranks > 1 else None
    made = Components(
        TASKS[task], ckpt_dir=None, device=device, strategy="block", offload=True, seed=seed, ranks=ranks
    )
    return made.dit(Levers(), torch.bfloat16)


def dit_inputs(task: str, device: Any) -> tuple[Any, ...]:
    """Latents, time and text, the same on every rank."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(1, 16, *GRIDS[task], device=device, generator=generator)
    text = torch.randn(1, 512, 4096, device=device, generator=generator).bfloat16()
    return latents, torch.tensor([500.0], device=device), text


def dit(layout: Layout, device: Any, task: str = "t2v-14B") -> Row:
    """One forward pass; with cfg 2 it is a whole step, for the other pass runs at the same time."""
    import torch

    given = dit_inputs(task, device)
    with torch.no_grad(), dit_on(layout, device, task).on_device() as model:
        return measure(lambda: model(*given), device)


def agree(layout: Layout, device: Any) -> Row:
    """1.3B at 480P, bf16: this layout against the same weights on one GPU, relative to the norm of the latter."""
    import torch

    given = dit_inputs("t2v-1.3B", device)
    with torch.no_grad():
        with dit_on(Layout(ranks=1), device, "t2v-1.3B").on_device() as model:
            expected = model(*given)
        with dit_on(layout, device, "t2v-1.3B").on_device() as model:
            row = measure(lambda: model(*given), device)
            difference = model(*given) - expected
    # With cfg 2 there are two results, each of the same text here; the worse one counts.
    worst = difference.flatten(1).norm(dim=1).max()
    return row | {"relative difference": float(worst / expected.norm())}


def vae(layout: Layout, device: Any, decode: bool = True, slabs: int = 0) -> Row:
    """720P, 81 frames, fp32: latents to pixels on the first rank's host, or pixels to latents."""
    import torch

    from wan.components import Components
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.parallel import vae as split_vae
    from wan.parallel.ranks import Ranks

    made = Components(TASKS["t2v-14B"], ckpt_dir=None, device=device, strategy="block", offload=True, seed=0)
    ranks = Ranks(layout, device) if layout.ranks > 1 else None
    with made.vae(Levers(), encoder=not decode).on_device() as model:
        if decode:
            latents = torch.randn(16, *GRIDS["t2v-14B"], device=device)
            if ranks is None:
                return measure(lambda: model.decode(latents, slabs=slabs), device)
            return measure(lambda: split_vae.decode(model, latents, ranks, slabs), device)
        video = torch.rand(3, 81, 720, 1280) * 2 - 1
        if ranks is None:
            return measure(lambda: model.encode(video, slabs=slabs), device)
        return measure(lambda: split_vae.encode(model, video, ranks, slabs), device)


def whole_run(layout: Layout, device: Any, task: str = "t2v-14B", steps: int = 3) -> Row:
    """Text to video, every network loaded, used and given back; one stage after the other."""
    import torch

    from wan.config import TASKS
    from wan.pipeline import Pipeline, Request

    torch.cuda.reset_peak_memory_stats()
    ticks: list[float] = []

    def on_step(step: int, steps: int) -> None:
        torch.cuda.synchronize()
        ticks.append(time.perf_counter())

    with peaks(device_bytes, device) as most:
        start = time.perf_counter()
        pipeline = Pipeline(TASKS[task], ckpt_dir=None, device=device, load_strategy="block", layout=layout)
        pipeline.generate(Request(prompt="a red fox in the snow", steps=steps), on_step=on_step)
        torch.cuda.synchronize()
        total = time.perf_counter() - start
    a_step = statistics.median([later - earlier for earlier, later in zip(ticks, ticks[1:], strict=False)])
    return memory_row(0, most["device used"], device) | {"seconds": a_step, "whole run, s": total}


def load(layout: Layout, device: Any, ckpt_dir: Path) -> Row:
    """DiT and text encoder read from files, one after the other."""
    import torch

    from wan.components import Components
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.parallel.ranks import Ranks

    ranks = Ranks(layout, device) if layout.ranks > 1 else None
    made = Components(
        TASKS["t2v-1.3B"],
        ckpt_dir=ckpt_dir,
        device=device,
        strategy="block",
        offload=True,
        seed=0,
        ranks=ranks,
    )
    torch.zeros(1, device=device)  # the context is not part of loading
    before = proc_bytes("smaps_rollup")["Pss"]
    with peaks(proc_bytes, "smaps_rollup", every_s=0.05) as most:
        start = time.perf_counter()
        for part in (made.dit(Levers(), torch.bfloat16), made.text(torch.bfloat16, on_cpu=False)):
            part.prepare()
            with part.on_device():
                pass
        seconds = time.perf_counter() - start
    return {HOST_BEFORE: before / GIB, HOST_PEAK: most["Pss"] / GIB, "seconds": seconds}


def comm(layout: Layout, device: Any) -> Row:
    """What each first use of the communicator adds outside the allocator, and the speed of all_to_all."""
    import torch
    import torch.distributed as dist

    from wan.parallel.ranks import Ranks

    ranks, row, before = Ranks(layout, device), {"joined": outside_bytes(device) / GIB}, outside_bytes(device)
    small = torch.zeros(ranks.size, 2**18, device=device)
    neighbours = {"to": (ranks.rank + 1) % ranks.size, "source": (ranks.rank - 1) % ranks.size}
    ones = [1] * ranks.size
    steps: dict[str, Callable[[], object]] = {
        "+ broadcast": lambda: ranks.once(lambda: small),
        "+ all_gather": lambda: ranks.all_gather(small[:1], ones),
        "+ all_to_all": lambda: ranks.exchange(small, range(ranks.size), sent=ones, received=ones)[1].wait(),
        "+ ring": lambda: ranks.rotate([small], [small.clone()], **neighbours).wait(),
        "+ all_reduce": lambda: ranks.all_reduce(small),
        "+ 2nd group, all_reduce": lambda: dist.all_reduce(
            small, group=dist.new_group(list(range(ranks.size)))
        ),
    }
    for name, step in steps.items():
        step()
        torch.cuda.synchronize()
        row[name] = (outside_bytes(device) - before) / GIB
        before = outside_bytes(device)
        if name == "+ ring":
            row["outside"] = before / GIB
    return row | {"all_to_all, GB/s": all_to_all_speed(ranks)}


def all_to_all_speed(ranks: Any) -> float:
    """Bytes of a rank's buffer divided by the time, in 1e9 bytes per second."""
    import torch

    buffer = torch.zeros(ranks.size, A2A_BYTES // ranks.size, dtype=torch.uint8, device=ranks.device)
    ones = [1] * ranks.size
    for index in range(1 + NUM_ROUNDS):
        if index == 1:
            torch.cuda.synchronize()
            start = time.perf_counter()
        ranks.exchange(buffer, range(ranks.size), sent=ones, received=ones)[1].wait()
    torch.cuda.synchronize()
    return A2A_BYTES * NUM_ROUNDS / (time.perf_counter() - start) / 1e9


def cases(num: int, ckpt_dir: Path | None = None) -> dict[str, tuple[Callable[..., Row], Layout, Row]]:
    """Name -> function, layout, further arguments."""
    sharded = Layout(ranks=num, ulysses=num, dit_fsdp=num > 1, t5_fsdp=num > 1)
    found = cases_of_networks(num)
    return found if ckpt_dir is None else found | {"load 1.3B": (load, sharded, {"ckpt_dir": ckpt_dir})}


def cases_of_networks(num: int) -> dict[str, tuple[Callable[..., Row], Layout, Row]]:
    """The cases that need no files."""
    if num == 1:
        one = Layout(ranks=1)
        return {
            "dit one GPU": (dit, one, {}),
            "dit 1.3B 480P one GPU": (dit, one, {"task": "t2v-1.3B"}),
            "vae decode": (vae, one, {}),
            "vae encode": (vae, one, {"decode": False}),
            "run one GPU": (whole_run, one, {}),
        }
    ulysses = Layout(ranks=num, ulysses=num, dit_fsdp=True, t5_fsdp=True)
    ring = Layout(ranks=num, ring=num, dit_fsdp=True, t5_fsdp=True)
    both = Layout(ranks=num, ulysses=num // 2, ring=2, dit_fsdp=True, t5_fsdp=True)
    replicated = Layout(ranks=num, ulysses=num)
    passes = Layout(ranks=num, ulysses=num // 2, cfg=2)
    passes_sharded = Layout(ranks=num, ulysses=num // 2, cfg=2, dit_fsdp=True, t5_fsdp=True)
    rank0 = Layout(ranks=num, ulysses=num, dit_fsdp=True, t5_fsdp=True, vae="rank0")
    foreign = Layout(ranks=num, ulysses=num, dit_fsdp=True, backend="xfuser")
    foreign_both = Layout(ranks=num, ulysses=num // 2, ring=2, dit_fsdp=True, backend="xfuser")
    return {
        "comm": (comm, ulysses, {}),
        "dit ulysses N, fsdp": (dit, ulysses, {}),
        "dit ring N, fsdp": (dit, ring, {}),
        "dit ulysses N/2 x ring 2, fsdp": (dit, both, {}),
        "dit ulysses N": (dit, replicated, {}),
        "dit cfg 2 x ulysses N/2": (dit, passes, {}),
        "dit cfg 2 x ulysses N/2, fsdp": (dit, passes_sharded, {}),
        "dit 1.3B 480P ulysses N": (dit, replicated, {"task": "t2v-1.3B"}),
        "dit 1.3B 480P cfg 2 x ulysses N/2": (dit, passes, {"task": "t2v-1.3B"}),
        "vae decode split": (vae, ulysses, {}),
        "vae decode split, 2 slabs a rank": (vae, ulysses, {"slabs": 2 * num}),
        "vae encode split": (vae, ulysses, {"decode": False}),
        "run ulysses N, fsdp, split": (whole_run, ulysses, {}),
        "run cfg 2 x ulysses N/2": (whole_run, passes, {}),
        "run cfg 2 x ulysses N/2, fsdp, split": (whole_run, passes_sharded, {}),
        "run ulysses N, fsdp, rank0": (whole_run, rank0, {}),
        "run 1.3B 480P ulysses N": (whole_run, replicated, {"task": "t2v-1.3B"}),
        "agree ulysses N": (agree, ulysses, {}),
        "agree ring N": (agree, ring, {}),
        "agree ulysses N/2 x ring 2": (agree, both, {}),
        "agree cfg 2 x ulysses N/2": (agree, passes, {}),
        "xfuser agree ulysses N": (agree, foreign, {}),
        "xfuser agree ulysses N/2 x ring 2": (agree, foreign_both, {}),
        "xfuser dit ulysses N, fsdp": (dit, foreign, {}),
    }


# ---- one rank ----------------------------------------------------------------------------------------------


def run_case(name: str, ckpt_dir: Path | None) -> None:
    """Run a case as one rank of the process group that torchrun describes; the first rank prints all rows."""
    place = Place.of(os.environ)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    set_defaults(os.environ)
    import torch
    import torch.distributed as dist

    from wan.parallel.group import joined

    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    function, layout, arguments = cases(place.num_ranks, ckpt_dir)[name]
    with joined(place, device):
        rows: list[Row | None] = [None] * place.num_ranks
        row = function(layout, device, **arguments)
        if place.num_ranks > 1:
            dist.all_gather_object(rows, row)
        else:
            rows = [row]
        if place.rank == 0:
            print(RESULT + json.dumps(rows), flush=True)


# ---- all cases ---------------------------------------------------------------------------------------------


def start_case(name: str, num: int, timeout_s: float, ckpt_dir: Path | None) -> list[Row]:
    """The rows of a case, run in `num` fresh processes; none where it failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num),
               str(Path(__file__).resolve()), "--case", name]  # fmt: skip
    command += [] if ckpt_dir is None else ["--ckpt_dir", str(ckpt_dir)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        stdout, stderr = started.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # Terminated, not killed: so torchrun ends its ranks, which would otherwise hold the GPUs of the next case.
        started.terminate()
        started.communicate()
        print(f"{name}: not done after {timeout_s:.0f} s", flush=True)
        return []
    for line in stdout.splitlines():
        if line.startswith(RESULT):
            rows: list[Row] = json.loads(line.removeprefix(RESULT))
            return rows
    print(f"{name}: failed\n{stderr[-3000:]}", flush=True)
    return []


def told(name: str, rows: list[Row]) -> str:
    """A line of the table: the largest value of each column, then the rest of the first rank's row."""
    worst = {column: max(row.get(column, 0.0) for row in rows) for column in COLUMNS}
    used = [row.get("device used", 0.0) for row in rows]
    imbalance = max(used) / (sum(used) / len(used)) if any(used) else 0.0
    values = [*worst.values(), imbalance, rows[0].get("seconds", 0.0)]
    rest = {key: value for key, value in rows[0].items() if key not in (*COLUMNS, "seconds")}
    rest |= {key: sum(row[key] for row in rows) for key in (HOST_BEFORE, HOST_PEAK) if key in rows[0]}
    cells = " | ".join(f"{value:.2f}" if value else "-" for value in values)
    behind = ", ".join(f"{key} {value:.3g}" for key, value in rest.items())
    return f"| {name} | {cells} | {behind} |"


def main() -> None:
    """Run what is asked for and print the table as it grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="cases whose name holds one of them; none: every case")
    parser.add_argument("--gpus", type=int, help="ranks; default: every GPU")
    parser.add_argument("--case", help="one case, on the ranks that torchrun started")
    parser.add_argument("--ckpt_dir", type=Path, help="folder of t2v-1.3B, for load")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--json", type=Path, help="where the rows of every rank are kept")
    parser.add_argument("--timeout_s", type=float, default=300.0, help="of one case")
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.ckpt_dir)
        return
    num = options.gpus or num_gpus()
    names = [
        name
        for name in cases(num, options.ckpt_dir)
        if not options.words or any(word in name for word in options.words)
    ]
    if options.list:
        print("\n".join(names))
        return
    settings = {key: value for key, value in os.environ.items() if key.startswith("NCCL_")}
    print(f"{num} GPUs, NCCL settings {NCCL_DEFAULTS | settings}\n")
    print("| case | " + " | ".join([*COLUMNS, "imbalance", "seconds"]) + " | |")
    print("|---" * (len(COLUMNS) + 4) + "|", flush=True)
    kept = {}
    for name in names:
        if rows := start_case(name, num, options.timeout_s, options.ckpt_dir):
            kept[name] = rows
            print(told(name.replace("N", str(num)), rows), flush=True)
        if options.json:
            options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def num_gpus() -> int:
    """The number of GPUs of this host; at least 1, so that --list works anywhere."""
    import torch

    return max(1, torch.cuda.device_count())


if __name__ == "__main__":
    main()
