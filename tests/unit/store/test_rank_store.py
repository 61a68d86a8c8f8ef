"""Store: nothing appended, parts and streams on disk, rows refused, disks full, processes killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_tables import blank

import ray_memprof.store.rank_store as store_module
from ray_memprof.errors import DiskFull
from ray_memprof.store.parts import read_stream, write_part
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import OPEN_STREAM, manifest_path, part_name, table_dir
from ray_memprof.store.schema import RANK_TABLES, TABLES

LEDGER = {"t_ns": [1, 2], "span_id": [1, 1], "account": ["nccl", "context"], "bytes": [5, -5]}


def ledger(*values: int) -> dict[str, Any]:
    return {
        "t_ns": np.array(values),
        "span_id": np.array(values),
        "account": ["nccl"] * len(values),
        "bytes": values,
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.ParquetFile(path).read().to_pylist()


def manifest(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest_path(run_dir, 0).read_text().splitlines()]


def listing(run_dir: Path) -> list[str]:
    return sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())


def test_nothing_appended_leaves_an_empty_manifest(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    store.append("ledger", ledger())
    store.seal()
    store.close()
    assert listing(tmp_path) == ["tables/manifest-rank=0.jsonl"]
    assert manifest(tmp_path) == []


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    store.append("ledger", LEDGER)
    store.append("ledger", {**LEDGER, "account": pa.array(["others", "nccl"]).dictionary_encode()})
    store.close()
    part = table_dir(tmp_path, "ledger", 0) / part_name(0)
    first = [
        {"t_ns": 1, "span_id": 1, "account": "nccl", "bytes": 5},
        {"t_ns": 2, "span_id": 1, "account": "context", "bytes": -5},
    ]
    second = [{**first[0], "account": "others"}, {**first[1], "account": "nccl"}]
    assert rows_of(part) == first + second
    assert pq.read_schema(part).remove_metadata().equals(TABLES["ledger"].schema.remove_metadata())
    assert listing(tmp_path) == [
        "tables/ledger/rank=0/part-00000.parquet",
        "tables/manifest-rank=0.jsonl",
    ]
    assert manifest(tmp_path) == [
        {"table": "ledger", "file": "part-00000.parquet", "rows": 4, "bytes": part.stat().st_size}
    ]


def test_every_table_of_a_rank_takes_a_blank_row(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    rows = {name: blank(name) for name in RANK_TABLES}
    for name, row in rows.items():
        store.append(name, {column: [value] for column, value in row.items() if value is not None})
    store.close()
    found = {name: rows_of(table_dir(tmp_path, name, 0) / part_name(0)) for name in rows}
    assert found == {name: [row] for name, row in rows.items()}


def test_a_stream_is_sealed_after_enough_rows_and_the_next_one_begins(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0, seal_rows=3)
    for value in range(5):
        store.append("ledger", ledger(value))
    folder = table_dir(tmp_path, "ledger", 0)
    assert sorted(path.name for path in folder.iterdir()) == [OPEN_STREAM, part_name(0)]
    assert read_stream(folder / OPEN_STREAM).table["t_ns"].to_pylist() == [3, 4]
    store.close()
    assert [line["rows"] for line in manifest(tmp_path)] == [3, 2]
    assert [row["t_ns"] for number in (0, 1) for row in rows_of(folder / part_name(number))] == list(range(5))


def test_an_old_stream_is_sealed_at_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now)
    store = RankStore(tmp_path, 0, seal_s=30)
    store.append("ledger", ledger(1))
    now = 129.0
    store.append("ledger", ledger(2))
    assert manifest(tmp_path) == []
    now = 130.0
    store.append("ledger", ledger(3))
    assert [line["rows"] for line in manifest(tmp_path)] == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": [1, 2]}, "ledger has no column colour; it has t_ns, span_id, account, bytes"),
        ({"bytes": None}, "ledger needs the columns bytes too"),
        ({"bytes": [1]}, "ledger: columns differ in length: {'t_ns': 2, 'span_id': 2, 'account': 2, 'bytes': 1}"),
        ({"bytes": [1, None]}, "ledger.bytes must not be null; 1 values are"),
        ({"bytes": [1, "two"]}, "ledger.bytes takes int64: "),
        ({"account": [1, 2]}, "ledger.account takes dictionary<values=string, indices=int32, ordered=0>: "),
        ({"bytes": np.array([1.5, 2.0])}, "ledger.bytes takes int64: "),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**LEDGER, **change}.items() if value is not None}
    store = RankStore(tmp_path, 0)
    with pytest.raises(ValueError) as raised:
        store.append("ledger", given)
    assert str(raised.value).startswith(message)
    store.append("ledger", LEDGER)
    store.close()
    assert [line["rows"] for line in manifest(tmp_path)] == [2]


def test_a_second_store_of_a_rank_is_refused(tmp_path: Path) -> None:
    RankStore(tmp_path, 0).close()
    with pytest.raises(DiskFull, match="rank 0: cannot write .*manifest-rank=0.jsonl: File exists"):
        RankStore(tmp_path, 0)


def test_a_closed_store_takes_no_rows_and_may_be_closed_again(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    store.close()
    store.close()
    with pytest.raises(DiskFull, match="rank 0: ledger is closed"):
        store.append("ledger", LEDGER)


def test_several_threads_lose_no_row(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0, seal_rows=50)

    def write(thread: int) -> None:
        for value in range(100):
            store.append("ledger", ledger(1000 * thread + value))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    parts = sorted(table_dir(tmp_path, "ledger", 0).iterdir())
    values = [row["t_ns"] for part in parts for row in rows_of(part)]
    assert sorted(values) == sorted(1000 * thread + value for thread in range(4) for value in range(100))
    assert [line["rows"] for line in manifest(tmp_path)] == [50] * 8


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_sealing_keeps_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RankStore(tmp_path, 0)
    store.append("ledger", LEDGER)
    store.append("samples", {name: [value] for name, value in blank("samples").items()})
    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "fsync", full)
        with pytest.raises(DiskFull) as raised:
            store.seal()
    part = table_dir(tmp_path, "samples", 0) / part_name(0)
    assert str(raised.value) == f"rank 0: cannot write {part}: No space left on device"
    assert raised.value.hint.startswith("make room on that disk")
    with pytest.raises(DiskFull, match="No space left on device"):
        store.append("samples", {name: [value] for name, value in blank("samples").items()})
    store.append("spans", {name: [value] for name, value in blank("spans").items()})
    store.close()
    assert listing(tmp_path) == [
        "tables/ledger/rank=0/open.arrows",
        "tables/manifest-rank=0.jsonl",
        "tables/samples/rank=0/open.arrows",
        "tables/spans/rank=0/part-00000.parquet",  # a table without rows to seal at that time goes on
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_appending_ends_the_table(tmp_path: Path) -> None:
    folder = table_dir(tmp_path, "ledger", 0)
    folder.mkdir(parents=True)
    (folder / OPEN_STREAM).symlink_to("/dev/full")
    store = RankStore(tmp_path, 0)
    for _ in range(2):
        with pytest.raises(DiskFull) as raised:
            store.append("ledger", LEDGER)
        assert str(raised.value) == f"rank 0: cannot write {folder / OPEN_STREAM}: No space left on device"
    store.close()
    assert manifest(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ray_memprof.store.rank_store import RankStore
store = RankStore(Path(sys.argv[1]), 0, seal_rows=100)
for value in range(250):
    store.append("ledger", {"t_ns": [value], "span_id": [1], "account": ["nccl"], "bytes": [value]})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_row_that_was_appended(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [line["rows"] for line in manifest(tmp_path)] == [100, 100]
    rows = read_stream(table_dir(tmp_path, "ledger", 0) / OPEN_STREAM)
    assert (rows.part, rows.num_lost_bytes) == (2, 0)
    assert rows.table["bytes"].to_pylist() == list(range(200, 250))


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_stream_cut_anywhere_gives_its_complete_batches(tmp_path: Path, cut: int) -> None:
    store = RankStore(tmp_path, 0)
    sizes = []
    stream = table_dir(tmp_path, "ledger", 0) / OPEN_STREAM
    for value in range(3):
        store.append("ledger", ledger(value))
        sizes.append(stream.stat().st_size)
    data = stream.read_bytes()
    assert len(data) == sizes[-1]
    kept = len(data) - cut
    stream.write_bytes(data[:kept])
    rows = read_stream(stream, suspicious=True)
    whole = [value for value, size in enumerate(sizes) if size <= kept]
    assert rows.table["t_ns"].to_pylist() == whole
    assert rows.num_lost_bytes == kept - sizes[len(whole) - 1]


@pytest.mark.parametrize("data", [b"", b"\xff", b"not a stream at all, and long enough to be one"])
def test_a_stream_without_a_head_is_all_lost(tmp_path: Path, data: bytes) -> None:
    stream = tmp_path / OPEN_STREAM
    stream.write_bytes(data)
    rows = read_stream(stream)
    assert (rows.part, rows.table.num_rows, rows.num_lost_bytes) == (-1, 0, len(data))


def test_a_part_keeps_its_dictionaries_when_words_change_from_batch_to_batch(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    for word in ("nccl", "context", "libraries"):
        store.append("ledger", {**ledger(*range(1000)), "account": [word] * 1000})
    store.close()
    metadata = pq.ParquetFile(table_dir(tmp_path, "ledger", 0) / part_name(0)).metadata
    group = metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(4)}
    assert "DELTA_BINARY_PACKED" in encodings["t_ns"]
    assert "RLE_DICTIONARY" in encodings["account"]
    # 3,000 rows of three words: plain text would be more than 15,000 bytes.
    assert group.column(2).total_uncompressed_size < 200


def test_events_cost_at_most_twelve_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num = 50_000
    sizes = rng.choice(512 * rng.integers(1, 100_000, 300), num)
    table = pa.table(
        {
            **{name: [0] * num for name in ("stream",)},
            "seq": np.arange(num),
            "t_ns": 1000 * np.cumsum(rng.integers(1, 60, num)),
            "action": ["alloc", "free_completed"] * (num // 2),
            "size_bytes": sizes,
            "requested_bytes": sizes - sizes % 1000,
            "address": 2**41 + 512 * rng.integers(0, 2000, num),
            "span_id": np.arange(num) // 60,
            "category": ["activation", "weight"] * (num // 2),
            "stack_id": [None] * num,
        }
    )
    table = table.select(TABLES["allocs"].schema.names).cast(TABLES["allocs"].schema)
    assert write_part(tmp_path / part_name(0), table) / num <= 12


def test_a_part_holds_more_names_than_16_bits_count(tmp_path: Path) -> None:
    store, num_rows = RankStore(tmp_path, 0), 40_000
    names = [f"Model.layers.{number}" for number in range(num_rows)]
    for first in range(0, num_rows, 8_000):
        part = names[first : first + 8_000]
        rows = {
            "t_ns": [1] * len(part),
            "span_id": [0] * len(part),
            "account": part,
            "bytes": [5] * len(part),
        }
        store.append("ledger", rows)
    store.close()
    (path,) = table_dir(tmp_path, "ledger", 0).glob("*.parquet")
    assert pq.read_table(path, partitioning=None).column("account").to_pylist() == names


def test_parts_of_16_and_of_32_bits_read_as_one_table(tmp_path: Path) -> None:
    """GIVEN a part of a run that an earlier version recorded, beside one of this version."""
    for name, index in (("a", pa.int16()), ("b", pa.int32())):
        words = pa.array([name, "nccl"]).dictionary_encode().cast(pa.dictionary(index, pa.string()))
        write_part(tmp_path / f"part-{name}.parquet", pa.table({"account": words}))
    for files in (["a", "b"], ["b", "a"]):
        paths = [str(tmp_path / f"part-{name}.parquet") for name in files]
        rows = duckdb.read_parquet(paths).fetchall()
        assert sorted(rows) == [("a",), ("b",), ("nccl",), ("nccl",)]
