"""Whether all rows of a run that has ended are there: compares what its ranks say they wrote with the files.

    lacking(run_dir, num_ranks=8, ranks={0, 1, 2})      # ["ranks 3 to 7 recorded no span", ...]; []: all is there

Takes the manifests and the tables; changes nothing. gather.py sets damaged parts aside, and says so in run.json.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ray_memprof.store.run_files import OPEN_STREAM, TABLES_DIR, manifest_path, table_dir
from ray_memprof.wording import rank_text


def lacking(run_dir: Path, num_ranks: int, ranks: Collection[int]) -> list[str]:
    """Return a line for each kind of loss.

    Args:
        run_dir: the run.
        num_ranks: how many ranks the run was to have.
        ranks: those of which a span was recorded.
    """
    silent = sorted(set(range(num_ranks)) - set(ranks))
    lines = [f"{rank_text(silent)} recorded no span, or its rows are lost"] if silent else []
    for rank in sorted(set(range(num_ranks)) | set(ranks)):
        lines += _lost_parts(run_dir, rank)
    streams = sorted((run_dir / TABLES_DIR).glob(f"*/rank=*/{OPEN_STREAM}"))
    if streams:
        lines.append(
            f"{len(streams)} tables were never sealed, for example {streams[0].parent.relative_to(run_dir)}"
        )
    return lines


def _lost_parts(run_dir: Path, rank: int) -> Iterator[str]:
    for sealed in _sealed(manifest_path(run_dir, rank)):
        path = table_dir(run_dir, sealed["table"], rank) / sealed["file"]
        size = path.stat().st_size if path.exists() else None
        if size != sealed["bytes"]:
            state = "is missing" if size is None else "is damaged"
            yield f"{path.relative_to(run_dir)} {state}: {sealed['rows']:,} rows are lost"


def _sealed(manifest: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a manifest that can be read. A part whose line cannot be read is not missed: it is there."""
    if not manifest.exists():
        return
    for line in manifest.read_bytes().splitlines():
        try:
            sealed = json.loads(line)
        except ValueError:
            continue
        if isinstance(sealed, dict) and sealed.keys() >= {"table", "file", "rows", "bytes"}:
            yield sealed
