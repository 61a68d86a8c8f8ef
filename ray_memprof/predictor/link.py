"""Two GPUs of this machine: how fast one sends to the other by NCCL, and what NCCL takes of each.

found = measured_link()           # {"link_bytes_per_s": 3e11, "nccl_communicator_bytes": ..., "nccl_rings_bytes": ...}

Two processes, as NCCL wants it, with NCCL's settings of a launch.
"""

import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

_SENT_BYTES = 256 * 2**20
_NUM_SMALL = 200
"""Exchanges of one byte, one after the other: what each takes, bytes apart."""
_LIMIT_S = 100.0


def measured_link() -> dict[str, Any]:
    """What the first of two GPUs finds, by the names of the profile's keys.

    Raises:
        RuntimeError: NCCL could not be used.
        TimeoutError: it did not end in time.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(_rank, rank, port) for rank in range(2)]
        return [one.result(timeout=_LIMIT_S) for one in ranks][0]


def _rank(rank: int, port: int) -> dict[str, Any]:
    from wan.parallel.environment import set_defaults

    set_defaults(os.environ)
    import torch
    import torch.distributed as dist

    from ray_memprof.predictor.rates import Stopwatch
    from ray_memprof.predictor.takes import TorchGpu, grown

    with TorchGpu.opened(rank) as gpu:
        gpu.make_context()
        gpu.run_kernel()
        small, sent, received = (
            torch.zeros(size, dtype=torch.uint8, device="cuda") for size in (1, _SENT_BYTES, _SENT_BYTES)
        )

        def join() -> None:
            dist.init_process_group(
                "nccl",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=rank,
                world_size=2,
                timeout=timedelta(seconds=_LIMIT_S),
                device_id=torch.device("cuda", rank),
            )

        def pass_on() -> None:
            peer = 1 - rank
            batch = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
            for work in dist.batch_isend_irecv(batch):
                work.wait()

        found: dict[str, Any] = grown(
            gpu, {"nccl_communicator_bytes": join, "nccl_rings_bytes": lambda: dist.all_reduce(small)}
        )
        # The number of times must be the same on both ranks: so no budget of time.
        stopwatch = Stopwatch(torch.cuda.synchronize, budget_s=0.0)
        seconds = stopwatch.seconds(pass_on)
        many = stopwatch.seconds(lambda: [dist.all_reduce(small) for _ in range(_NUM_SMALL)])
        dist.destroy_process_group()
    return found | {
        "link_bytes_per_s": _SENT_BYTES / seconds,
        "exchange_ns": int(many / _NUM_SMALL * 1e9),
    }
