"""One rank: an actor that runs the workload and meanwhile answers questions about it on other threads.

    facts = describe() -> prepare(plan) -> open_store() on rank 0 -> run(address) -> Outcome

Wan runs on a thread of the actor; a script is a process of its own (script_process.py), as under torchrun. beat(),
where(), said() and stop() are answered while run() is busy. Leaves logs/rankN.log and the recorder's tables. If
the workload fails, the records are sealed and run() returns an Outcome; the driver gets an exception only if the
process dies.
"""

import dataclasses
import errno
import os
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ray_memprof.rank import environment, variables
from ray_memprof.rank.log import (
    CLOSED,
    NOT_FOR_CONSOLE,
    dump_flight_record,
    for_console,
    lines_since,
    open_log,
)
from ray_memprof.rank.messages import Outcome, Prepared, RankFacts, Whereabouts
from ray_memprof.rank.network import explained, interface_of
from ray_memprof.rank.outcome import free_at_failure, outcome_of
from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.pulse import Pulse, first_beat
from ray_memprof.rank.script_plan import script_orders
from ray_memprof.rank.script_process import ScriptProcess
from ray_memprof.recorder.clock import Clock, kernel
from ray_memprof.recorder.status import Beat
from ray_memprof.store.processes import started

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder

CONTROL = {"control": 2}
"""Number of threads that answer while run() is busy: if one call hangs, the other thread answers the next."""
_BACKLOG = 2048
"""How many ranks may connect to the store at the same time: torch's own number."""


class Rank:
    """The actor; cluster.py applies ray.remote, so that this class itself stays a plain Python class."""

    def __init__(self) -> None:
        self._plan: RankPlan | None = None
        self._store: Any = None  # the TCPStore of rank 0; it would close if nothing referred to it
        self._script: ScriptProcess | None = None  # None: the workload is wan
        self._recorder: Recorder | None = None  # of wan
        self._pulse: Pulse | None = None  # of wan
        self._last_beat: Beat | None = None  # of the script
        self._log: Path | None = None
        self._is_talk_over = False  # whether what follows in the log is not for the console
        self._clock = Clock()

    def describe(self) -> RankFacts:
        """The node, process and GPU of this actor."""
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
        """The time of this host's clock, from which the driver computes the clock's offset."""
        return self._clock.now_ns()

    def prepare(self, plan: RankPlan) -> Prepared:
        """Get ready to run: open the log, set the environment, import torch if it is needed, and check."""
        plan, shared = _with_folder(plan)
        self._plan, self._log = plan, open_log(plan.run_dir, plan.rank)
        wanted = environment.rank_environment(
            plan,
            os.environ,
            num_cores=len(os.sched_getaffinity(os.getpid())),
            interface=interface_of(plan.facts.node_ip),
        )
        os.environ.update(wanted)
        if plan.asks_torch:
            import torch  # noqa: F401 - after the environment is set, but before the first span, which must not include it

        from ray_memprof.rank.checks import check_rank
        from ray_memprof.rank.versions import versions

        checks = check_rank(plan)
        if plan.config.workload == "script":
            environ = environment.script_environment(os.environ, is_own_ray=plan.config.ray.address is None)
            assert plan.config.script is not None
            self._script = ScriptProcess(environ, plan.working_dir, plan.config.script.command)
        return Prepared(
            run_dir=plan.run_dir,
            shared=shared,
            environment=variables.in_force(os.environ) | variables.shown(wanted),
            versions=versions() if plan.asks_torch else {},
            checks=checks,
            process=None if self._script is None else (self._script.pid, self._script.started),
        )

    def open_store(self) -> tuple[str, int]:
        """Open the store on a port that the system picks; the socket stays open, so nobody else can take the port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch exports it without saying so

        plan = self._prepared()
        # torch itself would listen on every interface. The store takes over this socket and closes it at the end.
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
        """Run the workload to its end; the Outcome says how it ended."""
        host, port = address
        plan = dataclasses.replace(self._prepared(), master_addr=host, master_port=port)
        master = {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        if self._script is not None:
            outcome = self._script.run(script_orders(plan, master, self._clock.marks))
            return explained(outcome, plan, os.environ | outcome.environment)
        os.environ.update(master)
        self._pulse = Pulse(plan.rank, plan.world_size, threading.get_ident())
        try:
            return self._run(plan)
        finally:
            self._pulse.thread = 0
            with suppress(*CLOSED):
                sys.stdout.flush()

    def _run(self, plan: RankPlan) -> Outcome:
        from ray_memprof.recorder import recording
        from ray_memprof.workload import wan_rank

        outcome = Outcome(rank=plan.rank, status="ok")
        try:
            with recording.recording(plan.recording, self._clock) as self._recorder:
                try:
                    wan_rank.run(
                        plan.config, plan.place, self._recorder, device=plan.device, run_dir=plan.run_dir
                    )
                except BaseException as error:  # noqa: B036 - outcome_of() interprets a SystemExit too
                    outcome = outcome_of(
                        error,
                        plan.rank,
                        self._recorder.failure(),
                        free_bytes=free_at_failure(self._recorder, plan.facts.device_total_bytes),
                    )
                    if outcome.status != "ok":
                        self._print_traceback()
        except BaseException as error:  # noqa: B036 - an error while the recorder closes, usually a full disk
            self._print_traceback()
            if outcome.status == "ok":
                outcome = outcome_of(error, plan.rank, None)
        done = self._recorder
        return dataclasses.replace(
            explained(outcome, plan, os.environ),
            check=None if done is None else done.check(),
            problems=() if done is None else done.problems,
            environment=variables.in_force(os.environ),
        )

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Where the workload is; `sequence` grows while it makes progress, and stands still if nothing answers."""
        if self._script is not None:
            self._last_beat = self._script.beat() or self._last_beat
        elif self._pulse is not None:
            return self._pulse.beat(self._recorder)
        return self._last_beat or first_beat(-1 if self._plan is None else self._plan.rank)

    @ray.method(concurrency_group="control")
    def where(self) -> Whereabouts | None:
        """The stack of the workload's thread; also writes the flight record of NCCL beside the log.

        None: the process of the script does not answer.
        """
        if self._script is not None:
            return self._script.where()
        if self._pulse is None:
            return Whereabouts(stack="not running\n")
        plan = self._prepared()
        if plan.visible_devices:
            # On a separate thread: the dump may take longer than the driver waits, and the disk may be full.
            dump = (plan.run_dir, plan.rank)
            threading.Thread(target=dump_flight_record, args=dump, daemon=True).start()
        return self._pulse.where()

    @ray.method(concurrency_group="control")
    def said(self, offset: int, whole: bool = True) -> tuple[int, str]:
        """The offset for the next call, and what the log holds from byte `offset` on; `whole`: complete lines only."""
        if self._log is None or self._is_talk_over:
            return offset, ""
        offset, text = lines_since(self._log, offset, whole=whole)
        text, self._is_talk_over = for_console(text)
        return offset, text

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Seal the open records, since the process is about to be killed; a script's process is ended."""
        if self._script is not None:
            self._script.stop()
        elif self._recorder is not None:
            self._recorder.seal()

    def _print_traceback(self) -> None:
        """Print the traceback into the log only: the console gets one line that says what happened."""
        with suppress(*CLOSED):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(*CLOSED):
            sys.stderr.write(f"{NOT_FOR_CONSOLE}\n")
            traceback.print_exc()

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
        # The address by which Ray knows this host may be translated on the network (NAT).
        sys.stderr.write(
            f"{address} is no address of this host: the rendezvous store listens on all its addresses\n"
        )
        return socket.create_server(("", 0), backlog=_BACKLOG)


def _gpu(name: str) -> dict[str, Any]:
    """What is known of the GPU that Ray calls `name`: an index, a UUID, or "" for none."""
    from ray_memprof.recorder.meters.nvml import open_device

    index = int(name) if name.isdigit() else -1
    found: dict[str, Any] = {"gpu_index": index, "visible_device": name}
    if not name:
        return found
    with open_device(uuid="" if name.isdigit() else name, index=index) as device:
        if device is None:  # Ray was told of a GPU that does not exist: ray.num_gpus on a host without GPUs
            return found
        return found | device.facts()


def _with_folder(plan: RankPlan) -> tuple[RankPlan, bool]:
    """The plan with the folder that this rank writes to, and whether that is the run folder, not a scratch folder."""
    from ray_memprof.store.run_folder import is_run, make_node_folder

    if plan.config.ray.scratch_dir is None and is_run(plan.run_dir, plan.run_id):
        return plan, True
    return dataclasses.replace(
        plan, run_dir=make_node_folder(plan.config.ray.scratch_dir, plan.run_id)
    ), False
