"""Gather: nothing there, sealed parts checked, dead ranks recovered, other nodes' files, disks full."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_tables import blank

import ray_memprof.store.gather as collect_module
from ray_memprof.errors import DiskFull
from ray_memprof.store import transfer
from ray_memprof.store.gather import Gathered, RankRows, gather
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import OPEN_STREAM, manifest_path, part_name, table_dir
from ray_memprof.store.run_tables import write_driver_tables
from ray_memprof.store.schema import SCHEMA_VERSION
from ray_memprof.store.transfer import Chunk, Remote, TransportError, remove, send
from ray_memprof.store.writer_lock import has_ended, hold

ROOT = Path(__file__).resolve().parents[3]


def ledger(*values: int) -> dict[str, Any]:
    num = len(values)
    return {"t_ns": values, "span_id": [1] * num, "account": ["nccl"] * num, "bytes": values}


def seal(run_dir: Path, rank: int, *parts: tuple[int, ...]) -> None:
    store = RankStore(run_dir, rank)
    for values in parts:
        store.append("ledger", ledger(*values))
        store.seal()
    store.close()


def leave_open(run_dir: Path, rank: int, *batches: tuple[int, ...]) -> Path:
    """What a killed process leaves: the store is not closed."""
    store = RankStore(run_dir, rank)
    for values in batches:
        store.append("ledger", ledger(*values))
    return table_dir(run_dir, "ledger", rank) / OPEN_STREAM


def values_of(run_dir: Path, rank: int) -> list[int]:
    parts = sorted(table_dir(run_dir, "ledger", rank).glob("*.parquet"))
    return [value for part in parts for value in pq.ParquetFile(part).read()["bytes"].to_pylist()]


def listing(run_dir: Path) -> list[str]:
    return sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())


def found(rank: int, rows: int, recovered: int = 0, *problems: str) -> RankRows:
    return RankRows(
        rank=rank,
        rows=Counter({"ledger": rows} if rows else {}),
        recovered=Counter({"ledger": recovered} if recovered else {}),
        problems=list(problems),
    )


def gathered(*ranks: RankRows, problems: tuple[str, ...] = (), received: tuple[int, ...] = ()) -> Gathered:
    told = tuple(line for one in ranks for line in one.problems)
    return Gathered(
        ranks={one.rank: one for one in ranks}, problems=problems + told, received=frozenset(received)
    )


def test_no_ranks_give_nothing(tmp_path: Path) -> None:
    assert gather(tmp_path, []) == Gathered(ranks={}, problems=())


def test_a_rank_that_never_wrote_is_told(tmp_path: Path) -> None:
    missing = f"rank 0: recorded nothing: there is no {manifest_path(tmp_path, 0)}"
    assert gather(tmp_path, [0]) == gathered(found(0, 0, 0, missing))


def test_sealed_parts_are_counted_and_left_alone(tmp_path: Path) -> None:
    seal(tmp_path, 0, (1, 2), (3,))
    seal(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}
    assert gather(tmp_path, range(2)) == gathered(found(0, 3), found(1, 0))
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


@pytest.mark.parametrize("name", ["run:2", "s3:", "file:run", "q?a=b"])
def test_a_folder_is_a_folder_whatever_its_name_looks_like(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path(name) / "run"
    seal(run_dir, 0, (1, 2), (3,))
    leave_open(run_dir, 1, (4, 5))
    assert gather(run_dir, range(2)) == gathered(found(0, 3), found(1, 2, 2))


def test_an_open_stream_becomes_the_next_part_once(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    store.append("ledger", ledger(1, 2))
    store.seal()
    store.append("ledger", ledger(3))
    store.append("ledger", ledger(4))
    assert gather(tmp_path, [0]) == gathered(found(0, 4, 2))
    assert values_of(tmp_path, 0) == [1, 2, 3, 4]
    assert listing(tmp_path) == [
        "tables/ledger/rank=0/part-00000.parquet",
        "tables/ledger/rank=0/part-00001.parquet",
        "tables/manifest-rank=0.jsonl",
    ]
    assert gather(tmp_path, [0]) == gathered(found(0, 4))


KILLED = """
import os, signal, sys
from pathlib import Path
from ray_memprof.store.rank_store import RankStore
store = RankStore(Path(sys.argv[1]), 0, seal_rows=1000)
for value in range(2500):
    store.append("ledger", {"t_ns": [value], "span_id": [1], "account": ["nccl"], "bytes": [value]})
print("written", flush=True)
for value in range(2500, 10**9):
    store.append("ledger", {"t_ns": [value], "span_id": [1], "account": ["nccl"], "bytes": [value]})
"""


def test_nothing_of_a_process_killed_while_it_writes_is_lost(tmp_path: Path) -> None:
    for attempt in range(5):
        run_dir = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(run_dir)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=30) == -signal.SIGKILL
        rows = gather(run_dir, [0]).ranks[0].rows["ledger"]
        assert rows >= 2500
        assert values_of(run_dir, 0) == list(range(rows))


def test_the_unreadable_end_of_a_stream_is_told_and_left_out(tmp_path: Path) -> None:
    stream = leave_open(tmp_path, 0, (1, 2), (3,))
    os.truncate(stream, stream.stat().st_size - 3)
    first_batch = tmp_path / "shorter"
    lost = stream.stat().st_size - leave_open(first_batch, 0, (1, 2)).stat().st_size
    told = (
        f"rank 0: the last {lost:,} bytes of ledger cannot be read; the rank ended while it wrote them. "
        "2 rows before them are kept"
    )
    assert gather(tmp_path, [0]) == gathered(found(0, 2, 2, told))
    assert values_of(tmp_path, 0) == [1, 2]


def test_a_stream_of_nothing_but_a_head_goes(tmp_path: Path) -> None:
    stream = leave_open(tmp_path, 0, (1,))
    stream.write_bytes(b"")
    assert gather(tmp_path, [0]) == gathered(found(0, 0))
    assert listing(tmp_path) == ["tables/manifest-rank=0.jsonl"]


def died_before_rename(run_dir: Path) -> None:
    stream = leave_open(run_dir, 0, (1, 2))
    stream.with_name(part_name(0) + ".tmp").write_bytes(b"half a part")


def died_before_the_manifest(run_dir: Path) -> None:
    seal(run_dir, 0, (1, 2))
    data = (table_dir(run_dir, "ledger", 0) / part_name(0)).read_bytes()
    for path in run_dir.rglob("*.*"):
        path.unlink()
    stream = leave_open(run_dir, 0, (1, 2))
    stream.with_name(part_name(0)).write_bytes(data)


def died_in_the_manifest(run_dir: Path) -> None:
    died_before_the_manifest(run_dir)
    manifest_path(run_dir, 0).write_bytes(b'{"table": "ledger", "file": "part-000')


def died_before_the_stream_went(run_dir: Path) -> None:
    died_before_the_manifest(run_dir)
    part = table_dir(run_dir, "ledger", 0) / part_name(0)
    line = {"table": "ledger", "file": part.name, "rows": 2, "bytes": part.stat().st_size}
    manifest_path(run_dir, 0).write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("died", "recovered"),
    [
        (died_before_rename, 2),
        (died_before_the_manifest, 2),
        (died_in_the_manifest, 2),
        (died_before_the_stream_went, 0),
    ],
)
def test_a_rank_that_died_while_sealing_gives_each_row_once(
    tmp_path: Path, died: Callable[[Path], None], recovered: int
) -> None:
    died(tmp_path)
    assert gather(tmp_path, [0]) == gathered(found(0, 2, recovered))
    assert values_of(tmp_path, 0) == [1, 2]
    assert listing(tmp_path) == ["tables/ledger/rank=0/part-00000.parquet", "tables/manifest-rank=0.jsonl"]
    assert gather(tmp_path, [0]) == gathered(found(0, 2))


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    seal(tmp_path, 0, (1, 2), (3,))
    (table_dir(tmp_path, "ledger", 0) / part_name(0)).unlink()
    told = "rank 0: tables/ledger/rank=0/part-00000.parquet is missing: 2 rows are lost"
    assert gather(tmp_path, [0]) == gathered(found(0, 1, 0, told))


def test_a_damaged_part_is_set_aside(tmp_path: Path) -> None:
    seal(tmp_path, 0, (1, 2), (3,))
    part = table_dir(tmp_path, "ledger", 0) / part_name(0)
    size = part.stat().st_size
    os.truncate(part, size - 10)
    told = (
        f"rank 0: tables/ledger/rank=0/part-00000.parquet is damaged: {size - 10:,} bytes and no footer instead of "
        f"{size:,} and 2 rows; set aside as *.damaged"
    )
    assert gather(tmp_path, [0]) == gathered(found(0, 1, 0, told))
    assert values_of(tmp_path, 0) == [3]
    again = (
        "rank 0: tables/ledger/rank=0/part-00000.parquet is damaged, see part-00000.parquet.damaged: "
        "2 rows are lost"
    )
    assert gather(tmp_path, [0]) == gathered(found(0, 1, 0, again))


def test_a_part_that_the_manifest_lacks_is_kept_and_told_once(tmp_path: Path) -> None:
    seal(tmp_path, 0, (1, 2), (3,))
    manifest = manifest_path(tmp_path, 0)
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("garbage\n" + lines[1])
    told = [
        f"rank 0: line 1 of {manifest} cannot be read",
        "rank 0: tables/ledger/rank=0/part-00000.parquet is not in the manifest; kept",
    ]
    assert gather(tmp_path, [0]) == gathered(found(0, 3, 0, *told))
    assert gather(tmp_path, [0]) == gathered(found(0, 3))


def remote(folder: Path, *ranks: int, chunk_bytes: int = 100) -> Remote:
    return Remote(where=f"b:{folder}", ranks=ranks, chunks=send(folder, ranks, chunk_bytes=chunk_bytes))


def test_nothing_is_sent_of_an_empty_folder(tmp_path: Path) -> None:
    assert list(send(tmp_path, [0, 1])) == []


def test_the_flight_record_of_nccl_is_sent_with_the_logs_of_its_rank(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("rank1.log", "rank11.log", "nccl_trace_rank1", "nccl_trace_rank11"):
        (tmp_path / "logs" / name).write_bytes(b"x")
    assert [name for name, _ in send(tmp_path, [1])] == ["logs/rank1.log", "logs/nccl_trace_rank1"]


def test_files_of_another_node_arrive_whole_and_are_recovered_here(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    seal(here, 0, (1,))
    seal(there, 1, (2, 3))
    leave_open(there, 2, (4,), (5,))
    seal(there, 3, (6,))  # not asked for
    (there / "logs").mkdir()
    (there / "logs" / "rank1.log").write_text("a line\n" * 100)
    (there / "logs" / "rank2.log").write_text("")
    (there / "logs" / "rank11.log").write_text("of another rank")
    assert gather(here, range(3), [remote(there, 1, 2)]) == gathered(
        found(0, 1), found(1, 2), found(2, 2, 2), received=(1, 2)
    )
    assert [values_of(here, rank) for rank in range(3)] == [[1], [2, 3], [4, 5]]
    assert (here / "logs" / "rank1.log").read_text() == "a line\n" * 100
    assert [name for name in listing(here) if not name.startswith("tables/ledger")] == [
        "logs/rank1.log",
        "logs/rank2.log",
        *(f"tables/manifest-rank={rank}.jsonl" for rank in range(3)),
    ]


def test_what_was_sent_is_removed_and_what_others_wrote_beside_it_stays(tmp_path: Path) -> None:
    """GIVEN two nodes of one host, whose ranks write into the same folder THEN each goes with its own files."""
    there = tmp_path / "there"
    seal(there, 1, (2, 3))
    leave_open(there, 2, (4,))
    (there / "logs").mkdir()
    for rank in (1, 2):
        (there / "logs" / f"rank{rank}.log").write_text("a line\n")
    of_rank_2 = [name for name in listing(there) if "rank=2" in name or "rank2" in name]
    remove(there, [1])
    assert listing(there) == of_rank_2 != []
    assert not table_dir(there, "ledger", 1).exists()
    remove(there, [2])
    assert list(tmp_path.iterdir()) == []


def test_what_no_rank_wrote_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    remove(tmp_path, [0])
    assert listing(tmp_path) == ["notes/mine.txt"]


def test_a_transfer_that_breaks_off_is_told_with_what_is_missing(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    seal(there, 1, (2, 3), (4,))

    def torn() -> Iterator[Chunk]:
        for name, data in send(there, [1], chunk_bytes=100):
            yield name, data
            if name.endswith(part_name(1)):
                raise TransportError("node lost")

    gone = "rank 1: tables/ledger/rank=1/part-00001.parquet is missing: 1 rows are lost"
    broken = "rank 1: not all came from b:/scratch: node lost"
    sent = Remote(where="b:/scratch", ranks=(1,), chunks=torn())
    assert gather(here, [1], [sent]) == gathered(found(1, 2, 0, gone), problems=(broken,))
    assert not list(here.rglob("*.tmp"))


def test_what_is_still_written_on_another_node_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's ranks do not count as received, so nothing is removed; the last file that it sent counts as torn."""
    here, there = tmp_path / "here", tmp_path / "there"
    seal(there, 1, (2, 3))
    seal(there, 2, (4,))
    monkeypatch.setattr(transfer, "has_ended", lambda path: has_ended(path, 0.1))
    with hold(manifest_path(there, 2)):
        told = gather(here, [1, 2], [remote(there, 1, 2)])
    unended = f"ranks 1 and 2: not all came from b:{there}: the records of rank 2 are still being written"
    torn = "rank 2: tables/ledger/rank=2/part-00000.parquet is missing: 1 rows are lost"
    assert (told.problems, told.received) == ((unended, torn), frozenset())
    assert values_of(here, 1) == [2, 3]
    told = gather(here, [1, 2], [remote(there, 1, 2)])
    assert (told.problems, told.received) == ((), {1, 2})
    assert [values_of(here, rank) for rank in (1, 2)] == [[2, 3], [4]]


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "tables/../../up", ""])
def test_a_path_out_of_the_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    sent = Remote(where="b", ranks=(0,), chunks=[("first", b"x"), (name, b"x")])
    with pytest.raises(ValueError, match="a file of a run must lie in its folder"):
        gather(tmp_path / "run", [0], [sent])
    assert not (tmp_path / "up").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/some-file")


def test_a_full_disk_of_the_driver_says_where_the_records_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    seal(there, 1, (1,))
    monkeypatch.setattr(collect_module.os, "fsync", full)
    with pytest.raises(DiskFull) as raised:
        gather(tmp_path / "here", [1], [remote(there, 1)])
    assert str(raised.value) == (
        "the driver: cannot write /run/some-file: No space left on device; "
        f"the records of rank 1 are in b:{there}"
    )
    assert not list((tmp_path / "here").rglob("*.tmp"))


def test_a_full_disk_while_recovering_keeps_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_open(tmp_path, 0, (1, 2))
    with monkeypatch.context() as patched:
        patched.setattr(collect_module.os, "fsync", full)
        with pytest.raises(
            DiskFull, match=f"No space left on device; the records of rank 0 are in {tmp_path}"
        ):
            gather(tmp_path, [0])
    assert gather(tmp_path, [0]) == gathered(found(0, 2, 2))


def test_driver_tables_hold_what_was_given(tmp_path: Path) -> None:
    run = {name: value for name, value in blank("runs", run_id="a").items() if name != "schema_version"}
    write_driver_tables(tmp_path, run, [{"rank": 3, **blank("ranks", host="h")}])
    write_driver_tables(tmp_path, run, [{"rank": 3, **blank("ranks", host="h2")}])  # written anew, not added
    rows = pq.ParquetFile(table_dir(tmp_path, "runs") / part_name(0)).read().to_pylist()
    assert rows == [{**run, "schema_version": SCHEMA_VERSION}]
    rows = pq.ParquetFile(table_dir(tmp_path, "ranks", 3) / part_name(0)).read().to_pylist()
    assert rows == [blank("ranks", host="h2")]


def test_driver_tables_want_every_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs needs the columns config, "):
        write_driver_tables(tmp_path, {"run_id": "a"}, [])
