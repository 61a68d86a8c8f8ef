"""Prints the memory summary of a Chrome trace that torch.profiler wrote with profile_memory=True.

    python scripts/analyze_trace_file.py profiler_logs/baseline/latest/trace/rank0.pt.trace.json
    python scripts/analyze_trace_file.py trace.json.gz --top 20

Reads the "[memory]" instant events (Bytes, Total Allocated, Total Reserved, Device Type, Device Id) and the operators
around them (category cpu_op). Prints, for each device, the highest allocated and reserved memory with their times, the
largest allocations, and the operators that allocated the most. Events that lack what is needed are left out and counted
in a warning. Needs this package, but neither torch nor Ray. Exit code 2: no such file, a file that is cut off, or one
without memory events.
"""

import argparse
import gzip
import json
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.wording import size_text

DEVICE_TYPES = {0: "cpu", 1: "cuda"}
"""Device Type in a trace is the number of c10::DeviceType."""
NOBODY = "(outside of operators)"
LARGEST_BYTES = 2**63
"""Every size is smaller: torch counts bytes in signed 64-bit integers."""


class TraceError(ValueError):
    """A file that holds no memory events."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of memory on a device."""

    device: str
    time_us: float
    """Since the first event of the trace."""
    bytes: int
    """Negative: given back."""
    allocated_bytes: int
    reserved_bytes: int
    operator: str
    """The innermost operator on the same thread at that time."""


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace, plain or gzipped.

    Raises:
        TraceError: no such file, or no trace.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            # Names of modules and files may hold control characters, which the profiler writes as they are.
            trace = json.loads(file.read(), strict=False)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path} is cut off or damaged: {error}") from error
    except ValueError as error:
        raise TraceError(f"{path} is no JSON: {error}") from error
    except RecursionError as error:
        raise TraceError(f"{path} is no Chrome trace: it is nested too deeply") from error
    events = trace.get("traceEvents") if isinstance(trace, dict) else trace
    if not isinstance(events, list):
        raise TraceError(f"{path} is no Chrome trace: it has no traceEvents")
    return events


def memory_events(trace: list[Any]) -> tuple[list[Event], list[str]]:
    """The memory events in order of time, each with the operator it fell into, and what was left out.

    Returns:
        The events, and a line for each kind of event that lacks what is needed: a memory event without Bytes has no
        size, and an operator without dur has no end.
    """
    operators = [event for event in trace if _is_operator(event)]
    memory = [event for event in trace if isinstance(event, dict) and event.get("name") == "[memory]"]
    read_operators = [
        event for event in operators if _is_time(event.get("ts")) and _is_time(event.get("dur"))
    ]
    read_memory = [event for event in memory if _is_time(event.get("ts")) and _has_sizes(event.get("args"))]
    first = min((event["ts"] for event in trace if _has_time(event)), default=0.0)
    by_thread: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in read_operators + read_memory:
        by_thread[repr((event.get("pid"), event.get("tid")))].append(event)
    found = [event for listed in by_thread.values() for event in _of_thread(listed, first)]
    left_out = [
        (len(memory) - len(read_memory), "memory events have no ts, Bytes or Device Type"),
        (len(operators) - len(read_operators), "operators have no ts or dur: nothing is counted in them"),
    ]
    warnings = [f"{count} of the {text}" for count, text in left_out if count]
    return sorted(found, key=lambda event: event.time_us), warnings


def _is_operator(event: Any) -> bool:
    return isinstance(event, dict) and event.get("cat") == "cpu_op" and event.get("ph") == "X"


def _is_time(value: Any) -> bool:
    """Microseconds, neither NaN nor too large for a float: the age of the universe is below 1e24 of them."""
    return isinstance(value, int | float) and abs(value) < 1e24


def _has_time(event: Any) -> bool:
    return isinstance(event, dict) and _is_time(event.get("ts"))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < LARGEST_BYTES


def _has_sizes(args: Any) -> bool:
    """Bytes and the kind of device are needed; the totals may be absent, but not be something else."""
    if not isinstance(args, dict) or not isinstance(args.get("Device Type"), int):
        return False
    totals = (args.get("Total Allocated", 0), args.get("Total Reserved", 0))
    return all(_is_size(value) for value in (args.get("Bytes"), *totals))


def _of_thread(events: list[dict[str, Any]], first: float) -> Iterator[Event]:
    """Operators of a thread nest, so a stack of the open ones is enough."""
    open_operators: list[tuple[float, str]] = []
    # In the same microsecond, the longer operator is the outer one, and a memory event comes after its operator.
    for event in sorted(
        events, key=lambda event: (event["ts"], event["name"] == "[memory]", -_length(event))
    ):
        while open_operators and open_operators[-1][0] < event["ts"]:
            open_operators.pop()
        if event["name"] != "[memory]":
            open_operators.append((event["ts"] + event["dur"], _printable(event["name"])))
            continue
        args = event["args"]
        kind = DEVICE_TYPES.get(args["Device Type"], f"device type {args['Device Type']}")
        yield Event(
            device=kind if kind == "cpu" else _printable(f"{kind}:{args.get('Device Id', 0)}"),
            time_us=event["ts"] - first,
            bytes=args["Bytes"],
            allocated_bytes=args.get("Total Allocated", 0),
            reserved_bytes=args.get("Total Reserved", 0),
            operator=open_operators[-1][1] if open_operators else NOBODY,
        )


def _length(event: dict[str, Any]) -> float:
    return 0.0 if event["name"] == "[memory]" else float(event["dur"])


def _printable(text: Any) -> str:
    """A name that neither moves the cursor of a terminal nor fails to be encoded."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def summary(events: list[Event], top: int) -> list[str]:
    """The lines that main() prints."""
    by_device: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_device[event.device].append(event)
    lines = []
    for device, listed in sorted(by_device.items()):
        lines += ["", *_device_lines(device, listed, top)]
    return lines[1:]


def _device_lines(device: str, events: list[Event], top: int) -> list[str]:
    allocated = max(events, key=lambda event: event.allocated_bytes)
    reserved = max(events, key=lambda event: event.reserved_bytes)
    taken = sorted((event for event in events if event.bytes > 0), key=lambda event: -event.bytes)
    operators, calls = Counter[str](), Counter[str]()
    for event in taken:
        operators[event.operator] += event.bytes
        calls[event.operator] += 1
    return [
        f"{device}: {len(events):,} memory events",
        f"  peak allocated {size_text(allocated.allocated_bytes)} "
        f"({allocated.allocated_bytes:,} bytes) at {_ms(allocated)}, in {allocated.operator}",
        f"  peak reserved  {size_text(reserved.reserved_bytes)} "
        f"({reserved.reserved_bytes:,} bytes) at {_ms(reserved)}",
        "  largest allocations:",
        *(f"    {size_text(event.bytes):>12} at {_ms(event)}  {event.operator}" for event in taken[:top]),
        "  operators that allocated the most, freed memory not subtracted:",
        *(
            f"    {size_text(size):>12} in {calls[name]:,} allocations  {name}"
            for name, size in operators.most_common(top)
        ),
    ]


def _ms(event: Event) -> str:
    return f"{event.time_us / 1000:,.3f} ms"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="a .json or .json.gz file")
    parser.add_argument("--top", type=int, default=10, help="lines of each list")
    args = parser.parse_args(arguments)
    try:
        events, warnings = memory_events(read_trace(args.trace))
        if not events:
            found = f" that can be read: {'; '.join(warnings)}" if warnings else ""
            raise TraceError(f"{args.trace} has no memory events{found}")
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        print(
            "hint: torch.profiler writes them with profile_memory=True",
            file=sys.stderr,
        )
        return 2
    for warning in warnings:
        print(f"warning: {args.trace}: {warning}", file=sys.stderr)
    print("\n".join(summary(events, args.top)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
