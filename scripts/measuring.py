"""What the benchmarks share: peaks while a block runs, timed calls on a GPU, a case in a process of its own.

    with peaks(proc_bytes) as most:         # of this process, by the kernel's names; Linux
        work()
    print(most["VmRSS"])

torch is imported only where a GPU is measured: elsewhere it would be part of what is measured.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan.levers import Levers, LoadStrategy, Precision, WeightsDtype

SAMPLE_EVERY_S = 0.002


@contextmanager
def peaks(
    read: Callable[..., dict[str, int]], *arguments: Any, every_s: float = SAMPLE_EVERY_S
) -> Iterator[dict[str, int]]:
    """The highest of each figure of `read(*arguments)`: at both ends of the block, and sampled by a thread inside."""
    highest, done = read(*arguments), threading.Event()

    def sample() -> None:
        for name, figure in read(*arguments).items():
            highest[name] = max(highest[name], figure)

    def watch() -> None:
        while not done.wait(every_s):
            sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()
        sample()


def proc_bytes(file: str = "status") -> dict[str, int]:
    """Every size that the kernel tells of this process in a file of /proc/self, in bytes, by its name there.

    `status` has resident memory (VmRSS; RssAnon is its own, RssFile pages of files) and its highest since the process
    began (VmHWM; getrusage would count what the process that started it had). `smaps_rollup` has Pss, but walks every
    page: 0.1 s and the address space locked, for a process that holds a network.
    """
    lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    sizes = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in sizes}


def device_bytes(device: Any = None) -> dict[str, int]:
    """The bytes now in use on the device (None: the current one), by any process, as in "device used"."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {"device used": total - free}


def measure_on_gpu(
    call: Callable[[], object],
    num_timed: int,
    device: Any = None,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[int, int, float]:
    """Peaks over a warm-up and `num_timed` timed calls; `prepare` runs before each of them, untimed.

    Returns bytes allocated before the first call, the peak of bytes in use on the device, and the median of the timed
    calls in seconds. torch's own peaks are those of the calls too.
    """
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    weights, seconds = torch.cuda.memory_allocated(), []
    with peaks(device_bytes, device) as most:
        for _ in range(1 + num_timed):
            prepare()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return weights, most["device used"], statistics.median(seconds[1:])


def random_dit(
    task: str,
    levers: "Levers",
    *,
    precision: "Precision" = "bf16",
    weights_dtype: "WeightsDtype" = "precision",
    device: str = "cuda",
    strategy: "LoadStrategy" = "block",
    num_blocks: int | None = None,
) -> Any:
    """The DiT of a task, or its first blocks, with random weights, as a component that is not loaded yet."""
    import torch

    from wan.components import Components
    from wan.config import TASKS
    from wan.networks.dtypes import DTYPES

    whole = TASKS[task]
    num_layers = whole.dit.num_layers if num_blocks is None else min(num_blocks, whole.dit.num_layers)
    part = replace(whole, dit=replace(whole.dit, num_layers=num_layers))
    made = Components(
        part, ckpt_dir=None, device=torch.device(device), strategy=strategy, offload=True, seed=0
    )
    return made.dit(levers, DTYPES[precision], weights_dtype)


def in_process(script: str, *arguments: object) -> dict[str, Any]:
    """What `script` prints as JSON when it is called with these arguments, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures
