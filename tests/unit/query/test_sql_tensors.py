"""Questions about single tensors and calls to the device: hand-made rows in, exact rows out."""

import random
from pathlib import Path

import pytest
from run_tables import Row, answer, blank, columns, event, make_ranks, make_run, span

from ray_memprof.query.database import open_run


@pytest.mark.parametrize(
    "name",
    [
        *("peak_event", "alive_at_peak", "largest_allocations", "churn", "device_calls"),
        *("imbalance_by_component", "peak_moment", "alive_at_peak_by_category"),
    ],
)
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def free(seq: int, size: int, category: str | None = None, **values: int) -> list[Row]:
    """Both events of a tensor that goes."""
    return [
        event(seq, "free_requested", size, category, **values),
        event(seq + 1, "free_completed", size, category, **values),
    ]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Rank 0 loads weights and peaks in its second block, rank 1 outside of its only span, rank 2 has no span."""
    spans = [
        span(1, "load.dit", (0, 10), allocated=(0, 100, 100), component="dit"),
        span(2, "denoise", (10, 90), allocated=(100, 104, 150), step=0, component="dit"),
        span(
            3, "denoise/dit.block", (20, 30), parent_id=2, allocated=(100, 108, 148), step=0, block=0,
            component="dit",
        ),
        span(
            4, "denoise/dit.block", (30, 60), parent_id=2, allocated=(108, 108, 150), step=0, block=1,
            component="dit",
        ),
    ]  # fmt: skip
    events = [
        event(1, "segment_alloc", 4096),
        event(2, "alloc", 60, "weight", address=1, span_id=1),
        event(3, "alloc", 40, "weight", address=2, span_id=1),
        event(4, "alloc", 8, "activation", address=3, span_id=3),
        event(5, "alloc", 40, "activation", address=4, span_id=3),
        *free(6, 40, "activation", address=4, span_id=3),
        event(8, "alloc", 12, "activation", address=4, span_id=4),
        event(9, "alloc", 12, "activation", address=5, span_id=4),
        event(10, "alloc", 18, None, address=6, span_id=4),
        *free(11, 18, None, address=6, span_id=4),
        event(13, "alloc", 18, "activation", address=6, span_id=4),
        *free(14, 12, "activation", address=5, span_id=4),
    ]
    outside = [
        event(1, "alloc", 5, "activation", address=1, span_id=1),
        event(2, "alloc", 7, None, address=2),
        *free(3, 7, None, address=2),
    ]
    bare = [event(1, "alloc", 3, address=9), *free(2, 3, address=9), event(4, "alloc", 2, address=9)]
    make_run(
        tmp_path,
        {
            0: {"spans": spans, "allocs": events},
            1: {"spans": [span(1, "module", (0, 2), allocated=(0, 5, 5))], "allocs": outside},
            2: {"allocs": bare},
        },
    )
    known = {"replayed_allocated_peak_bytes": 150}
    return make_ranks(tmp_path, known, {"replayed_allocated_peak_bytes": 12}, {"peak_at_least": True})


def test_peak_event(run_dir: Path) -> None:
    assert columns(run_dir, "peak_event") == [
        *("rank", "seq", "t_ns", "span_id", "stage", "component", "path", "step", "block"),
        *("allocated_bytes", "peak_at_least", "size_bytes", "category"),
    ]
    # Events 10 and 13 both reach 150: the first one counts.
    assert answer(run_dir, "peak_event") == [
        (0, 10, 10, 4, "denoise", "dit", "denoise/dit.block", 0, 1, 150, False, 18, None),
        (1, 2, 2, 0, None, None, None, None, None, 12, False, 7, None),
        (2, 1, 1, 0, None, None, None, None, None, 3, True, 3, None),
    ]


def test_of_equal_peaks_the_one_in_the_innermost_span_is_told(tmp_path: Path) -> None:
    """GIVEN a peak in a stage, and later the same in a block of another one."""
    spans = [
        span(1, "encode.text", (0, 10), allocated=(0, 0, 50)),
        span(2, "denoise", (10, 30), allocated=(0, 0, 50), step=4),
        span(3, "denoise/dit.block", (11, 19), parent_id=2, allocated=(0, 0, 50), step=4, block=6),
    ]
    events = [
        event(1, "alloc", 50, "output", address=1, span_id=1),
        *free(2, 50, "output", address=1, span_id=1),
        event(12, "alloc", 20, "activation", address=1, span_id=3),
        event(13, "alloc", 30, "activation", address=2, span_id=3),
        *free(14, 30, "activation", address=2, span_id=3),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    assert answer(tmp_path, "peak_event") == [
        (0, 13, 13, 3, "denoise", None, "denoise/dit.block", 4, 6, 50, False, 30, "activation")
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_peak_without_spans_is_found_however_the_events_lie(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows: list[Row] = []
    held: list[tuple[int, int]] = []
    most, at, seq = 0, -1, 0
    for _ in range(600):
        seq += chance.choice((1, 1, 5))
        if held and chance.random() < 0.49:
            size, address = held.pop(chance.randrange(len(held)))
            rows.append(event(seq, "free_requested", size, address=address))
        else:
            held.append((chance.choice((1, 2, 30)), seq))
            rows.append(event(seq, "alloc", held[-1][0], address=seq))
        if sum(size for size, _ in held) > most:
            most, at = sum(size for size, _ in held), seq
    make_run(tmp_path, {0: {"allocs": rows}})
    ((_, found, *_, allocated, _, _, _),) = answer(tmp_path, "peak_event")
    assert (found, allocated) == (at, most)


def test_a_peak_without_spans_may_be_the_last_event(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"allocs": [event(seq, "alloc", 1, address=seq) for seq in (5, 70)]}})
    assert answer(tmp_path, "peak_event") == [(0, 70, 70, 0, None, None, None, None, None, 2, False, 1, None)]


def test_alive_at_peak(run_dir: Path) -> None:
    assert columns(run_dir, "alive_at_peak") == [
        *("rank", "component", "category", "path", "bytes", "num_tensors")
    ]
    assert answer(run_dir, "alive_at_peak") == [
        (0, "dit", "weight", "load.dit", 100, 2),
        (0, "dit", "activation", "denoise/dit.block", 32, 3),
        (0, "dit", None, "denoise/dit.block", 18, 1),
        (1, None, None, None, 7, 1),
        (1, None, "activation", "module", 5, 1),
        (2, None, None, None, 3, 1),
    ]


def test_alive_at_peak_by_category_joins_the_spans(tmp_path: Path) -> None:
    spans = [
        span(1, "load.dit", (0, 4), allocated=(0, 9, 9), component="dit"),
        span(2, "denoise", (4, 9), allocated=(9, 30, 30), component="dit"),
        span(3, "denoise/dit.block", (5, 8), parent_id=2, allocated=(16, 30, 30), component="dit"),
        span(4, "denoise/dit.block/gather", (6, 7), parent_id=3, allocated=(20, 30, 30)),
    ]
    events = [
        event(1, "alloc", 9, "weight", address=1, span_id=1),
        event(4, "alloc", 7, "activation", address=2, span_id=2),
        event(5, "alloc", 4, "activation", address=3, span_id=3),
        event(6, "alloc", 10, "activation", address=4, span_id=4),
    ]
    make_run(tmp_path, {1: {"spans": spans, "allocs": events}, 0: {"allocs": events[:1]}})
    assert columns(tmp_path, "alive_at_peak_by_category") == [
        *("rank", "component", "category", "bytes", "num_tensors")
    ]
    assert answer(tmp_path, "alive_at_peak_by_category") == [
        (0, None, "weight", 9, 1),
        (1, "dit", "activation", 11, 2),
        (1, None, "activation", 10, 1),
        (1, "dit", "weight", 9, 1),
    ]


def test_peak_moment_is_that_of_the_event_or_else_of_what_was_seen(tmp_path: Path) -> None:
    spans = [
        span(1, "load.dit", (0, 4), allocated=(0, 9, 9), component="dit"),
        span(2, "denoise", (10, 30), allocated=(9, 9, 40), step=5, component="dit"),
    ]
    events = [
        event(1, "alloc", 9, "weight", address=1, span_id=1),
        event(13, "alloc", 31, "activation", address=2, span_id=2),
        event(14, "free_requested", 31, "activation", address=2, span_id=2),
    ]
    samples = [blank("samples", t_ns=t_ns, allocated_bytes=size) for t_ns, size in ((3, 7), (5, 8), (6, 8))]
    ranks = {0: {"spans": spans, "allocs": events}, 1: {"spans": spans}, 2: {"samples": samples}}
    # Of events alone no peak is told by rank.
    make_run(tmp_path, {**ranks, 3: {"allocs": events}})
    make_ranks(tmp_path, {}, {"peak_at_least": True}, {}, {})
    assert columns(tmp_path, "peak_moment") == [
        *("rank", "t_ns", "allocated_bytes", "peak_at_least", "is_event"),
        *("stage", "path", "step", "size_bytes", "category"),
    ]
    assert answer(tmp_path, "peak_moment") == [
        (0, 13, 40, False, True, "denoise", "denoise", 5, 31, "activation"),
        (1, 20, 40, True, False, "denoise", "denoise", 5, None, None),
        (2, 5, 8, False, False, None, None, None, None, None),
    ]


def test_what_an_earlier_chunk_left_is_cache_at_the_peak(tmp_path: Path) -> None:
    spans = [
        span(1, "decode", (0, 9), allocated=(0, 0, 15)),
        span(2, "decode/vae.chunk", (1, 4), parent_id=1, allocated=(0, 5, 5), component="vae"),
        span(3, "decode/vae.chunk", (5, 8), parent_id=1, allocated=(5, 5, 15), component="vae"),
    ]
    events = [
        event(1, "alloc", 4, "activation", address=1, span_id=2),
        event(2, "alloc", 1, "communication", address=2, span_id=2),
        event(5, "alloc", 10, "activation", address=3, span_id=3),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    path = "decode/vae.chunk"
    assert answer(tmp_path, "alive_at_peak") == [
        (0, "vae", "activation", path, 10, 1),
        (0, "vae", "cache", path, 4, 1),
        (0, "vae", "communication", path, 1, 1),
    ]


def test_largest_allocations(run_dir: Path) -> None:
    assert columns(run_dir, "largest_allocations") == [
        *("rank", "size_bytes", "requested_bytes", "category", "component", "path"),
        *("num_allocs", "median_life_ns", "num_kept"),
    ]
    block = "denoise/dit.block"
    assert answer(run_dir, "largest_allocations") == [
        (0, 60, 60, "weight", "dit", "load.dit", 1, None, 1),
        (0, 40, 40, "activation", "dit", block, 1, 1, 0),
        (0, 40, 40, "weight", "dit", "load.dit", 1, None, 1),
        (0, 18, 18, "activation", "dit", block, 1, None, 1),
        (0, 18, 18, None, "dit", block, 1, 1, 0),
        # One lived 5 ns, the other was never freed.
        (0, 12, 12, "activation", "dit", block, 2, None, 1),
        (0, 8, 8, "activation", "dit", block, 1, None, 1),
        (1, 7, 7, None, None, None, 1, 1, 0),
        (1, 5, 5, "activation", None, "module", 1, None, 1),
        (2, 3, 3, None, None, None, 1, 1, 0),
        (2, 2, 2, None, None, None, 1, None, 1),
    ]


def test_only_the_twenty_largest_sizes_are_named(tmp_path: Path) -> None:
    tensors = [event(seq, "alloc", seq, address=seq) for seq in range(1, 30)]
    segments = [event(seq, "segment_alloc", 100 + seq, address=seq) for seq in range(30, 35)]
    make_run(tmp_path, {0: {"allocs": [*tensors, *segments]}})
    assert [row[1] for row in answer(tmp_path, "largest_allocations")] == list(range(29, 9, -1))


def test_churn(run_dir: Path) -> None:
    assert columns(run_dir, "churn") == [
        *("rank", "component", "path", "num_visits", "num_allocs", "num_short", "short_bytes", "turnover")
    ]
    assert answer(run_dir, "churn") == [
        # Blocks 0 and 1: 40, and 18 and 12, came and went; the first of them added 48.
        (0, "dit", "denoise/dit.block", 2, 6, 3, 70, 70 / 48),
        (0, "dit", "load.dit", 1, 2, 0, 0, 0.0),
        (1, None, None, 1, 1, 1, 7, None),
        (1, None, "module", 1, 1, 0, 0, 0.0),
        (2, None, None, 1, 2, 1, 3, None),
    ]


def test_what_a_span_inside_freed_is_not_short_lived(tmp_path: Path) -> None:
    """GIVEN an address that is used again: its first tensor goes in a span inside, another that is born there here."""
    spans = [span(1, "a", (0, 9), allocated=(0, 0, 8)), span(2, "a/b", (2, 5), parent_id=1)]
    events = [
        event(1, "alloc", 8, address=1, span_id=1),
        *free(2, 8, address=1, span_id=2),
        event(4, "alloc", 4, address=1, span_id=2),
        *free(5, 4, address=1, span_id=1),
        event(7, "alloc", 2, address=1, span_id=1),
        *free(8, 2, address=1, span_id=1),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    assert answer(tmp_path, "churn") == [
        (0, None, "a", 1, 2, 1, 2, 2 / 8),
        (0, None, "a/b", 1, 1, 0, 0, None),
    ]


def test_device_calls(tmp_path: Path) -> None:
    block = "denoise/dit.block"
    spans = [
        span(1, "denoise", (0, 100), num_segments=2, num_retries=1),
        span(2, block, (0, 30), parent_id=1, num_segments=2, num_retries=1),
        span(3, block, (30, 40), parent_id=1),
        span(4, block, (40, 52), parent_id=1),
        span(5, block, (60, 75), parent_id=1),
        span(6, "decode", (100, 110)),
        span(7, "save", (110, 120)),
    ]
    events = [
        event(1, "segment_alloc", 100, span_id=2),
        event(2, "segment_map", 20, span_id=2),
        event(3, "alloc", 9, span_id=2),
        event(4, "segment_free", 100, span_id=5),
        event(5, "segment_unmap", 7, span_id=7),
        event(6, "segment_alloc", 3),
    ]
    counted = [
        span(1, "denoise", (0, 100), num_segments=3, num_retries=2),
        span(2, block, (0, 30), parent_id=1, num_segments=2, num_retries=2),
        span(3, block, (30, 40), parent_id=1),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}, 1: {"spans": counted}})
    assert columns(tmp_path, "device_calls") == [
        *("rank", "stage", "num_retries", "num_takes", "taken_bytes"),
        *("num_returns", "returned_bytes", "extra_ns"),
    ]
    assert answer(tmp_path, "device_calls") == [
        # Quiet blocks take 10 and 12 ns; those with calls took 30 and 15.
        (0, "denoise", 1, 2, 120, 1, 100, 19 + 4),
        (0, "save", 0, 0, None, 1, 7, None),
        (1, "denoise", 2, 3, None, None, None, 20),
    ]


def holders(extra: int) -> dict[str, list[Row]]:
    """A rank that holds 10 of the text encoder and 20 of the transformer in denoise, and `extra` more of the latter."""
    spans = [
        span(1, "encode.text", (0, 10), allocated=(0, 10, 10), component="t5"),
        span(2, "denoise", (10, 20), allocated=(10, 10, 30 + extra), component="dit"),
        span(3, "save", (20, 30), allocated=(10, 10, 10)),
    ]
    events = [
        event(1, "alloc", 10, "activation", address=1, span_id=1),
        event(2, "alloc", 20 + extra, "activation", address=2, span_id=2),
        *free(3, 20 + extra, "activation", address=2, span_id=2),
    ]
    return {"spans": spans, "allocs": events}


def test_imbalance_by_component(tmp_path: Path) -> None:
    make_run(tmp_path, {0: holders(4), 1: holders(0), 2: holders(7), 3: holders(7)})
    assert columns(tmp_path, "imbalance_by_component") == [
        *("stage", "component", "max_rank", "min_rank", "max_bytes", "min_bytes", "difference_bytes")
    ]
    assert answer(tmp_path, "imbalance_by_component") == [
        (None, "dit", 2, 1, 27, 20, 7),
        (None, "t5", 2, 1, 10, 10, 0),
        ("denoise", "dit", 2, 1, 27, 20, 7),
        ("denoise", "t5", 2, 1, 10, 10, 0),
    ]
    rows = {(row[0], row[1]): row[8:] for row in answer(tmp_path, "imbalance")}
    assert rows[None, "allocated"] == rows["denoise", "allocated"] == (2, "dit", 7)
    assert rows["encode.text", "allocated"] == rows["save", "allocated"] == (0, None, None)
    assert rows["denoise", "reserved"] == (0, None, None)


def test_a_component_that_only_one_of_the_two_holds(tmp_path: Path) -> None:
    """GIVEN a rank with a component that the other lacks, and tensors that were born in no span, on both."""
    first = [
        span(1, "load.vae", (0, 5), allocated=(3, 40, 40), component="vae"),
        span(2, "denoise", (5, 9), allocated=(40, 60, 60), component="dit"),
    ]
    second = [span(1, "denoise", (0, 9), allocated=(5, 16, 16), component="dit")]
    events = {
        0: [
            event(1, "alloc", 3, address=1),
            event(2, "alloc", 37, "weight", address=2, span_id=1),
            event(3, "alloc", 20, address=3, span_id=2),
        ],
        1: [event(1, "alloc", 5, address=1), event(2, "alloc", 11, address=2, span_id=1)],
    }
    make_run(tmp_path, {0: {"spans": first, "allocs": events[0]}, 1: {"spans": second, "allocs": events[1]}})
    told = [
        ("vae", 0, 1, 37, 0, 37),
        ("dit", 0, 1, 20, 11, 9),
        (None, 0, 1, 3, 5, -2),
    ]
    assert answer(tmp_path, "imbalance_by_component") == [
        (stage, *row) for stage in (None, "denoise") for row in told
    ]


def test_each_stage_is_blamed_on_what_was_alive_at_its_own_peak(tmp_path: Path) -> None:
    """GIVEN a rank that holds more in the loop, and another that holds more before it; three in between or below."""

    def rank(encode: int, loop: int) -> dict[str, list[Row]]:
        spans = [
            span(1, "encode.text", (0, 10), allocated=(0, 0, encode + 3), component="t5"),
            span(2, "denoise", (10, 20), allocated=(0, 0, loop + 2), component="dit"),
        ]
        events = [
            event(1, "alloc", 3, "weight", address=9, span_id=1),
            event(2, "alloc", encode, "activation", address=1, span_id=1),
            *free(3, encode, "activation", address=1, span_id=1),
            *free(5, 3, "weight", address=9, span_id=1),
            event(11, "alloc", 2, "activation", address=3, span_id=2),
            event(12, "alloc", loop, "activation", address=2, span_id=2),
            *free(13, loop, "activation", address=2, span_id=2),
        ]
        return {"spans": spans, "allocs": events}

    make_run(tmp_path, {0: rank(12, 25), 1: rank(10, 30), 2: rank(14, 22), 3: rank(11, 26)})
    assert answer(tmp_path, "imbalance_by_component") == [
        (None, "dit", 1, 2, 32, 24, 8),
        ("denoise", "dit", 1, 2, 32, 24, 8),
        ("encode.text", "t5", 2, 1, 17, 13, 4),
    ]


def test_a_component_is_blamed_only_where_both_peaks_are_known(tmp_path: Path) -> None:
    without = {"spans": [span(1, "denoise", (0, 9), allocated=(0, 0, 5))]}
    make_run(tmp_path, {0: holders(4), 1: without})
    assert answer(tmp_path, "imbalance_by_component") == []


def test_a_span_that_only_frees_has_no_churn(tmp_path: Path) -> None:
    events = [event(1, "alloc", 8, address=1, span_id=1), *free(2, 8, address=1, span_id=2)]
    spans = [span(1, "encode.text", (0, 1), allocated=(0, 8, 8)), span(2, "denoise", (1, 2))]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    assert answer(tmp_path, "churn") == [(0, None, "encode.text", 1, 1, 0, 0, 0.0)]


def test_samples_and_ledgers_alone_hold_no_tensor(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"samples": [blank("samples", allocated_bytes=5)]}})
    assert [answer(tmp_path, name) for name in ("peak_event", "alive_at_peak", "churn")] == [[], [], []]


def test_a_block_is_freed_by_the_next_free_at_its_place_if_any(tmp_path: Path) -> None:
    events = [
        event(1, "alloc", 8, address=7),
        *free(2, 8, address=7),
        event(4, "alloc", 8, address=7),
        event(5, "alloc", 4, address=8),
        event(9, "free_completed", 4, address=8),
        event(10, "free_requested", 8, address=7),
    ]
    other = [event(1, "alloc", 2, address=9), event(6, "free_completed", 3, address=7)]
    make_run(tmp_path, {0: {"allocs": events}, 1: {"allocs": other}})
    with open_run(tmp_path) as connection:
        connection.execute(
            "CREATE TEMP TABLE blocks AS SELECT rank, address, seq FROM allocs WHERE action = 'alloc'"
        )
        found = connection.execute("FROM block_frees(blocks) ORDER BY ALL").fetchall()
    assert found == [(0, 1, 3), (0, 5, 9)]
