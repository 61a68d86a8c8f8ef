"""Every table and column, with its unit and meaning: the only place that names a column.

One folder per run, `tables/<table>/rank=N/part-*.parquet`; `rank` is the partition and not in the files. Measured
(CUDA), cpu and predicted runs fill the same columns; only runs.source differs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2
"""Grows when a column changes its meaning or goes away; new columns leave it as it is.

Version 2: device_used_peak_bytes is measured; version 1 had an upper bound there.
"""
OLDEST_SCHEMA_VERSION = 1
"""The oldest version whose runs can still be read; query/sql/older_runs shows how."""

_NAME = pa.dictionary(pa.int32(), pa.string())
"""Indices have 32 bits: a model of 50,000 modules has as many names. Parts written with 16 bits are read in the same
way: Parquet has plain strings."""
_MEASURED = ("allocated", "reserved", "active")

HOST_ACCOUNTS = ("heap", "files", "shared", "absent")
"""Who holds memory of a process beside its tensors; only runs of the CPU have them. `absent` is 0 or less: tensors that
take no memory."""
ACCOUNTS = ("context", "nccl", "libraries", "others", *HOST_ACCOUNTS)
"""Who holds device memory outside the allocator. What none of them explains is `unexplained`."""
HOW_KNOWN = ("own", "growth", "formula", "none")
"""How the bytes of a communicator are known: NCCL's own figure, growth across its calls, a formula that bounds them; or
there are none, for its backend keeps nothing on the device."""
CATEGORIES = (
    "weight", "buffer", "gradient", "optimizer", "activation", "temporary", "communication", "workspace", "cache",
    "output", "before",
)  # fmt: skip
"""What tensors are for. No event is recorded as `cache`: the question vae_cache tells it from how long they live.
Buffers, gradients and the state of optimizers are known by their owners. `before` is what was held before the first
event, as far as it has no owner."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type, its unit ("bytes", "ns", "" ...) and its meaning in one line."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table; `row` says what one row is."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The schema for pyarrow; unit and meaning are stored as metadata of each field."""
        return pa.schema(
            [
                pa.field(
                    column.name,
                    column.type,
                    nullable=column.nullable,
                    metadata={"unit": column.unit, "meaning": column.meaning},
                )
                for column in self.columns
            ],
            metadata={"schema_version": str(SCHEMA_VERSION), "table": self.name},
        )


def _bytes(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, pa.int64(), "bytes", meaning, nullable)


def _ns(name: str, meaning: str) -> Column:
    return Column(name, pa.int64(), "ns", meaning)


def _count(name: str, meaning: str) -> Column:
    return Column(name, pa.int64(), "", meaning)


def _text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, pa.string(), "", meaning, nullable)


def _word(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, _NAME, "", meaning, nullable)


def _ends(what: str, meaning: str) -> tuple[Column, ...]:
    return (
        _bytes(f"{what}_start_bytes", f"{meaning}, when the span began"),
        _bytes(f"{what}_end_bytes", f"{meaning}, when the span ended"),
        _bytes(f"{what}_peak_bytes", f"{meaning}, the most inside the span"),
    )


RUNS = Table(
    "runs",
    "a run",
    (
        _text("run_id", "unique, sorts by time"),
        _text("name", "name in the configuration"),
        _text(
            "source",
            "cuda (measured), cpu (measured on host tensors) or predicted; of an import also xpu and others",
        ),
        _text("workload", "wan or script"),
        Column("num_ranks", pa.int32(), "", "ranks the run was to have"),
        _text("config", "effective configuration, JSON"),
        _text("environment", "variables of rank 0 that the launcher set or that affect memory, JSON"),
        _text("git_commit", "of the code that ran; empty outside a repository"),
        _text("versions", "python, torch, cuda, cudnn, nccl, driver, ray and so on, JSON"),
        _ns("start_ns", "wall clock, since 1970"),
        _ns("end_ns", "wall clock, since 1970"),
        _text("status", "how it ended: ok, oom, failed, died, hung, lost, interrupted ..."),
        Column("exit_code", pa.int32(), "", "of the launcher"),
        _text("reason", "one line; empty when all is well"),
        Column("schema_version", pa.int32(), "", "SCHEMA_VERSION of its tables"),
    ),
)

RANKS = Table(
    "ranks",
    "a rank of the run",
    (
        Column("node", pa.int32(), "", "number of its node, in rank order"),
        _text("node_id", "Ray's id of the node"),
        _text("host", "host name"),
        Column("pid", pa.int64(), "", "process id on its host"),
        Column("local_rank", pa.int32(), "", "among the ranks of its node"),
        Column("gpu_index", pa.int32(), "", "physical index, as NVML counts; -1: none"),
        _text("gpu_uuid", "of the GPU; empty without one"),
        _text("gpu_name", "of the GPU; empty without one"),
        _bytes("device_total_bytes", "memory of the device, as its runtime reports it"),
        _ns(
            "clock_offset_ns",
            "by how much the host clock was ahead of the driver's; subtracted from every time of the rank",
        ),
        Column("ulysses", pa.int32(), "", "coordinate in the Ulysses group"),
        Column("ring", pa.int32(), "", "coordinate in the ring"),
        Column(
            "cfg", pa.int32(), "", "pass that it runs, if it runs one: 0 cond, 1 uncond; 0 if it runs both"
        ),
        Column("fsdp", pa.int32(), "", "coordinate in the FSDP group; 0 without one"),
        _text("status", "how it ended"),
        Column("exit_code", pa.int32(), "", "of this rank"),
        _text("reason", "one line; empty when all is well"),
        _text("path", "span that an error left, or the last one known"),
        Column("step", pa.int32(), "", "denoise step of that span; -1 outside the loop"),
        _text("oom_by", "who could not get device memory; null: torch's allocator, or nobody", nullable=True),
        _bytes("oom_free_bytes", "free on the device when it ran out of memory", nullable=True),
        _count("num_events", "allocator events recorded"),
        _count(
            "num_lost_events",
            "allocator events that were overwritten before a drain, or could not be written",
        ),
        _count("num_checks", "moments at which replay and counters were compared"),
        _bytes("max_error_bytes", "largest difference between replay and counters"),
        _bytes(
            "inexact_bytes", "how far replay may be off where the allocator's rule is not known; 0: exact"
        ),
        Column(
            "peak_at_least", pa.bool_(), "", "the peak may lie before the first event: peaks are lower bounds"
        ),
        _bytes("allocated_peak_bytes", "the allocator's own peak counter"),
        _bytes("replayed_allocated_peak_bytes", "the same peak, from the recorded events"),
        _bytes("reserved_peak_bytes", "the allocator's own peak counter"),
        _bytes("replayed_reserved_peak_bytes", "the same peak, from the recorded events"),
        _ns("recorder_ns", "spent recording on the thread that runs the model"),
        _ns("longest_pause_ns", "the longest time recording held that thread up at once"),
        _bytes("recorder_bytes", "most bytes in the recorder's buffers"),
    ),
)

SPANS = Table(
    "spans",
    "a span that ended (or was open when its rank ended)",
    (
        _count("span_id", "from 1, in the order the spans began"),
        _count("parent_id", "span around it; 0: none"),
        _word("path", "names from the outermost span inwards, separated by slashes"),
        _word("name", "of the span itself"),
        _word("stage", "name of the outermost span"),
        _word(
            "component", "t5, clip, vae, dit, or the class of the program's outermost module", nullable=True
        ),
        _word("module", "path of the module that was called; null: the span is of no call", nullable=True),
        Column("step", pa.int32(), "", "denoise step, also for spans inside a step", True),
        Column("block", pa.int32(), "", "index of a transformer block", True),
        _word("branch", "cond or uncond", nullable=True),
        Column("depth", pa.int16(), "", "0 for a stage"),
        _ns("start_ns", "wall clock, since 1970"),
        _ns("end_ns", "wall clock, since 1970"),
        Column("failed", pa.bool_(), "", "an exception left it, or its rank ended inside it"),
        *_ends("allocated", "tensors, as the allocator counts them (rounded to blocks)"),
        *_ends("reserved", "held by the allocator, in use or not"),
        *_ends("active", "allocated, or freed and not yet safe to reuse on another stream"),
        *_ends("device_used", "in use on the device by anybody, as measured at its ends and by samples"),
        _bytes(
            "device_used_bound_bytes",
            "upper bound of what was in use inside it: reserved peak and the most seen outside, or the whole device",
        ),
        _count("num_samples", "rows of samples taken inside it; 0: what lies between its ends was not seen"),
        *_ends("host_rss", "resident memory of the process"),
        _count("num_allocs", "tensors allocated inside it"),
        _count(
            "num_segments", "segments taken from the device; expandable ones grow uncounted, see device_calls"
        ),
        _count("num_retries", "times the allocator had to flush its cache and ask the device again"),
        _ns("recorder_ns", "spent recording inside it"),
    ),
)

ALLOCS = Table(
    "allocs",
    "an allocator event",
    (
        _count("seq", "order of events within the rank, from 0; negative: no event, memory held before the first"),
        _ns("t_ns", "wall clock, since 1970"),
        _word("action", "alloc, free_requested, free_completed, segment_alloc, segment_free, segment_map ..."),
        _bytes("size_bytes", "what the allocator counts: the block, or the segment"),
        _bytes("requested_bytes", "what was asked for"),
        Column("address", pa.uint64(), "", "on the device; of an oom, the bytes free there (from 2^63 on: not known)"),
        Column("stream", pa.uint64(), "", "CUDA stream handle; 0: the default one"),
        _count("span_id", "innermost open span when it happened; 0: none"),
        _word("category", f"one of {', '.join(CATEGORIES)}; null for other segments", nullable=True),
        Column("stack_id", pa.int32(), "", "into stacks; null where none was taken", True),
    ),
)  # fmt: skip

OWNERS = Table(
    "owners",
    "an allocation of which it was found out whose it is; the last row of an allocation counts",
    (
        _count("seq", "of the allocation, in allocs"),
        _ns("t_ns", "when it was found out: wall clock, since 1970"),
        _word(
            "owner",
            "path of the parameter, the buffer or the module; for optimizers with the name of the state",
        ),
        _word(
            "component", "t5, clip, vae, dit, or the class of the program's outermost module", nullable=True
        ),
        _word("category", "what it is for, one of those of allocs"),
        _word("dtype", "of its numbers, as torch names it", nullable=True),
    ),
)

SEGMENT_POOLS = Table(
    "segment_pools",
    "a change of a segment that is of another memory pool than the default one",
    (
        _count("seq", "of the change, in allocs"),
        _word("pool", "as torch numbers it, (1, 0) or (0, 1); see the question pools"),
    ),
)

SAMPLES = Table(
    "samples",
    "a look at the device, at a fixed interval",
    (
        _ns("t_ns", "wall clock, since 1970"),
        _bytes("device_used_bytes", "in use on the device by anybody"),
        _bytes("process_used_bytes", "of it by this process, where the driver tells", nullable=True),
        _bytes("others_used_bytes", "of it by other processes, where the driver tells", nullable=True),
        _bytes("allocated_bytes", "tensors, as the allocator counts them"),
        _bytes("reserved_bytes", "held by the allocator"),
        _bytes("host_rss_bytes", "resident memory of the process"),
        Column("utilisation_fraction", pa.float32(), "", "share of the time a kernel ran", True),
    ),
)

COLLECTIVES = Table(
    "collectives",
    "a collective call, or the making of a group",
    (
        _ns("start_ns", "wall clock, since 1970"),
        _ns("end_ns", "when the call returned; the device may still be working on it"),
        _count("span_id", "innermost open span; 0: none"),
        _word("op", "as torch.distributed names it"),
        _bytes("bytes", "this rank's share of the data: the larger of input and output"),
        _word("group", "name of the process group"),
        Column("group_size", pa.int32(), "", "ranks in it"),
        _bytes("non_torch_growth_bytes", "growth of device memory outside the allocator across the call"),
    ),
)

COMMUNICATORS = Table(
    "communicators",
    "a process group of a rank, whenever what is known of its memory has changed; the last row of a group counts",
    (
        _ns("t_ns", "wall clock, since 1970"),
        _word("group", "name of the process group; empty: several, which nobody tells apart"),
        _word("backend", "as torch names it: nccl, gloo ..."),
        Column("group_size", pa.int32(), "", "ranks in it"),
        _text("ranks", "these ranks, with ranges: 0-3,8"),
        _count(
            "num_calls",
            "collectives that it has counted, whatever code called them; 0 if its backend is not NCCL",
        ),
        _bytes(
            "bytes", "device memory that it holds outside the allocator; null: not measured", nullable=True
        ),
        _bytes(
            "shared_bytes", "of these: taken while a library may have been loaded, so in part perhaps its"
        ),
        _word("how_known", f"one of {', '.join(HOW_KNOWN)}; see the question nccl_by_communicator"),
    ),
)

LEDGER = Table(
    "ledger",
    "a change of device memory outside the allocator, and the account that it is booked to",
    (
        _ns("t_ns", "wall clock, since 1970"),
        _count("span_id", "innermost open span; 0: none"),
        _word("account", f"one of {', '.join(ACCOUNTS)}"),
        _bytes("bytes", "grown by; negative: shrunk"),
    ),
)

PREDICTED = Table(
    "predicted",
    "an account of a rank in a stage, or in the whole run, as the prediction of this run has it",
    (
        _word("stage", "name of the outermost span; null: the whole run", nullable=True),
        _word("account", "allocated, reserved, device_used, context, nccl or libraries"),
        _bytes("bytes", "the most that it holds there"),
    ),
)

STACKS = Table(
    "stacks",
    "a frame of a Python stack",
    (
        Column("stack_id", pa.int32(), "", "same for the same frames within a rank"),
        Column("frame", pa.int32(), "", "0 is the innermost"),
        _word("function", "name"),
        _word("file", "path"),
        Column("line", pa.int32(), "", "in it"),
    ),
)


def stack_columns(rows: Iterable[tuple[int, int, str, str, int]]) -> dict[str, list[Any]]:
    """Columns of the table stacks, from rows in its order of columns; at least one row."""
    columns = zip(*rows, strict=True)
    return {column.name: list(values) for column, values in zip(STACKS.columns, columns, strict=True)}


TABLES = {
    table.name: table
    for table in (
        RUNS,
        RANKS,
        SPANS,
        ALLOCS,
        OWNERS,
        SEGMENT_POOLS,
        SAMPLES,
        COLLECTIVES,
        COMMUNICATORS,
        LEDGER,
        PREDICTED,
        STACKS,
    )
}
RANK_TABLES = (
    "spans", "allocs", "owners", "segment_pools", "samples", "collectives", "communicators", "ledger", "stacks"
)  # fmt: skip
"""Written by the ranks; runs and ranks are written by the driver, and predicted by a prediction after the run."""
