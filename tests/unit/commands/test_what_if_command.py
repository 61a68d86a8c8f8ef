"""ray-memprof what-if: its rows and exit codes, and what is refused in one line."""

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from recorded_runs import write_recorded
from run_tables import Row, blank, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.allocator.caching import CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.replay import Columns
from ray_memprof.cli import app
from ray_memprof.errors import EXIT_CONFIG, EXIT_LIMIT, EXIT_OK

MIB = 2**20


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["what-if", *map(str, arguments)])


def program() -> Columns:
    """30 MiB, then 40, freed; then 60 MiB."""
    allocator = CachingAllocator()
    for block in [allocator.alloc(30 * MIB), allocator.alloc(40 * MIB)]:
        allocator.free(block)
    allocator.alloc(60 * MIB)
    return allocator.take_events()


def tables() -> dict[str, list[Row]]:
    """10 MiB of context and 5 of another process before the first event; a step around all events."""
    ledger = [
        blank("ledger", t_ns=0, account="context", bytes=10 * MIB),
        blank("ledger", t_ns=0, account="others", bytes=5 * MIB),
    ]
    return {"ledger": ledger, "spans": [span(1, "denoise/step", (0, 99), step=3)]}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_recorded(tmp_path, program(), tables=tables(), device_total_bytes=200 * MIB)


EXPECTED = {
    "rank": 0,
    "recorded_reserved_bytes": 130 * MIB,
    "reserved_bytes": 130 * MIB,
    "device_used_bytes": 145 * MIB,
    "device_bytes": 200 * MIB,
    "runs": True,
    "fails_in": None,
    "fails_for_bytes": None,
    "num_retries": 0,
    "smallest_device_bytes": 85 * MIB,
    "note": None,
}


def test_as_recorded_it_is_what_was_recorded(run_dir: Path) -> None:
    result = call(run_dir, "--format", "json")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    assert json.loads(result.stdout) == [EXPECTED]


def test_with_other_settings_on_a_device_that_is_named_other_processes_are_left_out(run_dir: Path) -> None:
    result = call(run_dir, "--format", "json", "--expandable-segments", "--device-memory", "90 MiB")
    assert result.exit_code == EXIT_OK
    assert json.loads(result.stdout) == [
        EXPECTED
        | {
            "reserved_bytes": 80 * MIB,
            "device_used_bytes": 90 * MIB,
            "device_bytes": 90 * MIB,
            "smallest_device_bytes": 90 * MIB,
        }
    ]


def test_a_rank_that_would_not_have_run_ends_in_exit_code_30(run_dir: Path) -> None:
    result = call(run_dir, "--device-memory", "79 MiB", "--format", "csv")
    assert result.exit_code == EXIT_LIMIT
    assert result.stderr == (
        "error: rank 0 would not have run\nhint: smallest_device_bytes says on which it does\n"
    )
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert (row["runs"], row["fails_in"], row["fails_for_bytes"]) == (
        "false", "denoise/step of step 3", str(40 * MIB),
    )  # fmt: skip
    assert (row["num_retries"], row["smallest_device_bytes"]) == ("1", str(80 * MIB))


def test_what_did_not_fit_outside_the_allocator_is_told(tmp_path: Path) -> None:
    ledger = [blank("ledger", t_ns=9, account="nccl", bytes=20 * MIB)]
    folder = write_recorded(tmp_path, program(), tables=tables() | {"ledger": ledger})
    result = call(folder, "--device-memory", "89 MiB", "--format", "json")
    (row,) = json.loads(result.stdout)
    assert (row["fails_in"], row["fails_for_bytes"]) == (
        "denoise/step of step 3 (outside the allocator)",
        20 * MIB,
    )


def test_the_recorded_settings_are_those_of_the_environment(tmp_path: Path) -> None:
    folder = write_recorded(tmp_path, program(), conf="max_split_size_mb:30", variable="PYTORCH_ALLOC_CONF")
    (row,) = json.loads(call(folder, "--format", "json").stdout)
    assert (row["reserved_bytes"], row["note"]) == (130 * MIB, None)
    folder = write_recorded(
        tmp_path / "rounded", program(), conf="large_segment_size_mb:64,roundup_power2_divisions:2"
    )
    (row,) = json.loads(call(folder, "--format", "json").stdout)
    assert row["reserved_bytes"] == (32 + 48 + 64) * MIB
    assert row["note"] == "under the recorded settings the model's peak is +10.8% off"
    result = call(folder, "--max-split-size", "32 MiB")
    assert (result.exit_code, result.stderr.splitlines()[1]) == (
        EXIT_CONFIG,
        "hint: torch takes whole MiB from 64 MiB on",
    )


def test_whether_segments_grew_is_seen_in_them_whatever_the_environment_said(tmp_path: Path) -> None:
    """A program may change the settings itself."""
    folder = write_recorded(tmp_path, program(), conf="expandable_segments:True")
    (row,) = json.loads(call(folder, "--format", "json").stdout)
    assert (row["reserved_bytes"], row["note"]) == (130 * MIB, None)


def test_a_full_device_gave_the_cache_back_when_it_was_recorded_and_does_again(tmp_path: Path) -> None:
    """The span around the one with the retry calls empty_cache() itself: that is no retry."""
    allocator = CachingAllocator(device_bytes=70 * MIB)
    for block in [allocator.alloc(30 * MIB), allocator.alloc(40 * MIB)]:
        allocator.free(block)
    allocator.alloc(60 * MIB)
    spans = [
        span(1, "denoise", (0, 99)) | {"num_retries": 1},
        span(2, "denoise/step", (0, 98), parent_id=1, step=3) | {"num_retries": 1},
    ]
    columns = allocator.take_events()
    folder = write_recorded(
        tmp_path, columns, tables={"spans": spans}, device_total_bytes=70 * MIB, span_id=2
    )
    (row,) = json.loads(call(folder, "--format", "json").stdout)
    assert (row["reserved_bytes"], row["num_retries"], row["note"]) == (70 * MIB, 1, None)
    # Outside of the inner span the same burst is a call of the program's.
    other = write_recorded(
        tmp_path / "call", columns, tables={"spans": spans}, device_total_bytes=70 * MIB, span_id=1
    )
    (row,) = json.loads(call(other, "--format", "json", "--device-memory", "200 MiB").stdout)
    assert row["reserved_bytes"] == 70 * MIB


def test_a_limit_of_splitting_is_taken(run_dir: Path) -> None:
    (row,) = json.loads(call(run_dir, "--format", "json", "--max-split-size", "20 MiB").stdout)
    # 40 MiB are 20 less than 60: the last request fits no block, and nothing is split.
    assert row["reserved_bytes"] == 130 * MIB


def test_a_run_that_ran_out_of_memory_says_that_its_end_is_not_known(tmp_path: Path) -> None:
    allocator = CachingAllocator(device_bytes=50 * MIB)
    allocator.alloc(30 * MIB)
    with pytest.raises(OutOfDeviceMemory):
        allocator.alloc(40 * MIB)
    folder = write_recorded(tmp_path, allocator.take_events(), device_total_bytes=50 * MIB)
    result = call(folder, "--format", "json")
    (row,) = json.loads(result.stdout)
    assert result.exit_code == EXIT_LIMIT
    assert (row["runs"], row["fails_for_bytes"], row["smallest_device_bytes"]) == (False, 40 * MIB, 70 * MIB)
    assert (row["recorded_reserved_bytes"], row["reserved_bytes"]) == (30 * MIB, 30 * MIB)
    assert row["note"] == "a request failed when it was recorded: what came after it is not known"
    larger = call(folder, "--format", "json", "--device-memory", "70 MiB")
    assert (larger.exit_code, json.loads(larger.stdout)[0]["runs"]) == (EXIT_OK, True)


def test_a_rank_can_be_named(tmp_path: Path) -> None:
    ranks = {
        number: {"allocs": [blank("allocs", seq=0, action="alloc", requested_bytes=1)]} for number in (0, 2)
    }
    make_run(tmp_path, ranks)
    make_ranks(tmp_path, {}, {}, {}, status="ok", config="{}", environment="{}")
    rows = json.loads(call(tmp_path, "--rank", 2, "--format", "json").stdout)
    assert [(row["rank"], row["reserved_bytes"], row["note"]) for row in rows] == [
        (2, 2 * MIB, "no event tells of a segment")
    ]
    result = call(tmp_path, "--rank", 1)
    assert result.exit_code == EXIT_CONFIG
    assert result.stderr == (
        f"error: {tmp_path} has no allocator events of rank 1\nhint: this run has them of: 0, 2\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-split-size", "19 MiB"], "--max-split-size is 19,922,944 bytes"),
        (["--max-split-size", "20.5 MiB"], "--max-split-size is 21,495,808 bytes"),
        (["--device-memory", "0 GiB"], "--device-memory is 0 bytes"),
        (["--device-memory", "24"], "--device-memory: '24' is no size"),
        (["--max-split-size", "x"], "--max-split-size: 'x' is no size"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(run_dir: Path, arguments: list[str], message: str) -> None:
    result = call(run_dir, *arguments)
    assert (result.exit_code, result.stdout) == (EXIT_CONFIG, "")
    error, hint = result.stderr.splitlines()
    assert error == f"error: {message}"
    assert hint.startswith("hint: ")


def test_runs_without_events_and_without_a_gpu_are_refused(tmp_path: Path) -> None:
    empty = write_recorded(tmp_path / "empty", Columns())
    result = call(empty)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        EXIT_CONFIG, f"error: {empty} has no allocator events",
    )  # fmt: skip
    host = tmp_path / "host"
    make_run(host, {0: {"allocs": [blank("allocs", action="alloc")]}})
    make_ranks(host, {}, source="cpu")
    result = call(host)
    assert result.exit_code == EXIT_CONFIG
    assert "ran without a GPU" in result.stderr
    assert call(tmp_path / "none").exit_code == EXIT_CONFIG
