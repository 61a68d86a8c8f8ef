"""Tasks on a node after its ranks have ended: end leftover processes, send the files of the ranks, remove the files.

    still_there = end_processes({pid: started}, node_id, wait_s=10)
    Remote(where=..., ranks=(4, 5), chunks=chunks(node_id, folder, (4, 5), limit_s=120))
    remove(node_id, folder, (4, 5), limit_s=120)           # "", or why a file could not be removed

The tasks book no CPU, so they start even if every CPU and GPU is booked. They are pinned to the node.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_memprof.store import transfer
from ray_memprof.store.processes import is_alive
from ray_memprof.store.transfer import Chunk, TransportError
from ray_memprof.wording import first_line

_POLL_S = 0.05
_START_S = 10.0
"""Time for a task to start if Ray has no idle worker on that node."""
_WAITING_CHUNKS = 4
"""How many chunks a node may send before the driver reads them; it limits what the object store holds."""


def nodes_by_address() -> dict[str, str]:
    """Ray's id of every living node, by address: a node that is started again has a new id at its old address."""
    return {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}


def end_processes(started: Mapping[int, int], node_id: str, *, wait_s: float) -> list[int]:
    """Wait until processes on a node have ended, then kill the rest; returns the pids that live even after that.

    Args:
        started: when each process started, by pid; see processes.started.
        node_id: Ray's id of the node that the processes are on.
        wait_s: how long the processes may take to end by themselves.
    """
    if node_id == ray.get_runtime_context().get_node_id():
        return _end(started, wait_s)
    task = ray.remote(num_cpus=0, max_retries=0)(_end)
    ref = task.options(scheduling_strategy=pinned(node_id)).remote(started, wait_s)
    try:
        gone: list[int] = ray.get(ref, timeout=wait_s + _START_S)
    except exceptions.RayError:  # the node is gone, and its processes with it
        return []
    return gone


def _end(started: Mapping[int, int], wait_s: float) -> list[int]:
    left = _wait(started, wait_s)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return _wait({pid: started[pid] for pid in left}, 1.0)


def _wait(started: Mapping[int, int], wait_s: float) -> list[int]:
    until = time.monotonic() + wait_s
    while (
        left := [pid for pid, when in started.items() if is_alive(pid, when)]
    ) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return left


def chunks(node_id: str, folder: Path, ranks: Sequence[int], *, limit_s: float) -> Iterator[Chunk]:
    """What transfer.send() yields on that node; raises TransportError if it stops before the end."""
    until = time.monotonic() + limit_s
    task = ray.remote(num_cpus=0, max_retries=0)(_send)
    stream: Any = task.options(
        num_returns="streaming",
        scheduling_strategy=pinned(node_id),
        _generator_backpressure_num_objects=_WAITING_CHUNKS,
    ).remote(folder, tuple(ranks))
    while True:
        ready, _ = ray.wait([stream], timeout=max(0.0, until - time.monotonic()))
        if not ready:
            raise TransportError(f"nothing more within {limit_s:g} s (ray.timeouts.collect_s)")
        try:
            chunk: Chunk = ray.get(next(stream))
        except StopIteration:
            return
        except exceptions.RayError as error:
            raise TransportError(first_line(error)) from error
        yield chunk


def unreachable() -> Iterator[Chunk]:
    """Used instead of chunks() if the node is lost: Ray may need half a minute more to notice the loss."""
    raise TransportError("the node is lost")
    yield  # makes this a generator, so that the error is raised where the chunks are read


def _send(folder: Path, ranks: tuple[int, ...]) -> Iterator[Chunk]:
    yield from transfer.send(folder, ranks)


def remove(node_id: str, folder: Path, ranks: Sequence[int], *, limit_s: float) -> str:
    """Remove what these ranks wrote on that node; returns why that failed, or ""."""
    task = ray.remote(num_cpus=0, max_retries=0)(_remove)
    ref = task.options(scheduling_strategy=pinned(node_id)).remote(folder, tuple(ranks))
    try:
        reason: str = ray.get(ref, timeout=limit_s)
    except exceptions.RayError as error:  # also raised if the time limit has passed
        return first_line(error)
    return reason


def _remove(folder: Path, ranks: tuple[int, ...]) -> str:
    try:
        transfer.remove(folder, ranks)
    except OSError as error:
        return str(error)
    return ""


def pinned(node_id: str) -> NodeAffinitySchedulingStrategy:
    """On this node, and on no other."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)
