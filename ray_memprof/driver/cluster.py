"""Ray, from the driver's side: start or join it, book the places, start the ranks, and leave nothing of ours behind.

    with Cluster(state, live, interrupts) as cluster:
        cluster.start()                       # puts every rank to work in its place; raises a RunError if one cannot
        verdict = watch(cluster.crew, ...)
        cluster.end(verdict)                  # ends every process of a rank

A Ray that we start ourselves is local and private: it ignores RAY_ADDRESS and running clusters. A cluster that was
joined (ray.address) keeps running; only our actors and our placement group are removed from it.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

# Ray reads these when it is imported. They stop its usage reports, let actors without GPUs keep their
# CUDA_VISIBLE_DEVICES, and keep repeated log lines.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray
from ray import exceptions
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_memprof.driver import capacity, node_tasks, own_ray
from ray_memprof.driver.crew import Address, Crew
from ray_memprof.driver.elsewhere import Elsewhere
from ray_memprof.driver.far_runs import NAMESPACE, FarRun
from ray_memprof.driver.interrupts import Interrupted, Interrupts
from ray_memprof.driver.live import Live
from ray_memprof.driver.overview import describe, gaps, with_versions
from ray_memprof.driver.placement import node_names, rank_order, rank_plans
from ray_memprof.driver.ray_errors import in_one_line
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import GpusBusy, NeverArrived, RunError, StartFailed
from ray_memprof.rank.actor import CONTROL, Rank
from ray_memprof.rank.messages import Prepared, RankFacts
from ray_memprof.rank.variables import forwarded
from ray_memprof.recorder.clock import kernel, offset
from ray_memprof.store.run_files import log_name
from ray_memprof.store.transfer import Remote
from ray_memprof.supervision.awake import AwakeClock
from ray_memprof.supervision.verdict import Verdict
from ray_memprof.wording import error_line, first_line, rank_text

OBJECT_STORE_BYTES = 512 * 2**20
"""Size of the object store of our own Ray: plans, beats and chunks of files go through it, tensors do not."""
_POLL_S = 0.2
_SAY_EVERY_S = 10.0
_CONNECT_S = 10.0
_NOT_THERE = (
    "is it running there? `ray status` on that node shows it; leave ray.address out for a Ray of our own"
)
_CLOCK_TRIPS = 7
"""How often a host is asked for its time; the quickest answer counts, and takes well under a millisecond."""
_CLOCK_SAID_NS = 100_000_000
"""Clock offsets below this are corrected without a message."""
_SEAL_S = 2.5
"""Time for the ranks to write their open records, and for scripts to end by SIGTERM, before they are killed; mostly
it takes milliseconds. Earlier records are on disk already."""


class Cluster:
    """Ray and the ranks of one run, as a context manager."""

    def __init__(self, state: RunState, live: Live, interrupts: Interrupts) -> None:
        self._state, self.config, self._live, self._interrupts = state, state.config, live, interrupts
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self.facts: list[RankFacts] = []
        """Facts of the actors; in rank order from the moment that the ranks are assigned."""
        self.prepared: list[Prepared] = []
        self.nodes: list[str] = []
        """The node of each rank, by name."""
        self.crew = Crew([], live.say)

    def __enter__(self) -> "Cluster":
        return self

    def start(self) -> None:
        """Bring every rank to where it can run, and set all of them to work."""
        timeouts = self.config.ray.timeouts
        with self._live.stage("ray"):
            self._connect()
            capacity.check_capacity(self.config, _totals())
        with self._live.stage("places"):
            self._book(timeouts.start_s)
        with self._live.stage("actors"):
            self._actors = self._start_actors()
            facts = self._all("describe", [() for _ in self._actors])
            order = rank_order(facts)
            self._actors, self.facts = [self._actors[i] for i in order], [facts[i] for i in order]
            self.nodes = node_names(self.facts)
        self._state.facts = self.facts
        folder = self._state.folder
        self._state.clock_offsets_ns = self._clock_offsets()
        plans = [
            replace(plan, clock_offset_ns=self._state.clock_offsets_ns[plan.rank])
            for plan in rank_plans(self.facts, self.config, folder.run_id, folder.path, forwarded(os.environ))
        ]
        with self._live.stage("torch"):
            self.prepared = self._all("prepare", [(plan,) for plan in plans])
        self._state.facts = [
            one if ready.process is None else replace(one, pid=ready.process[0], started=ready.process[1])
            for one, ready in zip(self.facts, self.prepared, strict=True)
        ]
        checks = with_versions(self.facts, self.prepared)
        self._state.environment, self._state.checks = self.prepared[0].environment, dict(checks[0])
        self._state.problems += gaps(checks)
        self._state.elsewhere = self.elsewhere()
        self._state.note()
        self._live.say(describe(list(zip(self.facts, checks, strict=True))))
        self._say_folders()
        address = self._all("open_store", [()])[0]
        first = self.prepared[0]
        log = first.run_dir / log_name(0) if first.shared else None
        self.crew = Crew(self._actors, self._live.say, log, self._raylets())
        self.crew.run(address)

    def _raylets(self) -> dict[int, Address]:
        """The raylet's address for each rank that is on another node than this process."""
        addresses = {
            node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes()
        }
        ours = ray.get_runtime_context().get_node_id()
        return {rank: addresses[one.node_id] for rank, one in enumerate(self.facts) if one.node_id != ours}

    def _clock_offsets(self) -> dict[int, int]:
        """How far each rank's clock is ahead of ours, in ns; all ranks under one kernel share a clock."""
        offsets: dict[int, int] = {}
        known = {kernel() or ray.get_runtime_context().get_node_id(): 0}
        for rank, (one, actor) in enumerate(zip(self.facts, self._actors, strict=True)):
            host = one.kernel or one.node_id
            if host not in known:
                known[host] = self._clock_offset(rank, actor)
            offsets[rank] = known[host]
        return offsets

    def _clock_offset(self, rank: int, actor: Any) -> int:
        limit_s = self.config.ray.timeouts.init_s

        def ask() -> int:
            self._check_interrupts()
            with _explained(rank, ranked=True):
                return int(ray.get(actor.now_ns.remote(), timeout=limit_s))

        found = offset(self._state.clock, ask, _CLOCK_TRIPS)
        if abs(found.ns) > max(_CLOCK_SAID_NS, found.error_ns):
            self._live.say(
                f"  the clock of {self.nodes[rank]} is {found.ns / 1e9:+.3f} s (within {found.error_ns / 1e6:.1f} ms) "
                "ahead of this host's; this is subtracted from its times"
            )
        return found.ns

    @property
    def home(self) -> str:
        """Name of the node that this process runs on; "" if no rank is on it."""
        ours = ray.get_runtime_context().get_node_id()
        return next(
            (name for name, one in zip(self.nodes, self.facts, strict=True) if one.node_id == ours), ""
        )

    def _connect(self) -> None:
        config = self.config.ray
        own: dict[str, Any] = {}
        if config.address is None:
            # This number is only Ray's bookkeeping: on a small host four ranks may share two cores.
            num_cpus = max(os.cpu_count() or 1, config.cpus_per_rank * self.config.num_ranks)
            own = {
                "num_cpus": num_cpus,
                "num_gpus": config.num_gpus,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        own_ray.stay_on_loopback(config.address is None)
        folder = own_ray.temp_dir() if config.address is None else None
        try:
            if config.address not in (None, "auto"):
                _check_listens(config.address)
            # Each rank writes its own log. Lines that Ray forwards would be shortened, and mixed between ranks.
            ray.init(
                address=config.address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=folder,
                **own,
            )
        except SystemExit as error:
            # ray.init has replaced our SIGTERM handler by its own, which raises SystemExit.
            raise Interrupted(signal.SIGTERM) from error
        except (
            Exception
        ) as error:  # any class: if a process of Ray does not start, Ray raises a bare Exception
            where = f"ray.address {config.address}" if config.address else "a Ray of our own"
            verb = "reached" if config.address else "started"
            reason = f"{where} could not be {verb}: {in_one_line(error)}"
            raise StartFailed(reason, hint=_ray_hint(config.address, own_ray.logs(folder))) from error
        # ray.init has replaced our SIGTERM handler by its own.
        self._interrupts.install()

    def _book(self, start_s: float) -> None:
        """Book a place for every rank, and wait until Ray has given us all of them."""
        ray_config = self.config.ray
        self._group = placement_group(
            [capacity.wanted(self.config)] * self.config.num_ranks, strategy=ray_config.placement.upper()
        )
        clock = AwakeClock(time.monotonic)
        began = said = clock()
        while not self._group.wait(_POLL_S):
            self._check_interrupts()
            now = clock()
            short = capacity.shortage(self.config, ray.available_resources()) or "a place for all ranks"
            if now - began >= start_s:
                raise GpusBusy(
                    f"waited {start_s:g} s for {short}: others hold them",
                    hint="end the other job, or raise ray.timeouts.start_s",
                )
            if now - said >= _SAY_EVERY_S:
                said = now
                self._live.say(f"  {self.config.name} waits for {short} ({now - began:.0f} of {start_s:g} s)")

    def _start_actors(self) -> list[Any]:
        assert self._group is not None
        # Ray's type annotations of remote() leave out the options of actors.
        remote: Any = ray.remote
        actor = remote(concurrency_groups=CONTROL, max_restarts=0, max_task_retries=0)(Rank)
        booked = capacity.wanted(self.config)
        actors = []
        for bundle in range(self.config.num_ranks):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
            # Exactly what the bundle holds, also if that is 0 CPUs: the default of an actor differs.
            options = actor.options(
                num_cpus=booked.get("CPU", 0),
                num_gpus=booked.get("GPU", 0),
                scheduling_strategy=place,
                **({} if bundle else self._announced()),
            )
            actors.append(options.remote())
        return actors

    def _announced(self) -> dict[str, str]:
        """What lets `ray-memprof watch` find this run from any node of a joined cluster: the name of one actor."""
        if self.config.ray.address is None:
            return {}
        here = FarRun(ray.get_runtime_context().get_node_id(), self._state.folder.path.resolve())
        return {"name": here.name, "namespace": NAMESPACE}

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `method` on the first actors, one tuple of arguments each; raises if one fails or does not answer."""
        # If this process itself was stopped for a while (SIGSTOP), that time does not count against the actors.
        clock = AwakeClock(time.monotonic)
        until = clock() + (limit_s := self.config.ray.timeouts.init_s)
        refs = [
            getattr(actor, method).remote(*given)
            for actor, given in zip(self._actors, arguments, strict=False)
        ]
        pending = list(refs)
        while pending:
            ready, pending = ray.wait(pending, timeout=_POLL_S)
            for ref in ready:
                with _explained(refs.index(ref), ranked=bool(self.nodes)):
                    ray.get(ref)
            self._check_interrupts()
            if pending and clock() >= until:
                missing = [refs.index(ref) for ref in pending]
                who = rank_text(missing) if self.nodes else f"{len(missing)} of {len(refs)} actors"
                raise NeverArrived(
                    f"waiting for {who}: no answer to {method}() within {limit_s:g} s",
                    hint="a slow disk or a busy host: raise ray.timeouts.init_s",
                )
        return list(ray.get(refs))

    def _check_interrupts(self) -> None:
        if self._interrupts.signal:
            raise Interrupted(self._interrupts.signal)

    def _say_folders(self) -> None:
        """Say which nodes do not write into the run folder, so that people know where the files are until the end."""
        far = {self.nodes[rank]: one.run_dir for rank, one in enumerate(self.prepared) if not one.shared}
        for node, folder in far.items():
            self._live.say(f"  {node} writes to {folder}; its files are collected through Ray at the end")

    def end(self, verdict: Verdict) -> list[str]:
        """End every rank; returns a line for every process that could not be ended."""
        if verdict.status != "ok":
            self.crew.seal(_SEAL_S)
        self._kill()
        lost = self._lost_nodes(verdict)
        problems = []
        for node_id in dict.fromkeys(one.node_id for one in self.facts if one.node_id not in lost):
            here = [rank for rank, one in enumerate(self.facts) if one.node_id == node_id]
            processes = [(rank, self.facts[rank].pid, self.facts[rank].started) for rank in here]
            # Those of scripts: the kernel ends them with their actors.
            processes += [
                (rank, *process) for rank in here if (process := self._process_of_script(rank)) is not None
            ]
            ranks = {pid: rank for rank, pid, _ in processes}
            started = {pid: when for _, pid, when in processes}
            left = node_tasks.end_processes(started, node_id, wait_s=self.config.ray.timeouts.stop_s)
            problems += [
                f"rank {ranks[pid]}: process {pid} on {self.nodes[ranks[pid]]} does not end, not even by SIGKILL; "
                "its GPU memory stays in use"
                for pid in left
            ]
        return problems

    def _process_of_script(self, rank: int) -> tuple[int, int] | None:
        return self.prepared[rank].process if self.prepared else None

    def _kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []

    def remotes(self, verdict: Verdict) -> list[Remote]:
        """The folders of nodes that do not share the run folder; a file is sent only when its chunks are read."""
        lost = self._lost_nodes(verdict)
        limit_s = self.config.ray.timeouts.collect_s
        return [one.remote(node_id, limit_s=limit_s, is_lost=node_id in lost) for node_id, one in self._far()]

    def clear(self, received: Collection[int]) -> list[str]:
        """Remove from other nodes the files that have been collected; returns a line for each that stays there."""
        limit_s = self.config.ray.timeouts.collect_s
        return [
            line for node_id, one in self._far() if (line := one.clear(node_id, received, limit_s=limit_s))
        ]

    def elsewhere(self, received: Collection[int] = ()) -> list[Elsewhere]:
        """The folders on other nodes that hold records of ranks, unless `received` names all their ranks."""
        return [one for _, one in self._far() if not set(one.ranks) <= set(received)]

    def _far(self) -> list[tuple[str, Elsewhere]]:
        """The folders that are not the run folder, each with the id of its node."""
        far: dict[tuple[str, Path], list[int]] = {}
        for rank, ready in enumerate(self.prepared):
            if not ready.shared:
                far.setdefault((self.facts[rank].node_id, ready.run_dir), []).append(rank)
        return [
            (
                node_id,
                Elsewhere(
                    host=self.facts[ranks[0]].host,
                    node=self.nodes[ranks[0]],
                    node_ip=self.facts[ranks[0]].node_ip,
                    folder=folder,
                    ranks=tuple(ranks),
                ),
            )
            for (node_id, folder), ranks in far.items()
        ]

    def _lost_nodes(self, verdict: Verdict) -> set[str]:
        return {self.facts[rank].node_id for rank in verdict.ranks} if verdict.status == "lost" else set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not ray.is_initialized():
            return
        self._kill()
        if self._group is not None:
            remove_placement_group(self._group)
        ray.shutdown()


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """Join a Ray that runs already, to ask its nodes after a run; raises StartFailed if it cannot be reached."""
    try:
        if address != "auto":
            _check_listens(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise StartFailed(
            f"Ray at {address} could not be reached: {first_line(error)}", hint=_NOT_THERE
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Raise OSError if nobody listens at `address`: Ray itself would try for minutes, and log every attempt."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
        pass


def _totals() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _explained(number: int, *, ranked: bool) -> Iterator[None]:
    """Turn an error that Ray raises for an actor into a StartFailed, or into the actor's own RunError."""
    who = f"rank {number}" if ranked else f"actor {number}"
    try:
        yield
    except exceptions.RayTaskError as error:
        # The text of a RayTaskError is a whole traceback; our error says it in one line, with a hint.
        if isinstance(error.cause, RunError):
            raise error.cause from None
        raise StartFailed(f"{who} could not be set up: {_cause(error)}", hint=_setup_hint(error)) from error
    except exceptions.RayError as error:
        raise StartFailed(f"{who} could not be started: {_cause(error)}", hint=_setup_hint(error)) from error


def _cause(error: Exception) -> str:
    """The innermost reason: the error that Ray wrapped, else the last line of Ray's text that names an error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return error_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if "Error" in line.partition(":")[0]), lines[0] if lines else ""
    )


def _setup_hint(error: Exception) -> str:
    if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
        return "every node needs this package and what it imports, in the Python that its Ray runs with"
    return "Ray's own logs are in session_latest/logs of its folder on that node: /tmp/ray, or that of our own Ray"


def _ray_hint(address: str | None, logs: Path) -> str:
    if address is None:
        said = own_ray.last_words(logs)
        return f"{f'Ray said: {said}; its' if said else 'its'} logs are in {logs}"
    return _NOT_THERE
