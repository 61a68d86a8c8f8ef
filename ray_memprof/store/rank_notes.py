"""What a rank without a launcher says of itself: logs/rankN.json, written when it begins and when it ends.

note_rank(run_dir, 3, {"status": "running", **process_facts()})
rank_note(run_dir, 3)                        # None: it never began to record
still_running(run_dir, num_ranks=8, wait_s=10)
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_memprof.store.processes import has_ended
from ray_memprof.store.run_files import TABLES_DIR, rank_file
from ray_memprof.store.standing import RUNNING
from ray_memprof.store.whole_file import replacing

_LOOK_S = 0.1
_SILENT_S = 60.0
"""A rank of another host that has written nothing for so long has ended: its recorder writes every few seconds."""


def note_rank(run_dir: Path, rank: int, facts: Mapping[str, Any]) -> None:
    """Write what a rank says of itself, all of it or nothing; raises OSError."""
    path = run_dir / rank_file(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps({**facts, "rank": rank}, indent=2, default=str) + "\n", encoding="utf-8"
        )


def rank_note(run_dir: Path, rank: int) -> dict[str, Any] | None:
    """What a rank has said of itself last; None: nothing."""
    try:
        facts: dict[str, Any] = json.loads((run_dir / rank_file(rank)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return facts


def still_running(run_dir: Path, num_ranks: int, *, wait_s: float = 0.0) -> list[int]:
    """Ranks that have not said how they ended, and whose process still runs, after at most `wait_s`.

    A rank on another host counts as running while its files grow.
    """
    until = time.monotonic() + wait_s
    while True:
        left = [rank for rank in range(num_ranks) if _may_run(run_dir, rank)]
        if not left or time.monotonic() >= until:
            return left
        time.sleep(_LOOK_S)


def _may_run(run_dir: Path, rank: int) -> bool:
    facts = rank_note(run_dir, rank)
    if facts is None or facts["status"] != RUNNING:
        return False
    ended = has_ended(facts)
    if ended is not None:
        return not ended
    files = [*run_dir.glob(f"{TABLES_DIR}/*/rank={rank}/*"), run_dir / rank_file(rank)]
    return time.time() - max(file.stat().st_mtime for file in files if file.exists()) < _SILENT_S
