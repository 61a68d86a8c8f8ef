"""Runs on which each rule of the diagnosis speaks, or does not: hand-made rows, a function a rule.

Called without more than an empty run, a function fills it so that its rule has something to say; its arguments take
that back, one at a time. RUNS has them by rule. The views of a run take longer to make than to ask: it is filled anew
again and again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from empty_run import GIB, MIB, SECOND, EmptyRun, Tables, diagnose, events, held
from run_tables import Row, blank, span

from ray_memprof.analysis.diagnosis.diagnose import Finding

PARAMETERS = 1_418_996_800
"""Of the transformer of t2v-1.3B, as evidence/networks.sql has them."""
FFN_TOKENS = 1024


def t5_stays(
    empty: EmptyRun,
    *,
    weights: int = 11 * GIB,
    peak: int = 40 * GIB,
    leaves_ns: int | None = None,
    others: tuple[int, ...] = (),
    **model: Any,
) -> list[Finding]:
    """The text encoder comes, and moves out at leaves_ns or never; the loop begins at 100.

    `others`: its bytes on further ranks.
    """
    tables = [{"spans": _with_t5(held_there, peak, leaves_ns)} for held_there in (weights, *others)]
    return diagnose(empty, *tables, config={"model_config": model})


def _with_t5(weights: int, peak: int, leaves_ns: int | None) -> list[dict[str, Any]]:
    spans = [
        span(1, "encode.text", (0, 90), component="t5", **held(0, weights, weights)),
        span(2, "encode.text/load.t5", (0, 9), parent_id=1, component="t5", **held(0, weights, weights)),
    ]
    if leaves_ns is not None:
        spans.append(
            span(3, "residency.offload", (leaves_ns, 95), component="t5", **held(weights, 0, weights))
        )
    return [*spans, span(4, "denoise", (100, 900), step=0, component="dit", **held(weights, weights, peak))]


def weights_fp32(
    empty: EmptyRun,
    *,
    bytes_each: float = 4,
    ranks: int = 1,
    task: str = "t2v-1.3B",
    precision: str = "fp32",
    dit_fsdp: bool = False,
    loop: int = GIB,
    **run: Any,
) -> list[Finding]:
    """The transformer comes with so many bytes for each of its parameters, over all ranks; the loop adds to them."""
    size = int(bytes_each * PARAMETERS) // (ranks if dit_fsdp else 1)
    spans = [
        span(1, "load.dit", (0, 90), component="dit", **held(0, size, size)),
        span(2, "denoise", (100, 900), step=0, component="dit", **held(size, size, size + loop)),
    ]
    config = {"model_config": {"task": task, "precision": precision}, "parallel": {"dit_fsdp": dit_fsdp}}
    return diagnose(empty, *[{"spans": spans}] * ranks, config=config, **run)


def weights_fp8(
    empty: EmptyRun,
    *,
    weights: int = 2 * PARAMETERS,
    others: int = 1 * GIB,
    ranks: int = 1,
    task: str = "t2v-1.3B",
    precision: str = "bf16",
    weights_dtype: str | None = "precision",
    decode: int = 0,
    dit_fsdp: bool = False,
    total: int | None = None,
    **run: Any,
) -> list[Finding]:
    """The transformer's weights, and other bytes beside them in the loop; the decode peaks where it takes more.

    `total`: of the device; None: no more than the loop takes.
    """
    spans = [
        span(1, "load.dit", (0, 90), component="dit", **held(0, weights, weights)),
        span(2, "denoise", (100, 900), step=0, component="dit", **held(weights, weights, weights + others)),
        span(3, "decode", (900, 990), component="vae", **held(0, 0, decode)),
    ]
    model = {"task": task, "precision": precision, "weights_dtype": weights_dtype}
    config = {"model_config": model, "parallel": {"dit_fsdp": dit_fsdp}}
    device = weights + others if total is None else total
    rows = [{"status": "ok", "device_total_bytes": device}] * ranks
    return diagnose(empty, *[{"spans": spans}] * ranks, config=config, rank_rows=rows, **run)


def ffn_hidden(
    empty: EmptyRun,
    *,
    task: str = "t2v-1.3B",
    widths: tuple[int, int] = (1536, 8960),
    others: int = 300 * MIB,
    gathered: Sequence[int] = (),
    chunks: int = 1,
    category: str = "activation",
    has_events: bool = True,
) -> list[Finding]:
    """A chunk of tokens as wide as the model, its hidden layer, and other tensors beside them."""
    narrow, wide = (FFN_TOKENS * width * 2 for width in widths)
    peak = narrow + wide + others + sum(gathered)
    spans = [span(1, "denoise", (0, 90), step=0, component="dit", **held(0, 0, peak))]
    rows = [
        ("alloc", others, 1, 1),
        ("alloc", narrow, 2, 1),
        *(("alloc", size, 4 + at, 1) for at, size in enumerate(gathered)),
        ("alloc", wide, 3, 1),
        ("free_requested", wide, 3, 1),
    ]
    config = {"model_config": {"task": task}, "optimization": {"ffn_chunks": chunks}}
    allocs = events(*rows, category=category) if has_events else []
    return diagnose(empty, {"spans": spans, "allocs": allocs}, config=config)


def decodes_alone(
    empty: EmptyRun,
    *,
    added: int = 10 * GIB,
    ranks: int = 4,
    num_decoding: int = 1,
    device_used: int = 40 * GIB,
    fails: bool = False,
    vae: str | None = None,
) -> list[Finding]:
    """The first ranks decode, the others find nothing to do there, or failed in the loop before."""
    base, loop = device_used // 40, device_used // 2
    used = {"device_used": (device_used, device_used, device_used)}
    denoise = span(1, "denoise", (0, 100), step=0, component="dit", allocated=(base, base, loop), **used)
    decode = {"allocated": (base, base, base + added), **used}
    decoding = [
        denoise,
        span(2, "decode", (100, 200), component="vae", **decode),
        span(3, "decode/vae.chunk", (110, 190), parent_id=2, component="vae", **decode),
    ]
    idle = [{**denoise, "failed": fails}]
    if not fails:
        idle.append(span(2, "decode", (100, 110), component="vae", allocated=(base, base, base)))
    tables = [{"spans": decoding if rank < num_decoding else idle} for rank in range(ranks)]
    return diagnose(empty, *tables, config={"parallel": {"vae": vae}})


def encode_peaks(
    empty: EmptyRun,
    *,
    encode: int = 20 * GIB,
    loop: int = 8 * GIB,
    ranks: int = 1,
    num_encoding: int | None = None,
    component: str | None = "t5",
    cut: str = "",
    fails: bool = True,
    parallel: Mapping[str, Any] | None = None,
    source: str = "cuda",
    workload: str = "wan",
    **model: Any,
) -> list[Finding]:
    """The first ranks encode the text, all by default, and leave nothing behind; with `cut` the run ended there."""
    stages = ("encode.text", "denoise", "decode")
    stages = stages[: stages.index(cut) + 1 if cut else None]
    tables = []
    for rank in range(ranks):
        is_encoding = rank < (ranks if num_encoding is None else num_encoding)
        peaks = (encode if is_encoding else 0, loop, loop // 2)
        spans = []
        for stage, owner, peak in zip(stages, (component, "dit", "vae"), peaks, strict=False):
            facts: dict[str, Any] = {"component": owner, "failed": fails and stage == cut, **held(0, 0, peak)}
            spans.append(span(len(spans) + 1, stage, (100 * len(spans), 100 * len(spans) + 90), **facts))
        tables.append({"spans": spans})
    config = {"model_config": {"t5_cpu": False, "load_strategy": "block"} | model, "parallel": parallel or {}}
    return diagnose(empty, *tables, config=config, source=source, workload=workload)


def decode_peaks(
    empty: EmptyRun,
    *,
    decode: int = 20 * GIB,
    loop: int = 15 * GIB,
    slabs: int = 0,
    ranks: int = 1,
    workload: str = "wan",
    component: str | None = "vae",
) -> list[Finding]:
    """Every rank decodes, and holds so much in decode and in the loop."""
    spans = [
        span(1, "denoise", (0, 100), step=0, component="dit", **held(0, 0, loop)),
        span(2, "decode", (100, 200), component=component, **held(0, 0, decode)),
        span(3, "decode/vae.chunk", (110, 190), parent_id=2, component=component, **held(0, 0, decode)),
    ]
    config = {"optimization": {"vae_slabs": slabs}}
    return diagnose(empty, *[{"spans": spans}] * ranks, config=config, workload=workload)


def holds_more(
    empty: EmptyRun,
    *,
    excess: int = 5 * GIB,
    ranks: int = 3,
    stage: str = "denoise",
    loop: int = 20 * GIB,
    small: int = 0,
    component: str = "dit",
    fails: bool = False,
    has_events: bool = True,
    rank: int = 1,
    **parallel: Any,
) -> list[Finding]:
    """One rank holds `excess` more in `stage`, for `component`; device.init takes `small` bytes on all of them."""

    def tables(held_more: int) -> Tables:
        sizes = {"device.init": small, "encode.text": loop // 2, "denoise": loop}
        sizes[stage] = sizes.get(stage, 0) + held_more
        spans, rows = [], []
        for number, (name, size) in enumerate(sizes.items()):
            spans.append(
                span(
                    number + 1,
                    name,
                    (100 * number, 100 * number + 90),
                    component=component if name == stage else None,
                    failed=fails and name == stage,
                    **held(0, 0, size),
                )
            )
            parts = [size - held_more, held_more] if name == stage and held_more else [size]
            for part in (part for part in parts if part):
                rows += [("alloc", part, len(rows) + 1, number + 1)]
            rows += [("free_requested", row[1], row[2], number + 1) for row in rows if row[3] == number + 1]
        return {"spans": spans, "allocs": events(*rows) if has_events else []}

    every = [tables(excess if one == rank else 0) for one in range(ranks)]
    return diagnose(empty, *every, config={"parallel": parallel})


def out_of_memory(
    empty: EmptyRun,
    *,
    status: str = "oom",
    asked: int = 2 * GIB,
    free: int = GIB,
    tensors: int = 30 * GIB,
    reserved: int = 31 * GIB,
    stage: str = "denoise",
    component: str | None = "dit",
    category: str = "activation",
    others: int | None = None,
    has_events: bool = True,
    is_expandable: bool = True,
    ranks: int = 2,
    failing: int = 1,
    oom_by: str | None = None,
    step: int = 3,
    **facts: Any,
) -> list[Finding]:
    """The last of the ranks ask for more than there is, in the third step; the others have it.

    `oom_by`: it is not the allocator that asks; the one refusal in the events was handled, early in the span.
    """
    spans = [span(1, stage, (0, 90), step=step, failed=status == "oom", component=component,
                  allocated=(0, 0, tensors), num_retries=1,
                  reserved=(0, reserved, reserved), active=(0, 0, tensors), device_used=(0, 0, 40 * GIB))]  # fmt: skip
    refusal = [("oom", asked, free, 1)] if status == "oom" else []
    rows = [
        *(refusal if oom_by else []),
        ("segment_map" if is_expandable else "segment_alloc", reserved, 1, 1),
        ("alloc", tensors, 1, 1),
        *([] if oom_by else refusal),
        ("free_requested", tensors, 1, 1),
    ]
    sample = blank("samples", t_ns=1, others_used_bytes=others)
    tables = {
        "spans": spans,
        "samples": [sample],
        "allocs": events(*rows, category=category) if has_events else [],
    }
    if has_events:
        tables["allocs"][-1]["t_ns"] = 95  # while the error leaves the spans
    ends = [{"status": "interrupted"}] * (ranks - failing)
    ends += [
        {
            "status": status,
            "path": stage,
            "step": step,
            "oom_by": oom_by,
            "oom_free_bytes": free if oom_by else None,
        }
    ] * failing
    quiet = {
        "spans": [{**spans[0], "num_retries": 0}],
        "allocs": [row for row in tables["allocs"] if row["action"] != "oom"],
    }
    return diagnose(empty, *[quiet] * (ranks - failing), *[tables] * failing, rank_rows=ends, **facts)


def retries(
    empty: EmptyRun, *, num: int = 1, segments: str | None = "segment_alloc", **facts: Any
) -> list[Finding]:
    """The allocator flushed its cache so often, in a loop at whose end a GiB is held and not in use."""
    spans = [
        span(
            1,
            "denoise",
            (0, 90),
            step=0,
            num_retries=num,
            num_segments=1,
            allocated=(0, 0, 9 * GIB),
            active=(0, 29 * GIB, 30 * GIB),
            reserved=(0, 30 * GIB, 30 * GIB),
            device_used=(0, 40 * GIB, 40 * GIB),
        )
    ]
    return diagnose(
        empty, {"spans": spans, "allocs": events((segments, GIB, 1, 1)) if segments else []}, **facts
    )


def nccl_holds(
    empty: EmptyRun,
    *,
    size: int = 2 * GIB,
    used: int = 20 * GIB,
    account: str = "nccl",
    groups: Sequence[str] = ("0",),
    config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    **run: Any,
) -> list[Finding]:
    """So much of what the device has in use belongs to an account, on two ranks alike."""
    tables = {
        "spans": [span(1, "denoise", (10, 90), step=0, device_used=(used, used, used), **dict.fromkeys(
            ("allocated", "active", "reserved"), (used - size, used - size, used - size)))],
        "ledger": [blank("ledger", t_ns=5, account=account, bytes=size)],
        "collectives": [blank("collectives", op="all_reduce", group=name, group_size=2) for name in groups],
    }  # fmt: skip
    return diagnose(empty, tables, tables, config=config, environ=environ, **run)


def fragments(
    empty: EmptyRun,
    *,
    reserved: int = 20 * GIB,
    active: int = 16 * GIB,
    segments: str | None = "segment_alloc",
    beside: Sequence[tuple[str, int, int, int]] = (),
    **facts: Any,
) -> list[Finding]:
    """What the allocator took and what was in use, each at its most.

    beside: events of (action, bytes, address, stream) in place of those of one segment.
    """
    spans = [
        span(1, "denoise", (0, 90), step=0, allocated=(0, 0, active), active=(0, 0, active), reserved=(0, 0, active)),
        span(2, "decode", (90, 99), active=(0, active, active), reserved=(0, reserved, reserved),
             device_used=(reserved, reserved, reserved)),
    ]  # fmt: skip
    allocs = events((segments, reserved, 1, 2)) if segments else []
    if beside:
        allocs = [
            {**row, "stream": stream}
            for row, (*_, stream) in zip(events(*((*one[:3], 2) for one in beside)), beside, strict=True)
        ]
    return diagnose(empty, {"spans": spans, "allocs": allocs}, **facts)


def outside_grows(
    empty: EmptyRun,
    *,
    outside: Sequence[int] = (GIB, GIB + 40 * MIB, GIB + 80 * MIB),
    account: str | None = None,
    source: str = "cuda",
) -> list[Finding]:
    """Bytes outside the allocator at the end of each step."""
    tables: dict[str, list[Row]] = {"spans": [], "ledger": []}
    before = 0
    for step, size in enumerate(outside):
        ends = (100 * step, 100 * step + 90)
        measured = {"reserved": (GIB, GIB, GIB), "active": (GIB, GIB, GIB), "allocated": (GIB, GIB, GIB)}
        measured["device_used"] = (GIB + before, GIB + size, GIB + size)
        tables["spans"].append(span(step + 1, "denoise", ends, step=step, **measured))
        if account is not None:
            tables["ledger"].append(blank("ledger", t_ns=ends[1], account=account, bytes=size - before))
        before = size
    return diagnose(empty, tables, source=source)


def starts_late(
    empty: EmptyRun,
    *,
    late_ns: int = 5 * SECOND,
    duration_ns: int = 100 * SECOND,
    has_collectives: bool = True,
    first_span: int = 1,
    ranks: int = 3,
    **facts: Any,
) -> list[Finding]:
    """The last rank begins so much later than the others."""
    heard = [blank("collectives", op="barrier", group="0", group_size=ranks)] if has_collectives else []
    tables = []
    for rank in range(ranks):
        is_last = rank == ranks - 1
        begin = late_ns if is_last else 0
        spans = [span(first_span if is_last else 1, "device.init", (begin, duration_ns))]
        tables.append({"spans": spans, "collectives": heard})
    return diagnose(empty, *tables, **facts)


def passes_in_turn(
    empty: EmptyRun,
    *,
    ranks: int = 4,
    exchanged: int = 2 * GIB,
    op: str = "all_to_all_single",
    branches: Sequence[str] = ("cond", "uncond"),
    step_ns: int = SECOND,
    peak: int = 3 * GIB,
    total: int = 16 * GIB,
    silent: Sequence[int] = (),
    **parallel: Any,
) -> list[Finding]:
    """In each of two steps every rank runs these passes, each with an exchange of half of these bytes.

    silent: ranks without a pass. parallel: keys of that section; without one, Ulysses over all ranks.
    """
    spans, heard = [], []
    for step in range(2):
        first, begin = 10 * step + 1, step * step_ns
        spans.append(
            span(first, "denoise", (begin, begin + step_ns), step=step, component="dit", **held(0, 0, peak))
        )
        for number, branch in enumerate(branches, start=1):
            about = {"step": step, "branch": branch, "component": "dit", "parent_id": first}
            spans.append(span(first + number, "denoise/dit.forward", (begin + 1, begin + 2), **about))
            if exchanged:
                about_call = {"span_id": first + number, "group": "0", "group_size": ranks}
                heard.append(blank("collectives", op=op, bytes=exchanged // 2, **about_call))
    tables = {"spans": spans, "collectives": heard}
    short = {"spans": [row for row in spans if row["name"] == "denoise"]}
    return diagnose(
        empty,
        *(short if rank in silent else tables for rank in range(ranks)),
        rank_rows=[{"status": "ok", "device_total_bytes": total}] * ranks,
        config={"parallel": {"ulysses": ranks, "ring": 1, "backend": "native"} | parallel},
    )


def unpredicted(
    empty: EmptyRun, *ranks: Mapping[str, Mapping[str, int]], **predicted: Mapping[str, int]
) -> list[Finding]:
    """Ranks that hold so much by account and stage, in turn; `predicted`: of each of them, the same by stage."""
    ranks = ranks or ({"denoise": {"allocated": 12 * GIB}},)
    predicted = predicted or {"denoise": {"allocated": 11 * GIB}}
    told = [
        {"stage": None if stage == "whole" else stage, "account": account, "bytes": size}
        for stage, sizes in predicted.items()
        for account, size in sizes.items()
    ]
    spans = [
        [span(at, stage, (at, at + 1), **{name: (0, 0, size) for name, size in sizes.items()})
         for at, (stage, sizes) in enumerate(one.items(), start=1)]
        for one in ranks
    ]  # fmt: skip
    return diagnose(empty, *({"spans": rows, "predicted": told} for rows in spans))


RUNS: dict[str, Callable[..., list[Finding]]] = {
    "out_of_memory": out_of_memory,
    "retries": retries,
    "t5_stays": t5_stays,
    "weights_fp32": weights_fp32,
    "weights_fp8": weights_fp8,
    "ffn_hidden": ffn_hidden,
    "encode_peaks": encode_peaks,
    "decodes_alone": decodes_alone,
    "decode_peaks": decode_peaks,
    "holds_more": holds_more,
    "nccl_holds": nccl_holds,
    "fragments": fragments,
    "outside_grows": outside_grows,
    "starts_late": starts_late,
    "passes_in_turn": passes_in_turn,
    "unpredicted": unpredicted,
}
