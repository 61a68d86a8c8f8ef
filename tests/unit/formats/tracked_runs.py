"""A run of two ranks that services are told of; for tests."""

import json
from pathlib import Path

from run_tables import Row, make_ranks, make_run, span

SECOND = 10**9
START = 1_700_000_000 * SECOND


def spans(peak: int) -> list[Row]:
    """Two stages of a rank, a second each."""
    return [
        span(
            number,
            stage,
            (START + number * SECOND, START + (number + 1) * SECOND),
            allocated=(0, 0, size),
            reserved=(0, 0, size + 10),
            device_used=(5, 5, size + 20),
        )
        for number, (stage, size) in enumerate([("load", peak // 2), ("denoise", peak)])
    ]


def tracked_run(folder: Path, *, status: str = "ok", num_ranks: int = 2) -> Path:
    """The run pair/r1 with a report, the last rank the fullest."""
    run_dir = make_run(
        folder / "pair" / "r1", {rank: {"spans": spans(1000 * (rank + 1))} for rank in range(num_ranks)}
    )
    (run_dir / "report.html").write_text("<html></html>")
    return make_ranks(
        run_dir,
        *({"status": status, "device_total_bytes": 8000} for _ in range(num_ranks)),
        run_id="r1",
        name="pair",
        status=status,
        source="cuda",
        workload="wan",
        config=json.dumps({"parallel": {"ulysses": 2}, "script": None}),
        versions=json.dumps({"torch": "2.13.0"}),
        start_ns=START,
        end_ns=START + 3 * SECOND,
    )
