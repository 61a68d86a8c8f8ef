"""One rank: an actor that runs the workload on one thread and answers questions about it on others.

    facts = describe() -> prepare(plan) -> open_store() on rank 0 -> run(address) -> Outcome

beat(), where(), said() and stop() are answered while run() is busy. Leaves logs/rankN.log and what the recorder seals.
A workload that fails is an Outcome, sealed first; only the death of the process is an exception for the driver.
"""

import dataclasses
import errno
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray

from ray_memprof.rank import environment
from ray_memprof.rank.log import CLOSED, dump_flight_record, lines_since, open_log
from ray_memprof.rank.messages import Outcome, RankFacts, RankPlan, Whereabouts
from ray_memprof.rank.network import explained, interface_of
from ray_memprof.rank.outcome import outcome_of
from ray_memprof.rank.work import Work
from ray_memprof.recorder.clock import Clock, kernel
from ray_memprof.recorder.collectives import joined
from ray_memprof.recorder.status import Beat
from ray_memprof.recorder.thread_watch import MEETING, Moves, is_meeting
from ray_memprof.store.processes import started

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder

CONTROL = {"control": 2}
"""Threads that answer while run() is busy: a question that hangs leaves one for the next."""
_BACKLOG = 2048
"""Ranks that may knock at the store at once: torch's own number."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a rank answers once it is ready to run."""

    run_dir: Path
    """Where it writes: the run folder, or a folder of its node where that one is out of reach."""
    shared: bool
    """Whether that is the run folder itself."""
    environment: dict[str, str]
    checks: dict[str, Any]
    """From checks.check_rank: versions of what this rank imports, and so on."""


class Rank:
    """The actor; made by cluster.py with ray.remote, so that this class itself stays a plain one."""

    def __init__(self) -> None:
        self._plan: RankPlan | None = None
        self._store: Any = None  # the TCPStore of rank 0: gone with this object, so it is held
        self._recorder: Recorder | None = None
        self._thread = 0  # that runs the workload; 0: not begun
        self._log: Path | None = None
        self._end_of_talk: int | None = None  # byte of the log from which on it holds a traceback
        self._moves = Moves()
        self._children, self._own = Work(), Work(cpu_s=time.process_time)
        self._clock = Clock()

    def describe(self) -> RankFacts:
        """Where this actor is."""
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        return RankFacts(
            node_id=context.get_node_id(),
            host=socket.gethostname(),
            node_ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            started=started(os.getpid()),
            kernel=kernel(),
            **_gpu(devices[0] if devices else ""),
        )

    @ray.method(concurrency_group="control")
    def now_ns(self) -> int:
        """The time of its host's clock; the driver asks how far that is ahead of its own."""
        return self._clock.now_ns()

    def prepare(self, plan: RankPlan) -> Prepared:
        """Take a place: log, environment, checks, and the import of torch, which takes seconds."""
        plan, shared = _with_folder(plan)
        self._plan, self._log = plan, open_log(plan)
        variables = environment.rank_environment(
            plan,
            os.environ,
            num_cores=len(os.sched_getaffinity(os.getpid())),
            interface=interface_of(plan.facts.node_ip),
        )
        os.environ.update(variables)
        import torch  # noqa: F401 - after the environment is set, and here, so that its seconds are not the first span's

        from ray_memprof.rank.checks import check_rank

        checks = check_rank(plan)
        return Prepared(
            run_dir=plan.run_dir,
            shared=shared,
            environment=environment.in_force(os.environ) | environment.shown(variables),
            checks=checks,
        )

    def open_store(self) -> tuple[str, int]:
        """Listen on a port that the system picks, and keep it: between picking and using it nobody can take it."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch exports it without saying so

        plan = self._prepared()
        # torch itself would listen on every interface. The store keeps the socket, and closes it.
        listener = _listener(plan.master_addr)
        host, port = listener.getsockname()[:2]
        # multi_tenant: torch's own rendezvous asks for the same, and reuses this server.
        self._store = TCPStore(
            host,
            port,
            plan.world_size,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
        return plan.master_addr, port

    def run(self, address: tuple[str, int]) -> Outcome:
        """Run the workload to its end, or to the Outcome that says why there is none."""
        host, port = address
        plan = dataclasses.replace(self._prepared(), master_addr=host, master_port=port)
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
        self._thread = threading.get_ident()
        try:
            return self._run(plan)
        finally:
            self._thread = 0
            with suppress(*CLOSED):
                sys.stdout.flush()

    def _run(self, plan: RankPlan) -> Outcome:
        from ray_memprof.recorder import recorder
        from ray_memprof.workload import dispatch

        outcome = Outcome(rank=plan.rank, status="ok")
        try:
            with recorder.recording(plan.recording, self._clock) as self._recorder:
                try:
                    dispatch.run(
                        plan.config, plan.place, self._recorder, device=plan.device, run_dir=plan.run_dir
                    )
                except BaseException as error:  # noqa: B036 - SystemExit of a script too; what it means is told below
                    outcome = outcome_of(
                        error,
                        plan.rank,
                        self._recorder.failure(),
                        free_bytes=_free_bytes(plan, self._recorder),
                    )
                    if outcome.status != "ok":
                        self._print_traceback()
        except BaseException as error:  # noqa: B036 - the recorder's own end, a full disk above all
            self._print_traceback()
            if outcome.status == "ok":
                outcome = outcome_of(error, plan.rank, None)
        done = self._recorder
        return dataclasses.replace(
            explained(outcome, plan, os.environ),
            check=None if done is None else done.check(),
            problems=() if done is None else done.problems,
            environment=environment.in_force(os.environ),
        )

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Where the workload is; grows in `sequence` while it gets on."""
        frame = self._frame()
        moves = self._moves.look(frame)
        moves += self._children.look(moves)
        moves += self._own.look(moves) if self._is_alone() else self._own.num_found
        if self._recorder is None:
            return _first_beat(self._plan, moves)
        beat = self._recorder.beat()
        meeting = is_meeting(frame) and MEETING not in beat.path
        path = f"{beat.path}/{MEETING}".lstrip("/") if meeting else beat.path
        return dataclasses.replace(beat, path=path, sequence=beat.sequence + moves)

    @ray.method(concurrency_group="control")
    def where(self) -> Whereabouts:
        """Where the thread is that runs the workload; leaves the flight record of NCCL beside the log."""
        frame = self._frame()
        if frame is None:
            return Whereabouts(stack="not running\n")
        stack = "".join(traceback.format_stack(frame))
        # On a thread of its own: it may take longer than the asker waits, and find the disk full.
        threading.Thread(target=dump_flight_record, args=(self._prepared(),), daemon=True).start()
        return Whereabouts(stack=stack, joined=joined())

    @ray.method(concurrency_group="control")
    def said(self, offset: int, whole: bool = True) -> tuple[int, str]:
        """What came into the log since byte `offset`, in `whole` lines only, and where to go on."""
        if self._log is None:
            return offset, ""
        return lines_since(self._log, offset, self._end_of_talk, whole=whole)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Seal what is open: the process is about to be killed."""
        if self._recorder is not None:
            self._recorder.seal()

    def _print_traceback(self) -> None:
        """Into the log alone: on the console a line says what happened, and where the log is."""
        with suppress(*CLOSED):
            sys.stdout.flush()
            sys.stderr.flush()
        if self._log is not None and self._end_of_talk is None:
            self._end_of_talk = self._log.stat().st_size
        with suppress(*CLOSED):
            traceback.print_exc()

    def _is_alone(self) -> bool:
        """Whether others still wait for this rank to join them."""
        torch_distributed = sys.modules.get("torch.distributed")
        is_one_of_many = self._thread != 0 and self._prepared().world_size > 1
        return is_one_of_many and not getattr(torch_distributed, "is_initialized", bool)()

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread)

    def _prepared(self) -> RankPlan:
        assert self._plan is not None, "prepare() comes first"
        return self._plan


def _listener(address: str) -> socket.socket:
    """A socket that listens on `address` alone, at a port that the system picks."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        # Ray may know a host by an address that is translated on the way to it.
        sys.stderr.write(
            f"{address} is no address of this host: the rendezvous store listens on all it has\n"
        )
        return socket.create_server(("", 0), backlog=_BACKLOG)


def _free_bytes(plan: RankPlan, recorder: "Recorder") -> int | None:
    """On the device, when an error left the innermost span; None: not known."""
    total, used = plan.facts.device_total_bytes, recorder.device_used_at_failure()
    return None if not total or used is None else max(0, total - used)


def _first_beat(plan: RankPlan | None, sequence: int) -> Beat:
    return Beat(
        rank=-1 if plan is None else plan.rank,
        sequence=sequence,
        path="",
        stage="",
        step=-1,
        num_steps=-1,
        allocated_bytes=0,
        reserved_bytes=0,
        device_used_bytes=0,
    )


def _gpu(name: str) -> dict[str, Any]:
    """What is known of the GPU that Ray calls `name`: an index, a UUID, or "" for none."""
    from ray_memprof.recorder.meters.nvml import open_device

    index = int(name) if name.isdigit() else -1
    found: dict[str, Any] = {"gpu_index": index, "visible_device": name}
    if not name:
        return found
    with open_device(uuid="" if name.isdigit() else name, index=index) as device:
        if device is None:  # a GPU that only Ray believes in: ray.num_gpus on a host without any
            return found
        return found | {
            "gpu_index": device.index(),
            "gpu_uuid": device.uuid(),
            "gpu_name": device.name(),
            "device_total_bytes": device.total_bytes(),
        }


def _with_folder(plan: RankPlan) -> tuple[RankPlan, bool]:
    """The plan with a folder that this node can write: the run folder if it is the driver's, else one of its own."""
    from ray_memprof.store.run_folder import is_run, make_node_folder

    if plan.config.ray.scratch_dir is None and is_run(plan.run_dir, plan.run_id):
        return plan, True
    return dataclasses.replace(
        plan, run_dir=make_node_folder(plan.config.ray.scratch_dir, plan.run_id)
    ), False
