"""What was recorded of a rank: its settings, what it retried, and what was outside the allocator."""

from pathlib import Path

from recorded_runs import write_recorded
from run_tables import blank, span

from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.rules import Rules
from ray_memprof.analysis.recorded_rank import RecordedRank, recorded_rules

MIB = 2**20


def test_a_rank_without_events_is_empty(tmp_path: Path) -> None:
    found = RecordedRank(write_recorded(tmp_path, Columns()), 0)
    assert (found.curve, found.reserved_peak, found.requests.steps) == ([], 0, [])
    assert (found.rules, found.device_bytes, found.num_lost) == (Rules(), None, 0)


def test_what_was_outside_counts_from_the_event_behind_it(tmp_path: Path) -> None:
    allocator = CachingAllocator()
    allocator.alloc(3 * MIB)
    ledger = [
        blank("ledger", t_ns=2, account="nccl", bytes=7),
        blank("ledger", t_ns=0, account="context", bytes=5),
        blank("ledger", t_ns=9, account="others", bytes=11),
    ]
    found = RecordedRank(write_recorded(tmp_path, allocator.take_events(), tables={"ledger": ledger}), 0)
    assert found.outside(with_others=True) == [(0, 5), (1, 12), (2, 23)]
    assert found.outside(with_others=False) == [(0, 5), (1, 12)]
    assert (found.curve, found.reserved_peak) == ([20 * MIB] * 2, 20 * MIB)


def test_segments_that_grew_are_seen(tmp_path: Path) -> None:
    allocator = CachingAllocator(Rules(expandable_segments=True))
    allocator.alloc(3 * MIB)
    spans = [span(4, "denoise", (0, 9), step=2)]
    found = RecordedRank(write_recorded(tmp_path, allocator.take_events(), tables={"spans": spans}), 0)
    assert found.rules == Rules(expandable_segments=True)
    assert (found.spans[4]["path"], found.spans[4]["step"]) == ("denoise", 2)


def test_the_rules_of_a_rank_are_those_of_its_snapshot_or_of_its_environment() -> None:
    text = "large_segment_size_mb:32,max_split_size_mb:128"
    told = {"PYTORCH_CUDA_ALLOC_CONF": text, "max_split_size": 64 * MIB}
    imported = {"imported": [{"rank": 1, "allocator_settings": told}]}
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert recorded_rules(imported, environment, 1) == Rules(
        max_split_bytes=64 * MIB, large_segment_bytes=32 * MIB
    )
    assert recorded_rules(imported, environment, 0) == Rules(expandable_segments=True)
    # Torch reads the older name first.
    both = environment | {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:32"}
    assert recorded_rules({}, both, 0) == Rules(max_split_bytes=32 * MIB)
    assert recorded_rules({}, {}, 0) == Rules()
