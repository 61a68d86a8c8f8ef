"""Questions about a run as a whole, its hosts and its blocks: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import Row, answer, blank, columns, event, make_ranks, make_run, span

SECOND = 10**9


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Three ranks on two hosts; the third one is of no known host and only waits."""
    first = [
        span(1, "encode.text", (0, 10 * SECOND), allocated=(0, 4, 9), host_rss=(100, 140, 150), num_allocs=5),
        span(
            2,
            "denoise",
            (10 * SECOND, 13 * SECOND),
            allocated=(4, 4, 20),
            reserved=(6, 30, 30),
            active=(4, 4, 21),
            device_used=(36, 60, 60),
            host_rss=(140, 130, 145),
            step=0,
            num_allocs=7,
            num_retries=1,
        ),
        span(
            3,
            "denoise",
            (13 * SECOND, 14 * SECOND),
            allocated=(4, 4, 18),
            reserved=(30, 30, 30),
            host_rss=(130, 135, 135),
            step=1,
            num_allocs=7,
        ),
    ]
    second = [
        span(1, "encode.text", (0, 2 * SECOND), allocated=(0, 4, 9), host_rss=(90, 95, 150)),
        span(2, "denoise", (2 * SECOND, 4 * SECOND), allocated=(4, 4, 10), host_rss=(95, 95, 95), step=0),
    ]
    third = [span(3, "denoise", (0, 14 * SECOND), host_rss=(10, 20, 30))]
    ledger = [blank("ledger", t_ns=0, account="nccl", bytes=11), blank("ledger", account="context", bytes=9)]
    sample = blank("samples", t_ns=5, device_used_bytes=62)
    make_run(
        tmp_path,
        {
            0: {"spans": first, "ledger": ledger, "samples": [sample]},
            1: {"spans": second},
            2: {"spans": third},
        },
    )
    return make_ranks(
        tmp_path,
        {"host": "a", "gpu_name": "H"},
        {"host": "a", "gpu_name": "G"},
        run_id="r",
        name="n",
        source="cuda",
        workload="wan",
        versions='{"torch": "2.13.0"}',
        git_commit="c",
        status="oom",
        reason="rank 1: out of memory",
        start_ns=5,
        end_ns=25,
    )


def test_nothing_recorded_gives_no_rows(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {}})
    for name in (
        "run_overview",
        "measures",
        "host_memory",
        "activation_by_block",
        "headlines",
        "memory_parts",
    ):
        assert answer(tmp_path, name) == []


def test_run_overview(run_dir: Path) -> None:
    assert columns(run_dir, "run_overview") == [
        *("run_id", "name", "source", "workload", "num_ranks", "gpu_name", "torch", "git_commit"),
        *("status", "reason", "duration_ns", "duration_error_ns", "num_steps"),
        *("allocated_peak_bytes", "reserved_peak_bytes", "peak_at_least"),
        *("device_used_peak_bytes", "num_samples", "host_rss_peak_bytes"),
    ]
    about = ("r", "n", "cuda", "wan", 3, "H", "2.13.0", "c", "oom", "rank 1: out of memory")
    assert answer(run_dir, "run_overview") == [(*about, 20, None, 2, 20, 30, False, 62, 1, 150)]


def test_a_run_that_ended_before_a_rank_recorded_is_a_run_nevertheless(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {}})
    make_ranks(tmp_path, run_id="r", status="failed", start_ns=1, end_ns=3)
    about = ("r", "", "", "", 0, None, None, "", "failed", "", 2, None)
    assert answer(tmp_path, "run_overview") == [(*about, None, None, None, False, None, None, None)]


HEADLINES = [
    *("allocated_peak_bytes", "allocated_peak_rank", "path", "step", "peak_at_least"),
    *("device_used_peak_bytes", "device_used_peak_rank", "device_total_bytes", "num_samples"),
    *("allocated_max_over_mean", "allocated_max_rank", "device_used_max_over_mean", "device_used_max_rank"),
    *("unexplained_bytes", "unexplained_fraction", "unexplained_rank"),
    *("num_ranks", "num_checked", "num_exact", "num_within", "inexact_bytes"),
]


def test_headlines_take_each_figure_from_the_rank_that_has_the_most(tmp_path: Path) -> None:
    spans = {
        0: span(1, "encode", (0, 9), allocated=(0, 0, 10), device_used=(0, 40, 40), num_samples=3),
        1: span(4, "denoise", (0, 9), allocated=(0, 0, 24), device_used=(0, 60, 60), num_samples=2, step=7),
        2: span(4, "decode", (0, 9), allocated=(0, 0, 24), device_used=(0, 50, 50), num_samples=0),
        3: span(4, "late", (0, 9), allocated=(0, 0, 6), device_used=(0, 60, 60), num_samples=1),
    }
    # What is left of the device: 40 of 40, 25 of 60, -55 of 50 and 60 of 60.
    context = {1: 35, 2: 105}
    make_run(
        tmp_path,
        {
            rank: {
                "spans": [one],
                "ledger": [blank("ledger", t_ns=0, account="context", bytes=context.get(rank, 0))],
            }
            for rank, one in spans.items()
        },
    )
    exact = {"num_checks": 2, "device_total_bytes": 80}
    make_ranks(
        tmp_path,
        exact,
        {**exact, "num_checks": 1, "device_total_bytes": 90},
        {**exact, "inexact_bytes": 5, "peak_at_least": True},
        {**exact, "inexact_bytes": 7, "num_lost_events": 1},
        {**exact, "inexact_bytes": 6},
        {**exact, "num_checks": 0},
    )
    assert columns(tmp_path, "headlines") == HEADLINES
    assert answer(tmp_path, "headlines") == [
        (
            *(24, 1, "denoise", 7, True),
            *(60, 1, 90, 2),
            *(24 / 16, 1, 60 / 52.5, 1),
            *(-55, -55 / 50, 2),
            *(6, 5, 2, 2, 6),
        )
    ]


def test_memory_parts_take_each_part_from_the_rank_that_has_the_most(tmp_path: Path) -> None:
    def rank(more: int, time: int) -> list[Row]:
        """Loads the DiT, takes two steps, decodes and lets the DiT go; steps and decode differ by `more`."""
        return [
            span(1, "load.dit", (0, 10 + time), allocated=(0, 50, 50), component="dit"),
            span(2, "load.vae", (20, 21), allocated=(50, 55, 55), component="vae"),
            span(3, "denoise", (30, 40), allocated=(55, 55, 75 + more), device_used=(60, 60, 90), step=0),
            span(4, "denoise", (40, 50), allocated=(55, 55, 80 - more), device_used=(60, 60, 80), step=1),
            span(5, "decode", (50, 60), allocated=(55, 55, 57 + more), device_used=(60, 60, 70)),
            span(6, "residency.offload", (60, 62), allocated=(55, 5, 55), component="dit"),
        ]

    spans = {0: rank(0, 5), 1: rank(9, 0), 2: rank(9, 5)}
    make_run(tmp_path, {number: {"spans": rows} for number, rows in spans.items()})
    make_ranks(tmp_path, {}, {"peak_at_least": True}, {})
    assert columns(tmp_path, "memory_parts") == [
        *("part", "item", "bytes", "rank", "path", "step", "num_times", "duration_ns", "is_at_least")
    ]
    assert answer(tmp_path, "memory_parts") == [
        ("total", None, 90, 0, None, None, None, None, False),
        ("tensors", None, 84, 1, "denoise", 0, None, None, True),
        ("base", "dit", 50, 0, None, None, 1, 15, False),
        ("base", "vae", 5, 0, None, None, 1, 1, False),
        ("activation", "denoise", 29, 1, None, 0, 2, None, False),
        ("activation", "decode", 11, 1, None, None, 1, None, False),
        ("switching", None, 55, 0, None, None, 3, 18, False),
    ]


def test_memory_parts_are_each_of_the_rank_with_most_of_them(tmp_path: Path) -> None:
    """GIVEN three ranks of which none has most of everything."""

    def rank(dit: int, vae: int, loop: tuple[int, int], decode: int, used: int, time: int) -> list[Row]:
        base = dit + vae
        there = {"device_used": (0, 0, used)}
        return [
            span(1, "load.dit", (0, 10 + time), allocated=(0, dit, dit), component="dit"),
            span(2, "load.vae", (20, 21), allocated=(dit, base, base), component="vae"),
            span(3, "denoise", (30, 40), allocated=(base, base, base + loop[0]), step=0, **there),
            span(4, "denoise", (40, 50), allocated=(base, base, base + loop[1]), step=1, **there),
            span(5, "decode", (50, 60), allocated=(base, base, base + decode), **there),
            span(6, "residency.offload", (60, 62), allocated=(base, vae, base), component="dit"),
        ]

    ranks = [
        rank(50, 5, (20, 25), decode=2, used=90, time=1),
        rank(60, 4, (30, 12), decode=1, used=95, time=5),
        rank(40, 9, (10, 14), decode=7, used=99, time=3),
    ]
    make_run(tmp_path, {number: {"spans": rows} for number, rows in enumerate(ranks)})
    assert answer(tmp_path, "memory_parts") == [
        ("total", None, 99, 2, None, None, None, None, False),
        ("tensors", None, 94, 1, "denoise", 0, None, None, False),
        ("base", "dit", 60, 1, None, None, 1, 15, False),
        ("base", "vae", 9, 2, None, None, 1, 1, False),
        ("activation", "denoise", 30, 1, None, 0, 2, None, False),
        ("activation", "decode", 7, 2, None, None, 1, None, False),
        ("switching", None, 64, 1, None, None, 3, 18, False),
    ]


def test_memory_parts_with_events_tell_fragmentation_and_of_an_unsampled_device_a_lower_bound(
    tmp_path: Path,
) -> None:
    spans = [
        span(
            1,
            "denoise",
            (0, 9),
            allocated=(0, 5, 5),
            reserved=(0, 20, 20),
            device_used=(0, 7, 7),
            num_samples=0,
        )
    ]
    events = [event(1, "segment_alloc", 20, span_id=1), event(2, "alloc", 5, address=1, span_id=1)]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    assert answer(tmp_path, "memory_parts") == [
        ("total", None, 7, 0, None, None, None, None, True),
        ("tensors", None, 5, 0, "denoise", None, None, None, False),
        ("activation", "denoise", 5, 0, None, None, 1, None, False),
        ("fragmentation", None, 15, 0, None, None, None, None, False),
    ]


def test_memory_parts_stand_in_the_same_order_however_large_they_are(tmp_path: Path) -> None:
    """GIVEN a device that was never measured and small parts before large ones; of equal items the names decide."""
    spans = [
        span(1, "load.vae", (0, 1), allocated=(0, 2, 2), component="vae"),
        span(2, "load.dit", (1, 2), allocated=(2, 4, 4), component="dit"),
        span(3, "load.t5", (2, 3), allocated=(4, 7, 7), component="t5"),
        span(4, "encode", (3, 4), allocated=(7, 7, 47), reserved=(7, 120, 120)),
        span(5, "decode", (4, 5), allocated=(7, 7, 47), reserved=(120, 120, 120)),
    ]
    events = [
        event(1, "segment_alloc", 7, address=1, span_id=3),
        event(2, "alloc", 7, address=1, span_id=3),
        event(3, "segment_alloc", 113, address=20, span_id=4),
        event(4, "alloc", 40, address=20, span_id=4),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    assert [row[:3] for row in answer(tmp_path, "memory_parts")] == [
        ("total", None, 0),
        ("tensors", None, 47),
        ("base", "t5", 3),
        ("base", "dit", 2),
        ("base", "vae", 2),
        ("activation", "decode", 40),
        ("activation", "encode", 40),
        ("fragmentation", None, 73),
        ("switching", None, 7),
    ]


def test_of_one_rank_no_imbalance_is_told_and_of_an_unmeasured_device_no_books(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"spans": [span(1, "denoise", (0, 9), allocated=(0, 0, 10), num_samples=0)]}})
    make_ranks(tmp_path, {"num_checks": 0})
    (row,) = answer(tmp_path, "headlines")
    told = dict(zip(HEADLINES, row, strict=True))
    assert (told["allocated_peak_bytes"], told["num_ranks"], told["num_checked"]) == (10, 1, 0)
    empty = ("allocated_max_over_mean", "allocated_max_rank", "unexplained_bytes", "unexplained_rank")
    assert [told[name] for name in empty] == [None] * 4


def test_headlines_of_ranks_that_recorded_nothing_tell_how_many_they_are(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {}})
    make_ranks(tmp_path, {}, {})
    assert answer(tmp_path, "headlines") == [(*(None,) * 16, 2, 0, 0, 0, 0)]


def test_host_memory(run_dir: Path) -> None:
    assert columns(run_dir, "host_memory") == [
        *("host", "stage", "num_ranks", "sum_peak_bytes", "max_peak_bytes", "max_rank", "grown_bytes")
    ]
    assert answer(run_dir, "host_memory") == [
        ("a", "encode.text", 2, 300, 150, 0, 45),
        ("a", "denoise", 2, 240, 145, 0, -5),
        (None, "denoise", 1, 30, 30, 2, 10),
    ]


def test_hosts_stand_in_order_and_their_stages_as_they_began(tmp_path: Path) -> None:
    """GIVEN ranks on three hosts, and one without a row of the driver; the last on c has stages in another order."""

    def rank(prepare: tuple[int, int, int], *loop: tuple[int, int, int]) -> dict[str, list[Row]]:
        steps = [
            span(2 + step, "denoise", (10 + step, 11 + step), step=step, host_rss=rss)
            for step, rss in enumerate(loop)
        ]
        return {"spans": [span(1, "prepare", (0, 10), host_rss=prepare), *steps]}

    make_run(
        tmp_path,
        {
            0: rank((10, 30, 40), (30, 50, 60), (50, 45, 55)),
            1: rank((5, 9, 20), (9, 8, 30)),
            2: rank((7, 8, 45), (8, 40, 59)),
            3: rank((1, 2, 4), (2, 3, 5)),
            4: {
                "spans": [
                    span(2, "denoise", (0, 5), host_rss=(1, 3, 6)),
                    span(3, "prepare", (5, 9), host_rss=(3, 4, 7)),
                ]
            },
            5: rank((1, 2, 2), (2, 3, 3)),
        },
    )
    make_ranks(tmp_path, *({"host": host} for host in "babcc"))
    assert answer(tmp_path, "host_memory") == [
        ("a", "prepare", 1, 20, 20, 1, 4),
        ("a", "denoise", 1, 30, 30, 1, -1),
        ("b", "prepare", 2, 85, 45, 2, 20 + 1),
        ("b", "denoise", 2, 119, 60, 0, 15 + 32),
        ("c", "prepare", 2, 11, 7, 4, 2),
        ("c", "denoise", 2, 11, 6, 4, 3),
        (None, "prepare", 1, 2, 2, 5, 1),
        (None, "denoise", 1, 3, 3, 5, 1),
    ]


def test_measures(run_dir: Path) -> None:
    assert columns(run_dir, "measures") == ["measure", "stage", "unit", "value", "is_at_least"]
    assert answer(run_dir, "measures") == [
        ("peak_active", None, "bytes", 21.0, False),
        ("peak_allocated", None, "bytes", 20.0, False),
        ("peak_device_used", None, "bytes", 62.0, False),
        ("peak_host_rss", None, "bytes", 150.0, False),
        ("peak_reserved", None, "bytes", 30.0, False),
        ("cached", None, "bytes", 0.0, False),
        ("libraries", None, "bytes", 0.0, False),
        ("nccl", None, "bytes", 11.0, False),
        ("others", None, "bytes", 0.0, False),
        ("unexplained", None, "bytes", 42.0, False),
        ("duration", None, "s", 14.0, False),
        ("imbalance", None, "", 20 / 10, False),
        ("num_allocs", None, "", 19.0, False),
        ("num_retries", None, "", 1.0, False),
        ("peak_active", "encode.text", "bytes", 0.0, False),
        ("peak_allocated", "encode.text", "bytes", 9.0, False),
        ("peak_device_used", "encode.text", "bytes", 0.0, False),
        ("peak_host_rss", "encode.text", "bytes", 150.0, False),
        ("peak_reserved", "encode.text", "bytes", 0.0, False),
        ("duration", "encode.text", "s", 10.0, False),
        ("imbalance", "encode.text", "", 1.0, False),
        ("num_allocs", "encode.text", "", 5.0, False),
        ("num_retries", "encode.text", "", 0.0, False),
        ("peak_active", "denoise", "bytes", 21.0, False),
        ("peak_allocated", "denoise", "bytes", 20.0, False),
        ("peak_device_used", "denoise", "bytes", 60.0, False),
        ("peak_host_rss", "denoise", "bytes", 145.0, False),
        ("peak_reserved", "denoise", "bytes", 30.0, False),
        ("duration", "denoise", "s", 14.0, False),
        # Of the steps 3, 1 and 2 s; rank 2 has none.
        ("step_duration", "denoise", "s", 2.0, False),
        ("imbalance", "denoise", "", 20 / 10, False),
        ("num_allocs", "denoise", "", 14.0, False),
        ("num_retries", "denoise", "", 1.0, False),
    ]


def test_measures_say_what_may_have_been_more(tmp_path: Path) -> None:
    """GIVEN a rank whose device nobody looked at inside its spans, and one that began before its first event."""
    blind = span(1, "denoise", (0, 5), device_used=(1, 2, 2), num_samples=0)
    seen = span(2, "decode", (0, 5), allocated=(0, 1, 3), device_used=(1, 2, 9), num_samples=4)
    make_run(tmp_path, {0: {"spans": [blind]}, 1: {"spans": [seen]}})
    make_ranks(tmp_path, {}, {"peak_at_least": True})
    unsure = [row[:2] for row in answer(tmp_path, "measures") if row[4]]
    tensors = ("peak_active", "peak_allocated", "peak_reserved")
    assert unsure == [
        *((name, None) for name in (*tensors[:2], "peak_device_used", tensors[2])),
        ("peak_device_used", "denoise"),
        *((name, "decode") for name in tensors),
    ]


def test_the_worst_of_several_ranks_counts_whichever_rank_that_is(tmp_path: Path) -> None:
    """GIVEN two ranks, each of which has more than the other of some things."""

    def rank(times: tuple[int, int], allocated: int, reserved: int, used: int, **measured: int) -> list[Row]:
        ends = {"allocated": allocated, "reserved": reserved, "device_used": used}
        told = {name: (0, size, size) for name, size in ends.items()}
        told |= {name: (0, allocated, measured.pop(name)) for name in ("active", "host_rss")}
        return [span(1, "denoise", times, step=0, num_samples=3, **told, **measured)]

    def tables(spans: list[Row], **accounts: int) -> dict[str, list[Row]]:
        (one,) = spans
        taken = (("segment_alloc", one["reserved_peak_bytes"]), ("alloc", one["allocated_peak_bytes"]))
        return {
            "spans": spans,
            "allocs": [
                event(seq, action, size, t_ns=one["start_ns"] + seq, address=1, span_id=1)
                for seq, (action, size) in enumerate(taken, 1)
            ],
            "ledger": [
                blank("ledger", t_ns=one["start_ns"], account=name, bytes=size)
                for name, size in accounts.items()
            ],
        }

    first = rank((1 * SECOND, 5 * SECOND), 40, 70, 90, active=44, host_rss=49, num_allocs=3, num_retries=2)
    second = rank((2 * SECOND, 8 * SECOND), 30, 80, 95, active=47, host_rss=33, num_allocs=9, num_retries=1)
    make_run(
        tmp_path,
        {
            0: tables(first, nccl=5, libraries=2, others=3),
            1: tables(second, nccl=4, libraries=6, others=1),
        },
    )
    peaks = {"active": 47, "allocated": 40, "device_used": 95, "host_rss": 49, "reserved": 80}
    # On rank 0: 70 - 40 cached, and of the rest of the 90, 10 are nobody's; on rank 1 50 and 4.
    accounts = {
        "cached": 50,
        "fragmentation": 50,
        "libraries": 6,
        "nccl": 5,
        "others": 3,
        "unexplained": 10,
    }
    counts = [("imbalance", "", 40 / 35), ("num_allocs", "", 9), ("num_retries", "", 2)]
    assert answer(tmp_path, "measures") == [
        *((f"peak_{name}", None, "bytes", size, False) for name, size in peaks.items()),
        *((name, None, "bytes", size, False) for name, size in accounts.items()),
        ("duration", None, "s", 7.0, False),
        *((name, None, unit, value, False) for name, unit, value in counts),
        *((f"peak_{name}", "denoise", "bytes", size, False) for name, size in peaks.items()),
        ("duration", "denoise", "s", 6.0, False),
        ("step_duration", "denoise", "s", 5.0, False),
        *((name, "denoise", unit, value, False) for name, unit, value in counts),
    ]


def test_activation_by_block(tmp_path: Path) -> None:
    path = "denoise/dit.block"
    about = {"component": "dit", "step": 0, "parent_id": 1}
    spans = [
        span(1, "denoise", (0, 90), step=0),
        span(2, path, (0, 10), allocated=(5, 6, 15), block=0, **about),
        span(3, f"{path}/comm.all_to_all", (1, 2), allocated=(5, 5, 99), block=0, **about),
        span(4, path, (10, 30), allocated=(5, 5, 17), block=1, **about),
        span(5, path, (30, 42), allocated=(5, 5, 18), block=0, **about),
        span(6, "t5.block", (50, 60), allocated=(5, 8, 9), block=0, component="t5"),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert columns(tmp_path, "activation_by_block") == [
        *("rank", "component", "block", "num_times", "duration_ns", "activation_peak_bytes", "kept_bytes")
    ]
    assert answer(tmp_path, "activation_by_block") == [
        (0, "dit", 0, 2, 11, 13, 1),
        (0, "dit", 1, 1, 20, 12, 0),
        (0, "t5", 0, 1, 10, 4, 3),
    ]


def test_a_run_of_events_alone_has_no_figures_of_spans(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"allocs": [event(1, "alloc", 8)]}})
    assert answer(tmp_path, "measures") == answer(tmp_path, "host_memory") == []
