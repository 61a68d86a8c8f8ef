"""Runs that go on in a Ray cluster, as any of its nodes sees them; their folders may be on the launcher's node alone.

    with far_run("ulysses8", "10.0.0.1:6379") as watched:
        follow(watched, console)                 # watching.py

The first rank of a run that has joined a cluster bears a name that says where the launcher and the run folder are:
that costs the run nothing. An actor of the watcher, which books nothing, reads the folder's small files there, and ends
with the watcher. No Ray is ever started here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.config.rules import ADDRESS
from ray_memprof.driver.watching import Folder, View
from ray_memprof.errors import ConfigError, StartFailed
from ray_memprof.installed import need
from ray_memprof.wording import first_line

NAMESPACE = "ray_memprof"
_ANSWER_S = 60.0
"""Longest wait for the launcher's node: its first answer needs a process that Ray starts there."""
_LOCAL = "local"


@dataclass(frozen=True, slots=True)
class FarRun:
    """Where a run's launcher and folder are."""

    node_id: str
    """Ray's id of the launcher's node."""
    folder: Path

    @property
    def name(self) -> str:
        """Name of the actor that says so."""
        return f"{self.node_id} {self.folder}"

    @classmethod
    def of(cls, name: str) -> "FarRun":
        """What the name of an actor says."""
        node_id, _, folder = name.partition(" ")
        return cls(node_id, Path(folder))

    def is_called(self, run: str | None) -> bool:
        """Whether a person means it: by name, id, both with a slash, or folder; None and latest: any."""
        name, run_id = self.folder.parent.name, self.folder.name
        return run in (None, "latest", name, run_id, f"{name}/{run_id}", str(self.folder))


class FarFolder:
    """A run folder on the launcher's node, as follow() needs it."""

    look_s = 0.5

    def __init__(self, run: FarRun) -> None:
        import ray

        from ray_memprof.driver.node_tasks import pinned

        self._run = run
        made: Any = ray.remote(num_cpus=0, max_restarts=0)(Folder)
        self._reader = made.options(scheduling_strategy=pinned(run.node_id)).remote(run.folder)

    def look(self) -> View | None:
        """See Folder.look."""
        found: View | None = self._ask("look")
        return found

    def is_settled(self) -> bool:
        """See Folder.is_settled."""
        return bool(self._ask("is_settled"))

    def last_lines(self) -> list[str]:
        """See Folder.last_lines."""
        return [*self._ask("last_lines"), f"on {self._ask('host')}, which is not this host"]

    def _ask(self, what: str) -> Any:
        import ray

        try:
            return ray.get(getattr(self._reader, what).remote(), timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:  # also raised if the time limit has passed
            if isinstance(cause := getattr(error, "cause", None), ConfigError):
                raise cause from None
            raise StartFailed(
                f"{self._run.folder} cannot be seen: the node of its launcher does not answer "
                f"({type(error).__name__}: {first_line(error)})",
                hint="the run itself may go on; `ray status` says which nodes are there",
            ) from error


@contextmanager
def far_run(run: str | None, address: str) -> Iterator[FarFolder]:
    """Join a cluster to watch a run that goes on in it: the newest of those that are meant.

    Args:
        run: its name, id, both with a slash, or folder; None or latest: any.
        address: of the cluster, HOST:PORT, or auto for that of this node.

    Raises:
        ConfigError: it is no such address, Ray is not installed, or no such run goes on there.
        StartFailed: the cluster cannot be reached.
    """
    need(("ray",), "watching a run of another node")
    if address == _LOCAL:
        raise ConfigError(
            f"--address {_LOCAL} would start a Ray, in which no run is",
            hint="HOST:PORT of a Ray that runs, or auto",
        )
    if not ADDRESS.fullmatch(address):
        # Also ray://...: Ray Client would look for the run from a server of the head node.
        raise ConfigError(
            f"the address {address!r} of the Ray that the run has joined must be auto or HOST:PORT",
            hint="on a node of the cluster: --address auto, or that of its head, HOST:6379 where nothing else was set",
        )
    from ray_memprof.driver.cluster import joined_ray  # imports Ray

    with joined_ray(address):
        there = _runs_there()
        meant = [one for one in there if one.is_called(run)]
        if not meant:
            what = "no run" if run is None else f"no run {run}"
            names = ", ".join(f"{one.folder.parent.name}/{one.folder.name}" for one in there)
            raise ConfigError(
                f"{what} goes on in the Ray at {address}",
                hint=f"there are {names}"
                if there
                else "only a run that has joined it (ray.address) is seen; others are watched on their own host",
            )
        yield FarFolder(meant[-1])


def _runs_there() -> list[FarRun]:
    """The runs that go on in the cluster that was joined, the newest last."""
    from ray.util import list_named_actors

    named = [one["name"] for one in list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    return sorted(map(FarRun.of, named), key=lambda one: one.folder.name)
