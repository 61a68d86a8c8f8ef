"""Exports a rank's allocator events as a snapshot for the public viewer and torch's own tools.

    write_snapshot(run_dir, rank=0, path=Path("rank0.pickle"))

The viewer is docs.pytorch.org/memory_viz. Takes the tables of a run; leaves a pickle of protocol 4 with the keys of
torch.cuda.memory._snapshot(). Events carry the path of their span as user_metadata. If no Python stack was taken, the
names in the path are the frames (file "<span>"), so that the viewer shows stages. Segments are the state at the end,
by replay.

Host tensors (a run of the CPU) have numbers instead of addresses, and no segments. They all get places in one made-up
segment, and the key MARK says what they are, so that an import counts them as they were.

What was held before recording began is only in the segments, as torch writes it. Blocks outside of every known segment
get a made-up segment, because the viewer draws each block in its segment.

Rows are read and written one after another, a million events in some seconds; only what is held stays in memory:
blocks, segments, and the names.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_memprof.allocator.ranges import parts_outside
from ray_memprof.allocator.rules import SETTINGS_VARIABLES, SMALL_SEGMENT_BYTES, exact_size
from ray_memprof.allocator.settings import given
from ray_memprof.errors import ConfigError
from ray_memprof.formats.torch_snapshot.pickle_writer import PickleWriter, integer
from ray_memprof.query.database import open_run
from ray_memprof.store.run_files import PART_SUFFIX, table_dir
from ray_memprof.store.schema import SCHEMA_VERSION
from ray_memprof.store.whole_file import check_target, whole_file

MARK = "ray_memprof"
"""The key that an export adds: it says where the snapshot comes from, and that user_metadata are paths of spans."""
SPAN_FILE = "<span>"
"""The file of a frame whose name is the name of a span."""
HOST_SOURCES = ("cpu", "predicted")
"""Sources of runs whose events are of host tensors."""
BATCH = 1000
_COLUMNS = (
    "seq",
    "t_ns",
    "action",
    "size_bytes",
    "requested_bytes",
    "address",
    "stream",
    "span_id",
    "stack_id",
)
Row = dict[str, Any]


def write_snapshot(run_dir: Path, rank: int, path: Path) -> Path:
    """Write the snapshot of `rank`; returns its path.

    Raises:
        ConfigError: no such run or rank, none of its events were recorded, or no file can be written at `path`.
        DiskFull: no room for the file.
    """
    check_target(path)
    source = _Source(run_dir, rank)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        _write(PickleWriter(file), source)
    return path


class _Source:
    """What an export reads of a run; events() reads its events one by one."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.rank = rank
        self._parts = sorted(table_dir(run_dir, "allocs", rank).glob(f"*{PART_SUFFIX}"))
        with open_run(run_dir) as connection:
            if not self._parts:
                found = connection.execute("SELECT DISTINCT rank FROM spans ORDER BY rank").fetchall()
                ranks = ", ".join(str(row[0]) for row in found) or "none"
                raise ConfigError(
                    f"{run_dir} has no allocator events of rank {rank}",
                    hint=f"logging.level event or stack records them; ranks of this run: {ranks}",
                )
            spans = connection.execute("SELECT span_id, path FROM spans WHERE rank = ?", [rank]).fetchall()
            self.paths: dict[int, str] = dict(spans)
            self.stacks = _stacks(connection, rank)
            places = connection.execute("SELECT local_rank FROM ranks WHERE rank = ?", [rank]).fetchone()
            runs = connection.execute("SELECT run_id, config, environment, source FROM runs").fetchone()
        self.device: int = places[0] if places else 0
        self.run_id, config, environment, self.source = runs or ("", "{}", "{}", "cuda")
        self.places = _HostPlaces() if self.source in HOST_SOURCES else None
        self._config, self._environment = json.loads(config), json.loads(environment)

    def events(self) -> Iterator[Row]:
        for row in self._rows():
            if self.places is not None:
                row["address"] = self.places.of(row)
            yield row

    def _rows(self) -> Iterator[Row]:
        for part in self._parts:
            try:
                with pq.ParquetFile(part.absolute()) as file:
                    for batch in file.iter_batches(16_384, columns=list(_COLUMNS)):
                        yield from batch.to_pylist()
            except (OSError, pa.ArrowInvalid) as error:
                reason = " ".join(str(error).split())
                raise ConfigError(
                    f"{part} cannot be read: {reason}", hint="if it is a copy, copy it again"
                ) from error

    def settings(self, *, expandable: bool) -> dict[str, Any]:
        """The settings of the allocator, as far as they are known."""
        for one in self._config.get("imported", ()):
            if one["rank"] == self.rank:
                return dict(one["allocator_settings"])
        # Leniently, and not by settings_of(): what torch would refuse is no reason to write nothing.
        _, conf = given(self._environment)
        pairs = dict(pair.split(":", 1) for pair in conf.split(",") if ":" in pair)
        limit, steps = pairs.get("max_split_size_mb", ""), pairs.get("roundup_power2_divisions", "0")
        # If the divisions differ by size they are left out: a reader must not take sizes as known.
        divisions = {str(2**power): int(steps) for power in range(16)} if steps.isdecimal() else None
        return {
            SETTINGS_VARIABLES[0]: conf,
            "max_split_size": int(limit) * 2**20 if limit.isdecimal() else -1,
            "expandable_segments": expandable or pairs.get("expandable_segments") == "True",
            **({} if divisions is None else {"roundup_power2_divisions": divisions}),
        }


class _HostPlaces:
    """Makes addresses for host tensors, whose events have numbers; it reuses a free one of the same size first."""

    FIRST = 2**40

    def __init__(self) -> None:
        self.end = self.FIRST
        self._used: dict[int, tuple[int, int]] = {}
        self._free: dict[int, list[int]] = {}

    def of(self, row: Row) -> int:
        """The address of the tensor of an event."""
        number: int = row["address"]
        if row["action"] == "alloc":
            room = exact_size(row["size_bytes"])
            if not self._free.get(room):
                self._free[room] = [self.end]
                self.end += room
            self._used[number] = self._free[room].pop(), room
        place, room = self._used.get(number, (number, 0))
        if row["action"] == "free_completed" and self._used.pop(number, None):
            self._free[room].append(place)
        return place


def _stacks(connection: Any, rank: int) -> dict[int, list[Row]]:
    """Frames by stack, the innermost first."""
    rows = connection.execute(
        "SELECT stack_id, function, file, line FROM stacks WHERE rank = ? ORDER BY stack_id, frame", [rank]
    ).fetchall()
    frames: dict[int, list[Row]] = {}
    for stack, function, file, line in rows:
        frames.setdefault(stack, []).append({"name": function, "filename": file, "line": line})
    return frames


def _write(writer: PickleWriter, source: _Source) -> None:
    held = _Held(source.places)
    writer.raw(b"}(" + writer.text("device_traces") + b"](")
    writer.raw(b"]" * source.device + b"]")
    writer.raw(b"(")
    for number, row in enumerate(source.events(), start=1):
        if number % BATCH == 0:
            writer.raw(b"e(")
        held.follow(row)
        if row["seq"] < 0:  # held before the first event: in a snapshot this is only in the segments
            continue
        writer.raw(_event(writer, source, row))
    writer.raw(b"ee")
    writer.raw(writer.text("segments") + b"](")
    for segment in held.segments():
        writer.raw(_segment(writer, source, segment))
    writer.raw(b"e")
    rest = {
        "allocator_settings": source.settings(expandable=held.is_expandable),
        "external_annotations": [],
        MARK: {
            "schema_version": SCHEMA_VERSION,
            "run_id": source.run_id,
            "rank": source.rank,
            "source": source.source,
        },
    }
    for name, value in rest.items():
        writer.raw(writer.text(name) + writer.value(value))
    writer.raw(b"u.")
    writer.flush()


def _event(writer: PickleWriter, source: _Source, row: Row) -> bytes:
    text = writer.text
    is_oom = row["action"] == "oom"
    return b"".join(
        (
            b"}(", text("action"), text(row["action"]),
            # An oom event has the bytes free on the device in place of an address, in the tables too.
            text("device_free" if is_oom else "addr"), integer(row["address"]),
            text("size"), integer(row["requested_bytes"]),
            text("stream"), integer(row["stream"]),
            text("time_us"), integer(row["t_ns"] // 1000),
            text("compile_context"), text("N/A"),
            text("user_metadata"), text(source.paths.get(row["span_id"], "")),
            text("frames"), _frames(writer, source, row), b"u",
        )
    )  # fmt: skip


def _frames(writer: PickleWriter, source: _Source, row: Row) -> bytes:
    """The frames of an event: its Python stack, or else the names of its span's path."""
    if row["stack_id"] is not None:
        return writer.shared(("stack", row["stack_id"]), source.stacks[row["stack_id"]])
    path = source.paths.get(row["span_id"], "")
    names = reversed(path.split("/")) if path else ()
    return writer.shared(("span", path), [{"name": name, "filename": SPAN_FILE, "line": 0} for name in names])


def _segment(writer: PickleWriter, source: _Source, segment: Row) -> bytes:
    # Opcodes must be made in the order in which they are written: the first use of a text has its letters.
    value, text = writer.value, writer.text
    blocks = segment.pop("blocks")
    data = value({"device": source.device, "segment_pool_id": (0, 0), **segment})[:-1]
    data += text("frames") + value([]) + text("blocks") + b"]("
    for block, row in blocks:
        data += (
            value(block)[:-1] + text("frames") + (_frames(writer, source, row) if row else value([])) + b"u"
        )
    return data + b"eu"


@dataclass(slots=True)
class _Held:
    """Replays events to find what is held at the end; sizes are those of the rows."""

    places: _HostPlaces | None = None
    """The addresses of host tensors, which all lie in one segment; None: the events are of a device."""
    is_expandable: bool = False
    _fixed: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Size and stream of segments that cannot grow, by address."""
    _mapped: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Size and stream of the mapped ranges of segments that can grow, by address."""
    _used: dict[int, Row] = field(default_factory=dict)
    _pending: set[int] = field(default_factory=set)
    _seen: dict[int, int] = field(default_factory=dict)
    """The largest block that an address ever had."""
    _made: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that were segments at some time."""

    def follow(self, row: Row) -> None:
        """Take in the next event."""
        action, address, size = row["action"], row["address"], row["size_bytes"]
        if action == "alloc":
            self._used[address] = row
        elif action == "free_requested":
            self._pending.add(address)
        elif action == "free_completed":
            self._used.pop(address, None)
            self._pending.discard(address)
        elif action == "segment_alloc":
            self._fixed[address] = size, row["stream"]
        elif action == "segment_free":
            self._fixed.pop(address, None)
        elif action == "segment_map":
            self.is_expandable = True
            self._mapped[address] = size, row["stream"]
        elif action == "segment_unmap":
            self._unmap(address, address + size)
        if action in ("alloc", "free_completed") and self.places is None:
            self._seen[address] = max(size, self._seen.get(address, 0))
        elif action.startswith("segment_"):
            self._made.append((address, address + size))

    def _unmap(self, first: int, last: int) -> None:
        for start, (size, stream) in list(self._mapped.items()):
            end = start + size
            if end <= first or start >= last:
                continue
            del self._mapped[start]
            parts = parts_outside(start, end, first, last)
            self._mapped |= {begin: (until - begin, stream) for begin, until in parts}

    def segments(self) -> Iterator[Row]:
        """Segments as a snapshot has them, by address; each block comes with the row that made it."""
        used = sorted(self._used.items())
        at = 0
        for start, size, stream, is_expandable in self._ranges():
            while at < len(used) and used[at][0] < start:
                at += 1
            first = at
            while at < len(used) and used[at][0] < start + size:
                at += 1
            yield self._segment(start, size, stream, is_expandable, used[first:at])

    def _ranges(self) -> list[tuple[int, int, int, bool]]:
        """Address, size, stream and whether it can grow, of every segment that is there or must have been there."""
        ranges = [(start, size, stream, False) for start, (size, stream) in self._fixed.items()]
        for start, (size, stream) in sorted(self._mapped.items()):
            if ranges and ranges[-1][3] and ranges[-1][0] + ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + size, stream, True)
            else:
                ranges.append((start, size, stream, True))
        ranges += [(start, end - start, 0, False) for start, end in self._outside()]
        if self.places is not None:
            ranges.append((self.places.FIRST, self.places.end - self.places.FIRST, 0, False))
        return sorted(ranges)

    def _outside(self) -> list[tuple[int, int]]:
        """Ranges of blocks that were in no segment that any event names."""
        known = _joined(self._made)
        at, outside = 0, []
        for start, size in sorted(self._seen.items()):
            while at < len(known) and known[at][1] <= start:
                at += 1
            if at == len(known) or start < known[at][0]:
                outside.append((start, start + max(size, 1)))
        return _joined(outside)

    def _segment(
        self, start: int, size: int, stream: int, is_expandable: bool, used: list[tuple[int, Row]]
    ) -> Row:
        blocks: list[tuple[Row, Row | None]] = []
        at = start
        for address, row in used:
            if address > at:
                blocks.append((_block(at, address - at, 0, "inactive"), None))
            state = "active_pending_free" if address in self._pending else "active_allocated"
            blocks.append((_block(address, row["size_bytes"], row["requested_bytes"], state), row))
            at = address + row["size_bytes"]
        if at < start + size:
            blocks.append((_block(at, start + size - at, 0, "inactive"), None))
        held = [block for block, row in blocks if row is not None]
        allocated = [block for block in held if block["state"] == "active_allocated"]
        return {
            "address": start,
            "total_size": size,
            "stream": stream,
            "segment_type": "small" if size == SMALL_SEGMENT_BYTES else "large",
            "allocated_size": sum(block["size"] for block in allocated),
            "requested_size": sum(block["requested_size"] for block in allocated),
            "active_size": sum(block["size"] for block in held),
            "is_expandable": is_expandable,
            "blocks": blocks,
        }


def _block(address: int, size: int, requested: int, state: str) -> Row:
    return {"address": address, "size": size, "requested_size": requested, "state": state}


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, with those that touch or overlap joined into one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined
