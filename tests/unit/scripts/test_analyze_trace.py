"""scripts/analyze_trace_file.py on hand-made traces and on one that torch.profiler writes here."""

import gc
import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "analyze_trace_file.py"
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


def written(path: Path, *events: Any) -> Path:
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


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, capsys: Captured) -> None:
    whole = written(tmp_path / "whole.json.gz", memory(1, 512, 512, 2**21)).read_bytes()
    trace = tmp_path / "trace.json.gz"
    for length in range(len(whole) - 8):  # without its last 8 bytes, the checksum, nothing is whole
        trace.write_bytes(whole[:length])
        code, out, err = run(capsys, trace)
        assert (code, out, err.count("\n")) == (2, "", 2), length
        assert err.startswith(f"error: {trace} "), err
    damaged = bytearray(whole)
    damaged[15] ^= 0xFF
    trace.write_bytes(damaged)
    assert run(capsys, trace)[0] == 2


def test_deep_nesting_is_refused(tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text("[" * 100_000)
    code, out, err = run(capsys, trace)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {trace} is no")


def test_control_characters_in_names_are_read_and_not_printed(tmp_path: Path, capsys: Captured) -> None:
    trace = written(tmp_path / "trace.json", operator("\x1b[2J\ud800mm", 0, 5), memory(1, 512, 512, 2**21))
    trace.write_text(trace.read_text().replace("\\u001b", "\x1b"))
    assert "\x1b" in trace.read_text()
    code, out, err = run(capsys, trace)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "           512 B in 1 allocations  ?[2J?mm"


def test_an_operator_without_end_holds_nothing_and_is_told(tmp_path: Path, capsys: Captured) -> None:
    endless = {name: value for name, value in operator("aten::mm", 10, 0).items() if name != "dur"}
    trace = written(
        tmp_path / "trace.json", operator("aten::linear", 5, 100), endless, memory(11, 512, 512, 2**21)
    )
    code, out, err = run(capsys, trace)
    assert (code, err) == (
        0,
        f"warning: {trace}: 1 of the operators have no ts or dur: nothing is counted in them\n",
    )
    assert "in aten::linear" in out


def test_memory_in_the_first_microsecond_of_an_operator_is_its_own(tmp_path: Path, capsys: Captured) -> None:
    trace = written(tmp_path / "trace.json", memory(10, 512, 512, 2**21), operator("aten::mm", 10, 0))
    assert "in aten::mm" in run(capsys, trace)[1]


@pytest.mark.parametrize(
    "args",
    [
        None,
        [],
        {},
        {"Bytes": 1},
        {"Bytes": "1", "Device Type": 1},
        {"Bytes": 10**400, "Device Type": 1},
        {"Bytes": float("nan"), "Device Type": 1},
        {"Bytes": 1, "Device Type": {}},
        {"Bytes": 1, "Device Type": 1, "Total Allocated": None},
        {"Bytes": 1, "Device Type": 1, "Total Reserved": []},
    ],
)
def test_memory_events_without_sizes_are_left_out_and_told(
    tmp_path: Path, capsys: Captured, args: object
) -> None:
    left_out = memory(1, 512, 512, 2**21) | {"args": args}
    trace = written(tmp_path / "trace.json", left_out)
    why = "1 of the memory events have no ts, Bytes or Device Type"
    assert run(capsys, trace) == (
        2,
        "",
        f"error: {trace} has no memory events that can be read: {why}\n"
        "hint: torch.profiler writes them with profile_memory=True\n",
    )
    trace = written(tmp_path / "trace.json", left_out, memory(2, 1024, 2048, 2**21))
    code, out, err = run(capsys, trace)
    assert (code, err) == (0, f"warning: {trace}: {why}\n")
    assert "peak allocated 2.00 KiB (2,048 bytes) at 0.001 ms" in out


ODD: list[Any] = [None, True, -1, 1e999, float("nan"), 10**400, "a", "\ud800", [], {}, [[]], {"Bytes": 1}]
FIELDS = ["ph", "cat", "name", "pid", "tid", "ts", "dur", "args"]
ARGS = ["Bytes", "Total Allocated", "Total Reserved", "Device Type", "Device Id"]


@pytest.mark.parametrize("value", ODD, ids=ascii)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, capsys: Captured, value: object) -> None:
    """Never a traceback: run() would raise."""
    good = [operator("aten::mm", 0, 5), memory(1, 512, 512, 2**21)]
    changed: list[Any] = [[good[0] | {field: value}, good[1]] for field in FIELDS]
    changed += [[good[0], good[1] | {field: value}] for field in FIELDS]
    changed += [[good[0], good[1] | {"args": good[1]["args"] | {field: value}}] for field in ARGS]
    for events in [*changed, [value], [*good, value]]:
        code, out, err = run(capsys, written(tmp_path / "trace.json", *events))
        assert (code, bool(out)) in [(0, True), (2, False)], events
        (out + err).encode()
        assert code == 0 or err.startswith("error: "), events


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
        "  peak allocated 5.00 MiB (5,242,880 bytes) at 0.015 ms, in aten::addmm",
        "  peak reserved  0 B (0 bytes) at 0.015 ms",
        "  largest allocations:",
        "        5.00 MiB at 0.015 ms  aten::addmm",
        "  operators that allocated the most, freed memory not subtracted:",
        "        5.00 MiB in 1 allocations  aten::addmm",
        "",
        "cuda:2: 4 memory events",
        "  peak allocated 900 MiB (943,718,400 bytes) at 0.070 ms, in aten::linear",
        "  peak reserved  2.00 GiB (2,147,483,648 bytes) at 0.200 ms",
        "  largest allocations:",
        "         600 MiB at 0.070 ms  aten::linear",
        "         300 MiB at 0.020 ms  aten::addmm",
        "  operators that allocated the most, freed memory not subtracted:",
        "         600 MiB in 1 allocations  aten::linear",
        "         300 MiB in 1 allocations  aten::addmm",
    ]


def test_a_trace_of_the_profiler_itself(tmp_path: Path, capsys: Captured) -> None:
    gc.collect()  # what another test has left would be freed in the trace
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        product = torch.ones(512, 512) @ torch.ones(512, 512)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    code, out, _ = run(capsys, tmp_path / "trace.json")
    assert code == 0
    assert f"({3 * product.nbytes:,} bytes)" in out
    assert "aten::mm" in out
