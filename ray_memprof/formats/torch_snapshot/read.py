"""Imports snapshots of torch's allocator, of any program and one file per rank, as a run for every question.

    $ ray-memprof import dump/rank*.pickle --name theirs
    import_snapshots([Path("rank0.pickle"), Path("rank1.pickle")], run_dir, "theirs")

Takes what torch.cuda.memory._dump_snapshot() wrote after _record_memory_history() had been switched on. Leaves a run
folder: spans, allocs and stacks of each rank, run.json, run.duckdb, memory_events.json and report.html.

What an imported run says and what it does not:

* The row of runs has the kind of device as its source (device_names.py: "cuda", "xpu" ...), workload "script" and
  status "ok", or "oom" if a trace has such an event. Its configuration lists the files under "imported". A file of
  several devices gives a rank for each device, see rank_numbers.py.
* A run of the CPU that this project exported keeps its source; the sizes in its events count, no block is rounded.
* Blocks, curves and peaks are replayed. The replay begins with the state that before_trace.py finds and ends at the
  segments of the snapshot: ranks.max_error_bytes is the difference there, num_checks is 1. If the settings do not tell
  what blocks took, the events may prove it (block_sizes.py); ranks.inexact_bytes bounds what nothing proves, and
  ranks.peak_at_least says that the peak may lie before the first event (certainty.py). A snapshot has no counters of
  the program, so allocated_peak_bytes and reserved_peak_bytes repeat the replayed ones.
* A stretch of events with the same user_metadata is a span of that name, at depth 0; a stretch without user_metadata
  is a span "imported". In snapshots that this project exported, the text is the path of a span, and spans nest again.
* Memory outside the allocator is not in a snapshot: device_used is reserved, host_rss is 0.

On two cores ten million events (0.8 GiB) take less than a minute, see scripts/bench_import.py. While a file is read,
16 bytes in memory are kept for each event, and the disk of the run folder must have room for half the file's size.
"""

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_memprof.allocator.doubt import pool_of
from ray_memprof.allocator.rules import SETTINGS_VARIABLES
from ray_memprof.errors import EXIT_DEVICE_OOM, EXIT_OK, DiskFull
from ray_memprof.formats.torch_snapshot.certainty import follow
from ray_memprof.formats.torch_snapshot.device_names import CUDA, NOT_TOLD, kind_of, numbered_device
from ray_memprof.formats.torch_snapshot.event_shapes import Run
from ray_memprof.formats.torch_snapshot.events_to_rows import Rows, Written
from ray_memprof.formats.torch_snapshot.pickle_reader import PickleStream
from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot
from ray_memprof.formats.torch_snapshot.rank_numbers import check_files, files_by_rank, gaps, numbered
from ray_memprof.formats.torch_snapshot.snapshot_parts import (
    Blocks,
    FrameLine,
    as_address,
    as_bytes,
)
from ray_memprof.formats.torch_snapshot.spool import MAX_TOTAL_BYTES, Spool
from ray_memprof.formats.torch_snapshot.write import HOST_SOURCES, MARK, SPAN_FILE
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import CONFIG_FILE, LOGS_DIR, RUN_FILE, TABLES_DIR, manifest_path, table_dir
from ray_memprof.store.run_tables import run_columns, write_driver_tables
from ray_memprof.store.schema import RANK_TABLES
from ray_memprof.store.whole_file import disk_error, write_whole_text
from ray_memprof.wording import size_text

MAX_TEXTS = 10_000
"""The most different values of user_metadata in a file; with more, they do not name spans."""
_MOST_LETTERS = 4096
_MOST_STEPS = 2**16
_INSTEAD = "name a folder on another one: --output-dir"
_HOW_TO_RECORD = "call torch.cuda.memory._record_memory_history() first, then _dump_snapshot() at the end"


@dataclass(frozen=True, slots=True)
class Imported:
    """A rank that was imported: one device of one file."""

    rank: int
    path: Path
    device: int
    written: Written
    settings: dict[str, Any]
    problems: tuple[str, ...]
    source: str = CUDA
    """The kind of the device, or one of HOST_SOURCES if this project exported the file."""


@dataclass(slots=True)
class _Stacks:
    """Python stacks of a file, without those that our own export made of the names of spans."""

    ids: list[int]
    """Ids of stacks, by the number that the stream gave; -1: made of the names of spans."""
    frames: list[tuple[FrameLine, ...]]
    """Frames of stacks, by id."""


def import_snapshots(
    paths: Sequence[Path],
    run_dir: Path,
    name: str,
    say: Callable[[str], None] = lambda line: None,
    *,
    derive: Callable[[Path, list[str]], object] = lambda run_dir, problems: None,
) -> list[str]:
    """Make the run folder `run_dir`; returns what is doubtful about the run, one line each.

    Args:
        paths: a file for each rank, or for each process if a process worked on several devices.
        run_dir: the folder to make.
        name: of the run.
        say: takes a line for each rank, with its file and device, and a second line if it ran out of memory.
        derive: writes what is derived from the tables; may add to what is doubtful.

    Raises:
        NotASnapshot: a file is no snapshot; nothing is left of the run.
        DiskFull: no room for the run.
    """
    files, named = files_by_rank(paths)
    check_files(list(files.values()))
    try:
        (run_dir / LOGS_DIR).mkdir(parents=True)
        (run_dir / TABLES_DIR).mkdir()
    except OSError as error:
        raise disk_error("import", run_dir, error, instead=_INSTEAD) from error
    try:
        imported = _import_all(files, run_dir, named=named)
        _say_ranks(imported, say, is_counted=not named and len(files) > 1)
        problems = [line for one in imported for line in one.problems]
        _write_facts(imported, run_dir, name, problems)
        derive(run_dir, problems)
    except BaseException as error:
        shutil.rmtree(run_dir)
        with suppress(OSError):  # there may be other runs of that name
            run_dir.parent.rmdir()
        if isinstance(error, OSError):
            raise disk_error("import", run_dir, error, instead=_INSTEAD) from error
        if isinstance(error, DiskFull):  # its own hint is for a run that is being recorded
            raise DiskFull(str(error), hint=f"make room on that disk, or {_INSTEAD}") from error
        raise
    return problems


def _say_ranks(imported: list[Imported], say: Callable[[str], None], *, is_counted: bool) -> None:
    for one in imported:
        say(f"rank {one.rank}: {one.path}, {_device_name(one)}")
        if reason := _reason(one):
            say(f"rank {one.rank}: {reason}")
    if is_counted:
        say("the paths name no ranks (rank0, rank_1, ...): they are numbered in natural order")
    if missing := gaps([one.rank for one in imported]):
        say(f"there is no file of rank {missing}")


def _device_name(one: Imported) -> str:
    if one.source in HOST_SOURCES:
        return f"host memory ({one.source})"
    if one.source == NOT_TOLD:
        return f"device {one.device} (the file does not say of what kind)"
    return f"{one.source}:{one.device}"


def _import_all(files: Mapping[int, Path], run_dir: Path, *, named: bool) -> list[Imported]:
    """All ranks, in order; several files are read in a process each, because decoding uses only one core."""
    waiting = run_dir / "waiting"
    folders = [waiting / str(number) for number in files]
    num_workers = min(len(files), os.cpu_count() or 1)
    if num_workers == 1:
        found = [import_file(path, folder) for path, folder in zip(files.values(), folders, strict=True)]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            futures = [
                pool.submit(import_file, path, folder)
                for path, folder in zip(files.values(), folders, strict=True)
            ]
            try:
                found = [one.result() for one in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    counted = [{one.device: one.written.num_events for one in several} for several in found]
    placed = numbered(list(zip(files, counted, strict=True)), named=named)
    imported = [
        _adopt(one, folder, run_dir, ranks[one.device])
        for several, ranks, folder in zip(found, placed, folders, strict=True)
        for one in several
    ]
    shutil.rmtree(waiting)
    return sorted(imported, key=lambda one: one.rank)


def _adopt(one: Imported, folder: Path, run_dir: Path, rank: int) -> Imported:
    """Move the tables of a device from `folder` to the place for those of `rank` in `run_dir`."""
    for table in RANK_TABLES:
        source, target = table_dir(folder, table, one.device), table_dir(run_dir, table, rank)
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    manifest_path(folder, one.device).rename(manifest_path(run_dir, rank))
    return replace(one, rank=rank, problems=tuple(f"rank {rank}: {line}" for line in one.problems))


def import_rank(path: Path, run_dir: Path, rank: int) -> Imported:
    """Write the tables of one rank from a file with one device; the caller writes the rest of the run folder.

    Raises:
        NotASnapshot: the file is no snapshot, or has several devices.
        DiskFull: no room for the tables.
    """
    waiting = run_dir / "waiting"
    found = import_file(path, waiting)
    if len(found) > 1:
        raise NotASnapshot(f"{path} has {len(found)} devices: it is no file of one rank")
    imported = _adopt(found[0], waiting, run_dir, rank)
    shutil.rmtree(waiting)
    return imported


def import_file(path: Path, folder: Path) -> list[Imported]:
    """Write the tables of each device with events into `folder`, with the device's number in place of a rank.

    Raises:
        NotASnapshot: the file is no snapshot.
        DiskFull: no room for the tables.
    """
    with ExitStack() as closing:
        folder.mkdir(parents=True)
        spools: dict[int, Spool] = {}
        snapshot, stacks = _read(path, folder, spools, closing)
        if not spools:
            raise NotASnapshot(f"{path} has no events: nothing was recorded", hint=_HOW_TO_RECORD)
        segments, source = _segments(path, snapshot)
        imported = [
            _import_device(
                path, snapshot, device, spools[device], segments.pop(device, []), stacks, folder, source
            )
            for device in sorted(spools)
        ]
    silent = tuple(
        f"{path} has no events of {source}:{device}, which holds {size_text(held)}: this device is no rank of the run"
        for device, several in sorted(segments.items())
        if (held := sum(segment["total_size"] for segment in several))
    )
    imported[0] = replace(imported[0], problems=imported[0].problems + silent)
    return imported


def _import_device(
    path: Path,
    snapshot: dict[str, Any],
    device: int,
    spool: Spool,
    segments: list[dict[str, Any]],
    stacks: _Stacks,
    folder: Path,
    source: str,
) -> Imported:
    settings = _settings(snapshot.get("allocator_settings"))
    named = spool.num_texts <= MAX_TEXTS
    is_host = source in HOST_SOURCES
    make_rows = partial(Rows, folder, device, named=named, nested=MARK in snapshot, is_host=is_host)
    spool.stack_ids = stacks.ids
    followed = follow(make_rows, spool, list[Mapping[str, Any]](segments), settings, stacks.frames)
    problems = followed.problems(path)
    if not named:
        problems.append(
            f"the events of {path} carry {spool.num_texts:,} different texts, which would be as many "
            f"spans or more; with more than {MAX_TEXTS:,} texts, all events are in one span"
        )
    return Imported(device, path, device, followed.written, settings, tuple(problems), source)


def _source_of(snapshot: Mapping[str, Any], kinds: Collection[str]) -> str:
    """The source of the run if this project exported it; otherwise the kind of its devices.

    Raises:
        ValueError: its segments are on devices of several kinds.
    """
    mark = snapshot.get(MARK)
    source = mark.get("source") if isinstance(mark, dict) else None
    if isinstance(source, str) and (source in HOST_SOURCES or re.fullmatch("[a-z][a-z0-9_]{0,31}", source)):
        return source
    return kind_of(snapshot.get("allocator_settings"), kinds)


def _read(
    path: Path, folder: Path, spools: dict[int, Spool], closing: ExitStack
) -> tuple[dict[str, Any], _Stacks]:
    """The snapshot without its events, and its stacks; the events go into `spools` by device."""

    def spool_of(device: int) -> Spool:
        if device not in spools:
            spools[device] = Spool(folder)
            closing.callback(spools[device].close)
        return spools[device]

    def take(device: int, event: dict[str, Any]) -> None:
        spool_of(device).add(event, stream.stack_number(event.get("frames")))

    def take_run(device: int, run: Run) -> None:
        numbers, text = np.unique(run.texts, return_inverse=True)
        # -2 means that the event has no text or no stack.
        texts = [stream.objects[number] if number >= 0 else "" for number in numbers.tolist()]
        stacks, stack = np.unique(run.stacks, return_inverse=True)
        known = [
            stream.stack_number(stream.objects[number] if number >= 0 else None) for number in stacks.tolist()
        ]
        spool_of(device).add_run(run, texts, text, np.array(known)[stack])

    try:
        file = closing.enter_context(open(path, "rb"))
    except OSError as error:
        raise NotASnapshot(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    stream = PickleStream(file, str(path), take, take_run)
    try:
        snapshot = stream.read()
        for spool in spools.values():
            spool.flush()
    except ValueError as error:
        raise NotASnapshot(f"{path}: {error}", hint=_HOW_TO_RECORD) from error
    stacks = _Stacks([], [])
    for frames in stream.stacks:
        is_span = frames[0][1] == SPAN_FILE
        stacks.ids.append(-1 if is_span else len(stacks.frames))
        if not is_span:
            stacks.frames.append(frames)
    return snapshot, stacks


def _segments(path: Path, snapshot: dict[str, Any]) -> tuple[dict[int, list[dict[str, Any]]], str]:
    """The segments of each device, with what a replay needs of them; and the source of the run."""
    found: dict[int, list[dict[str, Any]]] = {}
    kinds: set[str] = set()
    total_bytes = 0
    try:
        for segment in snapshot.get("segments") or ():
            one = _segment(segment)
            total_bytes += one["total_size"]
            kind, number = numbered_device(segment.get("device", 0))
            kinds |= {kind} if kind else set()
            found.setdefault(number, []).append(one)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotASnapshot(f"{path} has a damaged segment: {type(error).__name__} {error}") from error
    if total_bytes > MAX_TOTAL_BYTES:
        raise NotASnapshot(f"{path} has segments of {total_bytes:,} bytes in all, which no device has")
    try:
        return found, _source_of(snapshot, kinds)
    except ValueError as error:
        raise NotASnapshot(f"{path}: {error}") from error


def _segment(segment: dict[str, Any]) -> dict[str, Any]:
    address, blocks = as_address(segment["address"]), segment["blocks"]
    if not isinstance(blocks, Blocks):
        raise TypeError("its blocks are no list")
    blocks.place(address)
    return {
        "address": address,
        "total_size": as_bytes(segment["total_size"]),
        "stream": as_address(segment.get("stream", 0)),
        "is_expandable": segment.get("is_expandable", False) is True,
        "pool": pool_of(segment.get("segment_pool_id")),
        "blocks": blocks,
    }


def _settings(found: Any) -> dict[str, Any]:
    """The settings of the allocator that decide sizes; values that torch does not write are left out."""
    found = found if isinstance(found, dict) else {}
    settings: dict[str, Any] = {}
    conf = found.get(SETTINGS_VARIABLES[0])
    if isinstance(conf, str) and len(conf) <= _MOST_LETTERS:
        settings[SETTINGS_VARIABLES[0]] = conf
    if isinstance(is_expandable := found.get("expandable_segments"), bool):
        settings["expandable_segments"] = is_expandable
    limit = found.get("max_split_size")
    if type(limit) is int and -1 <= limit < 2**63:
        settings["max_split_size"] = limit
    if isinstance(divisions := found.get("roundup_power2_divisions"), dict):
        settings["roundup_power2_divisions"] = {
            key: steps
            for key, steps in divisions.items()
            if re.fullmatch("[0-9]{1,6}", key) and type(steps) is int and 0 <= steps <= _MOST_STEPS
        }
    return settings


def _write_facts(imported: list[Imported], run_dir: Path, name: str, problems: list[str]) -> None:
    """Write what the driver of a run leaves: its tables, run.json and config.yaml."""
    gather(run_dir, [one.rank for one in imported])
    config = {"name": name, "imported": [_source(one) for one in imported]}
    conf = imported[0].settings.get(SETTINGS_VARIABLES[0], "")
    sources = {one.source for one in imported}
    if len(sources) > 1:
        raise NotASnapshot(
            f"the files are of runs on {' and on '.join(sorted(sources))}: one run cannot be both",
            hint="import them under two names",
        )
    reasons = [f"rank {one.rank}: {reason}" for one in imported if (reason := _reason(one))]
    environment = {SETTINGS_VARIABLES[0]: conf} if conf else {}
    facts = {
        "run_id": run_dir.name,
        "name": name,
        "num_ranks": len(imported),
        "environment": environment,
        "start_ns": min(one.written.start_ns for one in imported),
        "end_ns": max(one.written.end_ns for one in imported),
        "status": "oom" if reasons else "ok",
        "exit_code": EXIT_DEVICE_OOM if reasons else EXIT_OK,
        "reason": reasons[0] if reasons else "",
    }
    # Files name no configuration: what they are of shows in their content.
    known = {"source": sources.pop(), "workload": "script"}
    write_driver_tables(run_dir, run_columns(facts, config) | known, [_rank_row(one) for one in imported])
    facts |= {**known, "config": config, "git_commit": "", "versions": {}, "hint": "", "problems": problems}
    write_whole_text(run_dir / RUN_FILE, json.dumps(facts, indent=2) + "\n")
    # JSON is YAML too.
    write_whole_text(run_dir / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def _reason(one: Imported) -> str:
    """Why a rank ended, if it ran out of memory; empty: it did not."""
    num_ooms, last = one.written.num_ooms, one.written.last_oom
    if last is None:
        return ""
    times = "" if num_ooms == 1 else f"; it ran out {num_ooms:,} times, this is the last"
    after = one.written.num_allocs - last.num_allocs
    if after:
        times += f"; the program went on after it, with {after:,} more allocations"
    free = (
        "what was" if last.free_bytes is None else f"{size_text(last.free_bytes)} ({last.free_bytes:,} bytes)"
    )
    unknown = " is not known" if last.free_bytes is None else ""
    return (
        f"device out of memory in {last.path}: asked for {size_text(last.asked_bytes)} "
        f"({last.asked_bytes:,} bytes), {free} free on {_device_name(one)}{unknown}{times}"
    )


def _source(one: Imported) -> dict[str, Any]:
    return {
        "rank": one.rank,
        "file": str(one.path.resolve()),
        "bytes": one.path.stat().st_size,
        "device": one.device,
        "allocator_settings": one.settings,
    }


def _rank_row(one: Imported) -> dict[str, Any]:
    written, reason = one.written, _reason(one)
    return {
        "rank": one.rank, "node": 0, "node_id": "", "host": "", "clock_offset_ns": 0, "pid": 0,
        "local_rank": one.device,
        "gpu_index": one.device, "gpu_uuid": "", "gpu_name": "", "device_total_bytes": 0,
        "ulysses": 0, "ring": 0, "cfg": 0, "fsdp": 0,
        "status": "oom" if reason else "ok", "exit_code": EXIT_DEVICE_OOM if reason else EXIT_OK, "reason": reason,
        "path": written.last_oom.path if written.last_oom else "", "step": -1,
        "num_events": written.num_events, "num_lost_events": 0,
        "num_checks": 1, "max_error_bytes": written.max_error_bytes,
        "inexact_bytes": written.inexact_bytes, "peak_at_least": written.peak_at_least,
        "allocated_peak_bytes": written.allocated_peak, "replayed_allocated_peak_bytes": written.allocated_peak,
        "reserved_peak_bytes": written.reserved_peak, "replayed_reserved_peak_bytes": written.reserved_peak,
        "recorder_ns": 0, "longest_pause_ns": 0, "recorder_bytes": 0,
    }  # fmt: skip
