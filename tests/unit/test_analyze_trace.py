"""scripts/analyze_trace_file.py on hand-made traces and on one that torch.profiler writes here."""

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "analyze_trace_file.py"
SCOPE = runpy.run_path(str(SCRIPT), run_name="analyze_trace_file")
Captured = pytest.CaptureFixture[str]


def run(captured: Captured, *arguments: object) -> tuple[int, str, str]:
    code = SCOPE["main"]([str(argument) for argument in arguments])
    out, err = captured.readouterr()
    return code, out, err


def operator(name: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur}


def memory(
    ts: float, size: int, allocated: int, reserved: int, tid: int = 1, kind: int = 1
) -> dict[str, Any]:
    args = {
        "Bytes": size,
        "Total Allocated": allocated,
        "Total Reserved": reserved,
        "Device Type": kind,
        "Device Id": 2,
    }
    return {
        "ph": "i",
        "cat": "cpu_instant_event",
        "name": "[memory]",
        "pid": 1,
        "tid": tid,
        "ts": ts,
        "args": args,
    }


def written(path: Path, *events: dict[str, Any]) -> Path:
    text = json.dumps({"traceEvents": events})
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_a_trace_without_memory_events_is_refused(tmp_path: Path, capsys: Captured) -> None:
    trace = written(tmp_path / "trace.json", operator("aten::mm", 0, 5))
    assert run(capsys, trace) == (
        2,
        "",
        f"error: {trace} has no memory events\nhint: torch.profiler writes them with profile_memory=True\n",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is no JSON: "),
        ("{}", "is no Chrome trace: it has no traceEvents"),
    ],
)
def test_what_is_no_trace_is_refused(
    tmp_path: Path, capsys: Captured, content: str | None, message: str
) -> None:
    trace = tmp_path / "trace.json"
    if content is not None:
        trace.write_text(content)
    code, out, err = run(capsys, trace)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {trace} {message}")


def test_peaks_and_operators_by_device(tmp_path: Path, capsys: Captured) -> None:
    mib = 2**20
    trace = written(
        tmp_path / "trace.json.gz",
        operator("aten::linear", 1000, 100),
        operator("aten::addmm", 1010, 50),
        memory(1020, 300 * mib, 300 * mib, 1024 * mib),
        memory(1070, 600 * mib, 900 * mib, 1024 * mib),  # addmm has ended, linear not
        memory(1200, -300 * mib, 600 * mib, 2048 * mib),
        memory(1210, 100 * mib, 700 * mib, 1024 * mib),
        operator("aten::other", 1005, 500, tid=2),  # another thread's operators do not count
        memory(1015, 5 * mib, 5 * mib, 0, kind=0),
    )
    code, out, err = run(capsys, trace, "--top", 2)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "cpu: 1 memory events",
        "  peak allocated 0.00 GiB (5,242,880 bytes) at 0.015 ms, in aten::addmm",
        "  peak reserved  0.00 GiB (0 bytes) at 0.015 ms",
        "  largest allocations:",
        "            5.00 MiB at 0.015 ms  aten::addmm",
        "  operators that allocated the most, freed memory not subtracted:",
        "            5.00 MiB in 1 allocations  aten::addmm",
        "",
        "cuda:2: 4 memory events",
        "  peak allocated 0.88 GiB (943,718,400 bytes) at 0.070 ms, in aten::linear",
        "  peak reserved  2.00 GiB (2,147,483,648 bytes) at 0.200 ms",
        "  largest allocations:",
        "          600.00 MiB at 0.070 ms  aten::linear",
        "          300.00 MiB at 0.020 ms  aten::addmm",
        "  operators that allocated the most, freed memory not subtracted:",
        "          600.00 MiB in 1 allocations  aten::linear",
        "          300.00 MiB in 1 allocations  aten::addmm",
    ]


def test_a_trace_of_the_profiler_itself(tmp_path: Path, capsys: Captured) -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        product = torch.ones(512, 512) @ torch.ones(512, 512)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    code, out, _ = run(capsys, tmp_path / "trace.json")
    assert code == 0
    assert f"({3 * product.nbytes:,} bytes)" in out
    assert "aten::mm" in out
