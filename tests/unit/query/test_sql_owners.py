"""Whose tensors are: what owners say goes before what spans say, for every question that names a category."""

from pathlib import Path

from run_tables import answer, blank, columns, event, make_run, span

from ray_memprof.query.database import query

SPANS = [
    span(1, "script", (0, 90), allocated=(0, 0, 170)),
    span(2, "script/load.GPT", (1, 9), parent_id=1, component="GPT", allocated=(0, 60, 60), stage="load.GPT"),
    span(
        3,
        "script/GPT",
        (10, 40),
        parent_id=1,
        component="GPT",
        module="GPT",
        allocated=(60, 100, 170),
        stage="forward",
    ),
    span(
        4,
        "script/GPT/comm.buckets",
        (11, 12),
        parent_id=3,
        component="GPT",
        allocated=(60, 70, 70),
        stage="forward",
    ),
]
EVENTS = [
    event(-1, "alloc", 5, "before", address=9),
    event(1, "alloc", 60, "weight", address=1, span_id=2),
    event(11, "alloc", 10, "communication", address=2, span_id=4),
    event(13, "alloc", 20, "activation", address=3, span_id=3),
    event(14, "alloc", 80, "activation", address=4, span_id=3),
    event(15, "free_requested", 20, "activation", address=3, span_id=3),
    event(16, "free_completed", 20, "activation", address=3, span_id=3),
    event(17, "alloc", 20, "activation", address=3, span_id=3),
]
OWNERS = [
    blank("owners", seq=-1, t_ns=2, owner="GPT.mask", component="GPT", category="buffer", dtype="bool"),
    blank("owners", seq=1, t_ns=2, owner="Linear.weight", category="weight"),
    # The last row of an allocation counts.
    blank(
        "owners", seq=1, t_ns=5, owner="GPT.wte.weight", component="GPT", category="weight", dtype="float32"
    ),
    blank(
        "owners",
        seq=11,
        t_ns=20,
        owner="GPT.wte.weight",
        component="GPT",
        category="gradient",
        dtype="float32",
    ),
    blank("owners", seq=13, t_ns=20, owner="GPT.a", component="GPT", category="gradient", dtype="bfloat16"),
    blank(
        "owners",
        seq=14,
        t_ns=20,
        owner="GPT.a exp_avg",
        component="GPT",
        category="optimizer",
        dtype="float32",
    ),
]


def recorded(run_dir: Path) -> Path:
    return make_run(run_dir, {0: {"spans": SPANS, "allocs": EVENTS, "owners": OWNERS}})


def test_alive_at_peak_goes_by_owners_and_buckets_stay_communication(tmp_path: Path) -> None:
    recorded(tmp_path)
    assert columns(tmp_path, "alive_at_peak_by_owner") == [
        *("rank", "owner", "component", "category", "dtype", "bytes", "num_tensors")
    ]
    assert answer(tmp_path, "alive_at_peak_by_owner") == [
        (0, "GPT.a exp_avg", "GPT", "optimizer", "float32", 80, 1),
        (0, "GPT.wte.weight", "GPT", "weight", "float32", 60, 1),
        (0, "GPT.a", "GPT", "gradient", "bfloat16", 20, 1),
        (0, "GPT.wte.weight", "GPT", "communication", "float32", 10, 1),
        (0, "GPT.mask", "GPT", "buffer", "bool", 5, 1),
    ]
    assert answer(tmp_path, "alive_at_peak") == [
        (0, "GPT", "optimizer", "script/GPT", 80, 1),
        (0, "GPT", "weight", "script/load.GPT", 60, 1),
        (0, "GPT", "gradient", "script/GPT", 20, 1),
        (0, "GPT", "communication", "script/GPT/comm.buckets", 10, 1),
        (0, "GPT", "buffer", None, 5, 1),
    ]


def test_an_allocation_without_an_owner_goes_by_its_span(tmp_path: Path) -> None:
    """The one at seq 17 is at the place of one that had an owner; seen only by how long categories last."""
    recorded(tmp_path)
    last = query(tmp_path, "categories_over_time").to_pylist()[-1]
    held = {
        name.removesuffix("_bytes"): value
        for name, value in last.items()
        if name.endswith("_bytes") and value
    }
    assert held == {
        "active": 175, "reserved": 175,
        "weight": 60, "buffer": 5, "optimizer": 80, "activation": 20, "communication": 10,
    }  # fmt: skip


def test_categories_change_at_the_free_of_what_has_an_owner(tmp_path: Path) -> None:
    recorded(tmp_path)
    rows = {row["t_ns"]: row for row in query(tmp_path, "categories_over_time").to_pylist()}
    assert [(rows[now]["gradient_bytes"], rows[now]["activation_bytes"]) for now in (13, 14, 16, 17)] == [
        (20, 0), (20, 0), (0, 0), (0, 20)
    ]  # fmt: skip


def test_base_memory_is_what_parameters_and_buffers_took_at_most(tmp_path: Path) -> None:
    recorded(tmp_path)
    assert answer(tmp_path, "base_memory") == [(0, "GPT", 65, 1, 8)]


def test_base_memory_of_what_was_made_on_the_device_has_no_visit(tmp_path: Path) -> None:
    events = [event(1, "alloc", 60, "activation", address=1), event(2, "alloc", 30, "activation", address=2)]
    events += [event(3, "free_completed", 60, "activation", address=1), event(4, "alloc", 7, address=1)]
    owners = [
        blank("owners", seq=seq, t_ns=9, owner="Net.a", component="Net", category="weight")
        for seq in (1, 2, 4)
    ]
    make_run(tmp_path, {0: {"allocs": events, "owners": owners}})
    assert answer(tmp_path, "base_memory") == [(0, "Net", 90, 0, 0)]


def test_base_memory_leaves_out_what_loading_and_sharding_hold_meanwhile(tmp_path: Path) -> None:
    """Net is whole, then each rank keeps half of it; a copy of it is held meanwhile, and a buffer comes later."""
    spans = [
        span(1, "script", (0, 90), allocated=(0, 35, 190)),
        span(2, "script/residency.shard", (5, 9), parent_id=1, component="Net", allocated=(90, 45, 180)),
        span(3, "script/other", (20, 29), parent_id=1, component="Other", allocated=(45, 60, 60)),
    ]
    events = [
        event(1, "alloc", 90, "activation", address=1, span_id=1),
        event(6, "alloc", 90, "weight", address=2, span_id=2),
        event(7, "alloc", 45, "weight", address=3, span_id=2),
        event(8, "free_completed", 90, "weight", address=1, span_id=2),
        event(9, "free_completed", 90, "weight", address=2, span_id=2),
        event(12, "alloc", 7, "activation", address=4, span_id=1),
        event(13, "free_completed", 7, "activation", address=4, span_id=1),
        event(21, "alloc", 15, "activation", address=5, span_id=3),
    ]
    owners = [
        blank("owners", seq=seq, t_ns=9, owner="Net.a", component="Net", category="weight")
        for seq in (1, 6, 7, 12)
    ]
    owners.append(blank("owners", seq=21, t_ns=22, owner="Other.a", component="Other", category="weight"))
    make_run(tmp_path, {0: {"spans": spans, "allocs": events, "owners": owners}})
    assert answer(tmp_path, "base_memory") == [(0, "Net", 52, 0, 0), (0, "Other", 15, 0, 0)]
    assert answer(tmp_path, "component_visits") == []


def test_a_component_that_only_the_name_of_its_loading_tells(tmp_path: Path) -> None:
    """GIVEN a span of loading without a component, in which the weights are held twice."""
    spans = [span(1, "load.dit", (5, 9), allocated=(0, 45, 135)), span(2, "load.vae", (10, 12))]
    events = [
        event(6, "alloc", 90, "weight", address=1, span_id=1),
        event(7, "alloc", 45, "weight", address=2, span_id=1),
        event(8, "free_completed", 90, "weight", address=1, span_id=1),
        event(20, "alloc", 3, "weight", address=3),
    ]
    owners = [
        blank("owners", seq=seq, t_ns=9, owner="dit.a", component="dit", category="weight")
        for seq in (6, 7, 20)
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events, "owners": owners}})
    assert answer(tmp_path, "base_memory") == [(0, "dit", 48, 1, 4), (0, "vae", 0, 1, 2)]


def test_largest_allocations_go_by_owners(tmp_path: Path) -> None:
    recorded(tmp_path)
    rows = [row[:7] for row in answer(tmp_path, "largest_allocations")]
    assert rows == [
        (0, 80, 80, "optimizer", "GPT", "script/GPT", 1),
        (0, 60, 60, "weight", "GPT", "script/load.GPT", 1),
        (0, 20, 20, "activation", "GPT", "script/GPT", 1),
        (0, 20, 20, "gradient", "GPT", "script/GPT", 1),
        (0, 10, 10, "communication", "GPT", "script/GPT/comm.buckets", 1),
        (0, 5, 5, "buffer", "GPT", None, 1),
    ]
