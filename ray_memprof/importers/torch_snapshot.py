"""Snapshots of torch's allocator, of any program and one file a rank, as a run that every question can be asked of.

    $ ray-memprof import dump/rank*.pickle --name theirs
    import_snapshots([Path("rank0.pickle"), Path("rank1.pickle")], run_dir, "theirs")

Takes what torch.cuda.memory._dump_snapshot() wrote after _record_memory_history() had been switched on. Leaves a run
folder: spans, allocs and stacks of each rank, run.json, run.duckdb, memory_events.json and report.html.

What an imported run says and what it does not:

* runs: source "cuda", workload "script", status "ok"; the files are listed under "imported" in its configuration.
* Blocks, curves and peaks are replayed, from the state at the beginning that beginning.py finds, and end at the
  segments of the snapshot: ranks.max_error_bytes is the difference there, num_checks is 1. No counter of the
  program's own came along, so allocated_peak_bytes and reserved_peak_bytes repeat the replayed ones.
* A stretch of events with the same user_metadata is a span of that name, at depth 0; a stretch without any is a span
  "imported". In snapshots that this project exported, the text is the path of a span and the spans nest again.
* Memory outside the allocator is not in a snapshot: device_used is reserved, host_rss is 0.

On two cores a million events (80 MiB) take 10 s; resident memory is 80 MB and 0.6 times the file, where loading it with
pickle takes 8 times the file. Half its size is wanted on the disk of the run folder while it is read.
"""

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.errors import DiskFull
from ray_memprof.exporters.torch_snapshot import MARK, SPAN_FILE
from ray_memprof.importers.pickle_stream import Frame, NotASnapshot, PickleStream
from ray_memprof.importers.rows import Rows, Written
from ray_memprof.importers.spool import Spool
from ray_memprof.replay import BlockReplay
from ray_memprof.store import CONFIG_FILE, LOGS_DIR, RUN_FILE, TABLES_DIR, disk_error

MAX_TEXTS = 10_000
"""Different values of user_metadata in a file up to which they name spans."""
_INSTEAD = "name a folder on another one: --output-dir"
_HOW_TO_RECORD = "call torch.cuda.memory._record_memory_history() first, then _dump_snapshot() at the end"


@dataclass(frozen=True, slots=True)
class Imported:
    """What there is of a rank."""

    rank: int
    path: Path
    device: int
    written: Written
    settings: dict[str, Any]
    problems: tuple[str, ...]


def ranks_of(paths: Sequence[Path]) -> dict[int, Path]:
    """Files by rank: the last number in the name of each, or their order where a name has none or two have the same.

    Raises:
        NotASnapshot: there is no file, or one is listed twice.
    """
    if not paths:
        raise NotASnapshot("no file to import", hint="ray-memprof import dump/rank*.pickle --name NAME")
    if len({path.resolve() for path in paths}) < len(paths):
        raise NotASnapshot(f"a file is listed twice among {', '.join(map(str, paths))}")
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    ranks = [int(found[-1]) for found in numbers if found]
    if len(set(ranks)) < len(paths) or sorted(ranks) != list(range(len(paths))):
        ranks = list(range(len(paths)))
    return dict(sorted(zip(ranks, paths, strict=True)))


def import_snapshots(paths: Sequence[Path], run_dir: Path, name: str) -> list[str]:
    """Make the run folder `run_dir`; what is doubtful about it, one line each.

    Raises:
        NotASnapshot: a file is none; nothing is left of the run.
        DiskFull: no room for it.
    """
    files = ranks_of(paths)
    try:
        (run_dir / LOGS_DIR).mkdir(parents=True)
        (run_dir / TABLES_DIR).mkdir()
    except OSError as error:
        raise disk_error("import", run_dir, error, instead=_INSTEAD) from error
    try:
        imported = _import_all(files, run_dir)
        _finish(imported, run_dir, name)
    except BaseException as error:
        shutil.rmtree(run_dir)
        with suppress(OSError):  # other runs of that name are there
            run_dir.parent.rmdir()
        if isinstance(error, OSError):
            raise disk_error("import", run_dir, error, instead=_INSTEAD) from error
        if isinstance(error, DiskFull):  # its hint is for a run that is recorded
            raise DiskFull(str(error), hint=f"make room on that disk, or {_INSTEAD}") from error
        raise
    return [line for one in imported for line in one.problems]


def _import_all(files: dict[int, Path], run_dir: Path) -> list[Imported]:
    """Each in a process of its own where there are several: decoding is bound by one core."""
    num_workers = min(len(files), os.cpu_count() or 1)
    if num_workers == 1:
        return [import_rank(path, run_dir, rank) for rank, path in files.items()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        waiting = [pool.submit(import_rank, path, run_dir, rank) for rank, path in files.items()]
        try:
            return [one.result() for one in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def import_rank(path: Path, run_dir: Path, rank: int) -> Imported:
    """Tables of one rank.

    Raises:
        NotASnapshot: the file is none.
        DiskFull: no room for them.
    """
    with ExitStack() as closing:
        spools: dict[int, Spool] = {}
        snapshot, stacks = _read(path, run_dir, spools, closing)
        device = _device(path, spools)
        spool = spools[device]
        segments = _segments(path, snapshot, device)
        settings = _settings(snapshot.get("allocator_settings"))
        named = spool.num_texts <= MAX_TEXTS
        rows = Rows(run_dir, rank, named=named, nested=MARK in snapshot)
        replay = rows.replay
        replay.configure(settings)
        replay.prime(spool.witness.segments_at_start(segments, replay))
        written = rows.write(spool.chunks(), stacks)
    error = _difference(replay, segments)
    problems = _doubts(rank, path, device, spools, replay, error)
    if doubt := spool.witness.doubt_bytes:
        problems.append(
            f"rank {rank}: blocks that were there before the first event of {path} may have taken up to {doubt:,} "
            "bytes more than is counted: they were freed before anything told where they ended"
        )
    if not named:
        problems.append(
            f"rank {rank}: the events of {path} carry {spool.num_texts:,} different texts, which would be as many "
            f"spans or more; they are one span, as more than {MAX_TEXTS:,} are"
        )
    written.max_error_bytes = error
    return Imported(rank, path, device, written, settings, tuple(problems))


def _read(
    path: Path, run_dir: Path, spools: dict[int, Spool], closing: ExitStack
) -> tuple[dict[str, Any], dict[tuple[Frame, ...], int]]:
    """The snapshot without its events, which go into `spools` by device; and the numbers of its stacks."""
    stacks: dict[tuple[Frame, ...], int] = {}
    numbers: list[int] = []  # ours, by those of the stream

    def take(device: int, event: dict[str, Any]) -> None:
        if device not in spools:
            spools[device] = Spool(run_dir)
            closing.callback(spools[device].close)
        try:
            number = stream.stack_number(event.get("frames"))
            if number == len(numbers):
                frames = next(reversed(stream.stacks))
                # Frames that our own export made of the span are no stack.
                numbers.append(-1 if frames[0][1] == SPAN_FILE else stacks.setdefault(frames, len(stacks)))
            spools[device].add(event, numbers[number] if number >= 0 else -1)
        except ValueError as error:
            raise NotASnapshot(f"{path}: {error}", hint=_HOW_TO_RECORD) from error

    try:
        file = closing.enter_context(open(path, "rb"))
    except OSError as error:
        raise NotASnapshot(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    stream = PickleStream(file, str(path), take)
    snapshot = stream.read()
    for spool in spools.values():
        try:
            spool.flush()
        except ValueError as error:
            raise NotASnapshot(f"{path}: {error}", hint=_HOW_TO_RECORD) from error
    return snapshot, stacks


def _device(path: Path, spools: dict[int, Spool]) -> int:
    """The device that the rank worked on: the one with most events."""
    if not spools:
        raise NotASnapshot(f"{path} has no events: nothing was recorded", hint=_HOW_TO_RECORD)
    return max(spools, key=lambda device: spools[device].num_events)


def _segments(path: Path, snapshot: dict[str, Any], device: int) -> list[dict[str, Any]]:
    """Those of `device`, with what a replay needs of them."""
    segments = snapshot.get("segments", [])
    try:
        return [_segment(segment) for segment in segments if segment.get("device", 0) == device]
    except (AttributeError, KeyError, TypeError) as error:
        raise NotASnapshot(f"{path} has a damaged segment: {type(error).__name__} {error}") from error


def _segment(segment: dict[str, Any]) -> dict[str, Any]:
    blocks, at = [], _whole(segment["address"])
    for block in segment["blocks"]:
        # Before torch 2.0.1 a block had no address: they lie one behind the other.
        address, size = _whole(block.get("address", at)), _whole(block["size"])
        # Older versions call it active_awaiting_free.
        state = (
            block["state"] if block["state"] in ("inactive", "active_allocated") else "active_pending_free"
        )
        blocks.append({"address": address, "size": size, "state": state})
        at = address + size
    return {
        "address": _whole(segment["address"]),
        "total_size": _whole(segment["total_size"]),
        "is_expandable": bool(segment.get("is_expandable", False)),
        "blocks": blocks,
    }


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is no number of bytes")
    return value


def _settings(found: Any) -> dict[str, Any]:
    """What of the allocator's settings decides sizes; other values than torch writes are passed over."""
    found = found if isinstance(found, dict) else {}
    limit, divisions = found.get("max_split_size"), found.get("roundup_power2_divisions")
    if not isinstance(divisions, dict):
        divisions = {}
    conf = found.get("PYTORCH_CUDA_ALLOC_CONF")
    return {
        "PYTORCH_CUDA_ALLOC_CONF": conf if isinstance(conf, str) else "",
        "expandable_segments": found.get("expandable_segments") is True,
        "max_split_size": limit if isinstance(limit, int) else -1,
        "roundup_power2_divisions": {
            key: steps
            for key, steps in divisions.items()
            if isinstance(key, str) and key.isdecimal() and isinstance(steps, int)
        },
    }


def _difference(replay: BlockReplay, segments: list[dict[str, Any]]) -> int:
    """Between the end of the replay and the segments of the snapshot, in the curve where it is largest."""
    blocks = [(block["state"], block["size"]) for segment in segments for block in segment["blocks"]]
    allocated: int = sum(size for state, size in blocks if state == "active_allocated")
    active: int = sum(size for state, size in blocks if state != "inactive")
    reserved: int = sum(segment["total_size"] for segment in segments)
    return max(
        abs(replay.allocated - allocated), abs(replay.active - active), abs(replay.reserved - reserved)
    )


def _doubts(
    rank: int, path: Path, device: int, spools: dict[int, Spool], replay: BlockReplay, error: int
) -> list[str]:
    lines = [
        f"rank {rank}: {path} has {spool.num_events:,} events of cuda:{other} too; left out, cuda:{device} has more"
        for other, spool in spools.items()
        if other != device
    ]
    if error:
        lines.append(
            f"rank {rank}: the events of {path} end {error:,} bytes away from its segments: "
            "some are missing, or recording was switched off before the snapshot"
        )
    if replay.num_strays:
        lines.append(f"rank {rank}: {replay.num_strays:,} events of {path} do not fit the blocks before them")
    return lines


def _finish(imported: list[Imported], run_dir: Path, name: str) -> None:
    """What the driver of a run leaves."""
    from ray_memprof import db, report
    from ray_memprof.collect import gather, write_driver_tables
    from ray_memprof.exporters import memory_events

    gather(run_dir, [one.rank for one in imported])
    config = {"name": name, "imported": [_source(one) for one in imported]}
    conf = imported[0].settings["PYTORCH_CUDA_ALLOC_CONF"]
    environment = {"PYTORCH_CUDA_ALLOC_CONF": conf} if conf else {}
    run = {
        "run_id": run_dir.name,
        "name": name,
        "source": "cuda",
        "workload": "script",
        "num_ranks": len(imported),
        "config": json.dumps(config),
        "environment": json.dumps(environment),
        "git_commit": "",
        "versions": "{}",
        "start_ns": min(one.written.start_ns for one in imported),
        "end_ns": max(one.written.end_ns for one in imported),
        "status": "ok",
        "exit_code": 0,
        "reason": "",
    }
    write_driver_tables(run_dir, run, [_rank_row(one) for one in imported])
    problems = [line for one in imported for line in one.problems]
    facts = {**run, "config": config, "environment": environment, "problems": problems}
    (run_dir / RUN_FILE).write_text(json.dumps({**facts, "versions": {}, "hint": ""}, indent=2) + "\n")
    # JSON is YAML too.
    (run_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    db.build(run_dir)
    memory_events.write(run_dir)
    report.write(run_dir)


def _source(one: Imported) -> dict[str, Any]:
    return {
        "rank": one.rank,
        "file": str(one.path.resolve()),
        "bytes": one.path.stat().st_size,
        "device": one.device,
        "allocator_settings": one.settings,
    }


def _rank_row(one: Imported) -> dict[str, Any]:
    written = one.written
    return {
        "rank": one.rank, "node": 0, "node_id": "", "host": "", "clock_offset_ns": 0, "pid": 0,
        "local_rank": one.device,
        "gpu_index": one.device, "gpu_uuid": "", "gpu_name": "", "device_total_bytes": 0,
        "ulysses": 0, "ring": 0, "fsdp": 0, "status": "ok", "exit_code": 0, "reason": "", "path": "", "step": -1,
        "num_events": written.num_events, "num_lost_events": 0,
        "num_checks": 1, "max_error_bytes": written.max_error_bytes,
        "allocated_peak_bytes": written.allocated_peak, "replayed_allocated_peak_bytes": written.allocated_peak,
        "reserved_peak_bytes": written.reserved_peak, "replayed_reserved_peak_bytes": written.reserved_peak,
        "recorder_ns": 0, "longest_pause_ns": 0, "recorder_bytes": 0,
    }  # fmt: skip
