"""All-reduces in a loop under spans, as a workload does; a fault, if one is asked for, strikes one rank on the way.

    loop.py [--steps N] [--fault KIND --at-rank R --at-step S --rest SECONDS] [--marker FOLDER] [--talk] [--device cuda]

Faults: sigkill, segv, exit, oom, error, hoard, sleep, gil, sigstop, child (see strike); never: the rank does not join;
late: it joins after LATE_S of work; renamed: as sigstop, and it calls itself something else before;
listener: ranks other than 0 look for the store at a port where --silent-port listens and says nothing. On a GPU each
rank holds 8 GiB, so that one sees when they are free again, and oom is torch's own.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from ray_memprof.recorder.spans import span

HOARD_CHUNKS, HOARD_CHUNK_BYTES = 64, 64 * 2**20
"""4 GiB in 3 s: more than the threshold of the test leaves, and not more than a small host has."""
CHILD_S, LATE_S = 9.0, 14.0
"""Longer than the limits of the tests that ask for them, a standstill of 4 s and a start of 10 s."""
DEVICE_BYTES = 8 * 2**30


def strike(kind: str, fill: Path, device: torch.device) -> None:
    """Do to this process what `kind` says."""
    if kind in ("sigkill", "sigstop"):
        os.kill(os.getpid(), {"sigkill": signal.SIGKILL, "sigstop": signal.SIGSTOP}[kind])
    elif kind == "segv":
        ctypes.string_at(0)
    elif kind == "exit":
        os._exit(17)
    elif kind == "oom" and device.type == "cuda":
        torch.empty(2**42, dtype=torch.uint8, device=device)
    elif kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nMore.")
    elif kind == "error":
        raise ValueError("a wrong number: 42")
    elif kind == "sleep":
        time.sleep(3600)
    elif kind == "child":
        burn = f"import time\nuntil = time.monotonic() + {CHILD_S}\nwhile time.monotonic() < until: pass"
        subprocess.run([sys.executable, "-c", burn], check=True)
    elif kind == "renamed":
        Path("/proc/self/comm").write_text("train")
        ctypes.CDLL(None).prctl(15, b"train", 0, 0, 0)
        _rename_command_line()
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "gil":
        ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the GIL
    elif kind == "fill":
        with contextlib.suppress(OSError), open(fill / "filler", "wb", buffering=0) as file:
            while file.write(bytes(2**20)):
                pass
    elif kind == "hoard":
        hoard = []
        for _ in range(HOARD_CHUNKS):
            hoard.append(b"x" * HOARD_CHUNK_BYTES)
            time.sleep(0.05)
        time.sleep(3600)


def _rename_command_line() -> None:
    """As setproctitle does it: what `ps` shows is the memory that held the arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, b"train", 5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fault", default="")
    parser.add_argument("--at-rank", type=int, default=-1, help="default: the last")
    parser.add_argument("--at-step", type=int, default=3)
    parser.add_argument(
        "--rest", type=float, default=0.0, help="seconds to stand still before the fault strikes"
    )
    parser.add_argument(
        "--marker", type=Path, help="folder where each rank leaves its pid, and when the fault struck"
    )
    parser.add_argument("--fill", type=Path, default=Path())
    parser.add_argument("--talk", action="store_true", help="a line each step")
    parser.add_argument("--silent-port", default="")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if options.marker:
        written = options.marker / f"{rank}.tmp"
        written.write_text(str(os.getpid()))
        written.rename(options.marker / f"rank{rank}.pid")  # whole from the first moment on
        (options.marker / f"rank{rank}.json").write_text(json.dumps(dict(os.environ)))
    at_rank = options.at_rank % world_size
    if options.fault == "never" and rank == at_rank:
        time.sleep(3600)
    if options.fault == "late" and rank == at_rank:
        until = time.monotonic() + LATE_S
        while time.monotonic() < until:
            sum(range(100_000))
    if options.fault == "listener" and rank != 0:
        os.environ["MASTER_PORT"] = options.silent_port
    device, backend, held = torch.device("cpu"), "gloo", 0
    if options.device == "cuda":
        device, backend, held = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "nccl", DEVICE_BYTES
        torch.cuda.set_device(device)
    hoard = torch.empty(held, dtype=torch.uint8, device=device)
    distributed.init_process_group(backend, timeout=timedelta(seconds=600))
    assert (distributed.get_rank(), distributed.get_world_size()) == (rank, world_size)
    print(f"rank {rank} of {world_size} runs", flush=True)
    for step in range(options.steps):
        with span("denoise", step=step):
            if options.fault and (rank, step) == (at_rank, options.at_step):
                time.sleep(options.rest)
                if options.marker:
                    (options.marker / "struck").write_text(repr(time.time()))
                strike(options.fault, options.fill, device)
            if options.talk:
                print(f"step {step} " + "." * 200, flush=True)
            values = torch.ones(1024, device=device) * rank
            distributed.all_reduce(values)
            assert values[0].item() == world_size * (world_size - 1) / 2
            time.sleep(0.02)
    distributed.destroy_process_group()
    del hoard
    print("done", file=sys.stderr)


if __name__ == "__main__":
    main()
