"""Run folders of one rank from what the model of the allocator recorded; for tests.

run = write_recorded(tmp_path, allocator.take_events(), conf="expandable_segments:True")
"""

import json
from pathlib import Path
from typing import Any

from run_tables import Row, blank, make_ranks, make_run

from ray_memprof.allocator.replay import Columns


def alloc_rows(columns: Columns, span_id: int = 1) -> list[Row]:
    """Rows of allocs, a nanosecond apart, from 1 on."""
    names = ("action", "address", "size_bytes", "requested_bytes", "stream")
    rows = zip(*(getattr(columns, name) for name in names), strict=True)
    return [
        blank("allocs", seq=seq, t_ns=seq + 1, span_id=span_id, **dict(zip(names, row, strict=True)))
        for seq, row in enumerate(rows)
    ]


def write_recorded(
    folder: Path,
    columns: Columns,
    *,
    conf: str | None = None,
    variable: str = "PYTORCH_CUDA_ALLOC_CONF",
    tables: dict[str, list[Row]] | None = None,
    span_id: int = 1,
    **rank: Any,
) -> Path:
    """A run with these events; `conf` is the text of torch's settings, and `rank` what the table ranks says."""
    make_run(folder, {0: {"allocs": alloc_rows(columns, span_id), **(tables or {})}})
    environment = {} if conf is None else {variable: conf}
    told = {"config": "{}", "environment": json.dumps(environment), "status": "ok"}
    return make_ranks(folder, {"status": "ok", **rank}, name="recorded", **told)
