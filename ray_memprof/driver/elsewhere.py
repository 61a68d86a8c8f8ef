"""Records of ranks that are in a folder of another host, until they have been collected and removed there.

one = Elsewhere(host="host2", node_ip="10.0.0.2", folder=Path("/tmp/x"), ranks=(4, 5))
gather(run_dir, ranks, [one.remote(node_id, limit_s=120)])
one.clear(node_id, received, limit_s=120)          # "": nothing stays there
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.store.transfer import Remote
from ray_memprof.wording import rank_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsewhere:
    """A folder on another host whose records have not been collected yet."""

    host: str
    node: str = ""
    """The name of the node for people, if it is not that of the host: a host may have several nodes."""
    node_ip: str
    folder: Path
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        """Host and folder in one word, for people."""
        return f"{self.node or self.host}:{self.folder}"

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Elsewhere":
        """Made from its entry in run.json."""
        return cls(
            host=facts["host"],
            node_ip=facts["node_ip"],
            folder=Path(facts["folder"]),
            ranks=tuple(facts["ranks"]),
        )

    def facts(self) -> dict[str, Any]:
        """Its entry in run.json."""
        return {"host": self.host, "node_ip": self.node_ip, "folder": str(self.folder), "ranks": self.ranks}

    def remote(self, node_id: str, *, limit_s: float, is_lost: bool = False) -> Remote:
        """Its files; a file is sent only when its chunks are read.

        Args:
            node_id: of its node, in the Ray that this process has joined.
            limit_s: time limit for sending.
            is_lost: whether the node is known to be gone.
        """
        from ray_memprof.driver import node_tasks  # imports Ray

        if is_lost:
            chunks = node_tasks.unreachable()
        else:
            chunks = node_tasks.chunks(node_id, self.folder, self.ranks, limit_s=limit_s)
        return Remote(where=str(self), ranks=self.ranks, chunks=chunks)

    def clear(self, node_id: str, received: Collection[int], *, limit_s: float) -> str:
        """Remove the files of its ranks in `received`; returns a line if they stay there, else ""."""
        from ray_memprof.driver import node_tasks

        done = [rank for rank in self.ranks if rank in received]
        reason = node_tasks.remove(node_id, self.folder, done, limit_s=limit_s) if done else ""
        return f"{rank_text(done)}: collected, and still in {self}: {reason}" if reason else ""
