"""What holds for every rule: it speaks where it has evidence, is silent elsewhere, and names knobs that exist."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from diagnosis_runs import RUNS as WAN_RUNS
from empty_run import GIB, MIB, SECOND, EmptyRun, Tables, diagnose, events, held
from program_runs import RUNS as PROGRAM_RUNS
from pydantic import BaseModel
from run_tables import Row, blank, span

from ray_memprof import wording
from ray_memprof.analysis.diagnosis import diagnose as diagnosis
from ray_memprof.analysis.diagnosis import rules
from ray_memprof.config import keys
from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError
from ray_memprof.query import questions
from ray_memprof.rank.variables import FORWARDED
from ray_memprof.store.schema import TABLES
from wan.levers import ALLOCATOR_SETTINGS

ROOT = Path(__file__).resolve().parents[3]
RULES = [rule.name for rule in diagnosis.RULES]
SECTIONS: dict[str, type[BaseModel]] = {
    "model_config": keys.Model,
    "generation": keys.Generation,
    "parallel": keys.Parallel,
    "optimization": keys.Optimization,
    "logging": keys.Logging,
    "ray": keys.Ray,
}
RUNS = WAN_RUNS | PROGRAM_RUNS
STAGES = ("encode.text", "load.dit", "denoise", "decode")


def test_a_run_without_a_row(empty: EmptyRun) -> None:
    empty.fill()
    assert diagnosis.findings(empty.connection) == []
    assert diagnosis.lines([]) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_speaks_where_it_has_something_to_say(empty: EmptyRun, rule: str) -> None:
    assert [one.rule for one in RUNS[rule](empty)] == [rule]


PEAKS = {"encode.text": 8 * GIB, "load.dit": 3 * GIB, "denoise": 10 * GIB, "decode": 9 * GIB}
INSIDE = {
    "encode.text": ("load.t5", "t5.block", "residency.offload"),
    "denoise": ("dit.forward", "dit.block"),
    "decode": ("load.vae", "vae.chunk", "residency.offload"),
}
COMPONENTS = {"encode.text": "t5", "load.dit": "dit", "denoise": "dit", "decode": "vae"}
USED = 14 * GIB


def visit(first: int, stage: str, begin: int, peak: int, names: tuple[str, ...], **facts: Any) -> list[Row]:
    """Spans of a stage and inside it, each of which takes memory to the same peak."""
    spans = [span(first, stage, (begin, begin + SECOND), component=COMPONENTS.get(stage), **facts)]
    for number, name in enumerate(names, start=1):
        ends = (begin + 100 * number, begin + 100 * number + 50)
        inner = span(
            first + number, f"{stage}/{name}", ends, parent_id=first, component=COMPONENTS[stage], **facts
        )
        spans.append(inner)
    for row in spans:
        goes = row["name"].startswith("residency.")
        for measure in ("allocated", "active"):
            row[f"{measure}_start_bytes"] = peak if goes else 0
            row[f"{measure}_end_bytes"] = peak if row["name"].startswith("load.") else 0
            row[f"{measure}_peak_bytes"] = peak
        row["reserved_start_bytes"] = row["reserved_end_bytes"] = row["reserved_peak_bytes"] = peak
    return spans


def ordinary(rank: int, *, cut: str = "", is_first_to_fail: bool = False, has_device: bool = True) -> Tables:
    """A rank of a run of which there is nothing to say; with `cut` the run ended in that stage, for each where it was.

    Ranks differ by 2 MiB, as ranks do; the one that failed first had come half as far.
    """
    spans = list[Row]()
    for number, stage in enumerate(("device.init", *STAGES[:3], "denoise", "denoise", "decode")):
        is_cut = stage == cut
        peak, names = 2 * MIB * rank + PEAKS.get(stage, 0), INSIDE.get(stage, ())
        if is_cut and is_first_to_fail:
            peak, names = peak // 2, names[:1]
        used = {"device_used": (USED, USED, USED) if has_device else (0, 0, 0)}
        spans += visit(len(spans) + 1, stage, 2 * SECOND * number, peak, names, failed=is_cut, **used)
        if is_cut:
            break
    rows = [
        (action, row["allocated_peak_bytes"], row["span_id"], row["span_id"])
        for row in spans
        for action in ("alloc", "free_requested")
    ]
    tables: dict[str, list[Row]] = {"spans": spans, "allocs": events(*rows)}
    tables["collectives"] = [blank("collectives", op="barrier", group="0", group_size=2)]
    if has_device:
        tables["ledger"] = [
            blank("ledger", t_ns=1, account=account, bytes=size)
            for account, size in (("context", 560 * MIB), ("nccl", 840 * MIB), ("libraries", 64 * MIB))
        ]
    return tables


CONFIG: dict[str, Any] = {
    "model_config": {"task": "t2v-1.3B", "precision": "bf16", "offload": True},
    "parallel": {"vae": "split"},
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("source", "config", "has_events"),
    [
        ("cuda", CONFIG, True),
        ("cuda", CONFIG, False),
        ("cpu", CONFIG, True),
        ("predicted", CONFIG, True),
        ("predicted", {}, False),
    ],
)
def test_nothing_is_said_of_an_ordinary_run(
    empty: EmptyRun, ranks: int, source: str, config: Mapping[str, Any], has_events: bool
) -> None:
    every = [dict(ordinary(rank, has_device=source == "cuda")) for rank in range(ranks)]
    for tables in every:
        if not has_events:
            tables["allocs"] = []
    assert diagnose(empty, *every, config=config, source=source) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("status", ["died", "failed", "hung"])
def test_nothing_is_said_of_ranks_that_were_cut_off(
    empty: EmptyRun, stage: str, ranks: int, status: str
) -> None:
    """One had come half as far as the others: that is no imbalance, and nobody decodes alone."""
    every = [ordinary(rank, cut=stage, is_first_to_fail=rank == 1) for rank in range(ranks)]
    ends = [{"status": status if rank == 1 else "interrupted", "path": stage} for rank in range(ranks)]
    assert diagnose(empty, *every, rank_rows=ends, status=status) == []


def test_nothing_is_said_where_the_driver_wrote_nothing_and_a_rank_has_no_rows(empty: EmptyRun) -> None:
    empty.fill(ordinary(0, cut="denoise"), {})
    assert diagnosis.findings(empty.connection) == []


@pytest.mark.parametrize("rule", ["ffn_hidden", "nccl_holds", "outside_grows", "retries", "out_of_memory"])
def test_a_rule_is_silent_without_its_evidence(empty: EmptyRun, rule: str) -> None:
    """The same rows without the table that the rule goes by; t5, weights, peaks and starts are in spans alone."""
    table = {"ffn_hidden": "allocs", "out_of_memory": "ranks"}.get(rule, "spans")
    RUNS[rule](empty)
    empty.connection.execute(f"DELETE FROM {table}")
    assert rule not in [one.rule for one in diagnosis.findings(empty.connection)]


@pytest.mark.parametrize("filled", RUNS)
def test_a_rule_that_is_not_asked_would_have_no_row(empty: EmptyRun, filled: str) -> None:
    RUNS[filled](empty)
    asked = diagnosis.rules_to_ask(empty.connection)
    assert {rule.name for rule in diagnosis.RULES if rule.only_if == "TRUE"} <= {rule.name for rule in asked}
    for rule in diagnosis.RULES:
        if rule not in asked:
            assert questions.fetched(empty.connection, diagnosis.rule_text(rule.name)) == [], rule.name


def test_findings_are_the_same_each_time(empty: EmptyRun) -> None:
    """GIVEN stages and ranks that tie, WHEN rows come in any order, THEN one of them is always named."""
    said = set()
    every = [dict(ordinary(rank)) for rank in range(4)]
    for tables in every:
        tables["spans"] = [
            {**row, "reserved_peak_bytes": 20 * GIB} if row["stage"] in ("denoise", "decode") else row
            for row in tables["spans"]
        ]
    for turn in range(6):
        empty.connection.execute(f"SET threads = {1 + turn % 3 * 3}")
        rows = [{**one, "spans": one["spans"][:: 1 if turn % 2 else -1]} for one in every]
        said.add(tuple(diagnose(empty, *rows, config=CONFIG)))
    empty.connection.execute("RESET threads")
    assert [[(one.rule, one.stage) for one in found] for found in said] == [[("fragments", "denoise")]]


def test_order_and_severity(empty: EmptyRun) -> None:
    """What ended the run, then what is part of a peak, by bytes, then the rest."""
    tables = {
        "spans": [
            span(1, "load.t5", (0, 5), component="t5", **held(0, GIB, GIB)),
            span(2, "denoise", (10, 90), step=0, **held(GIB, GIB, 20 * GIB)),
            span(3, "decode", (90, 99), component="vae", **held(GIB, GIB, 25 * GIB)),
            span(4, "decode/vae.slab", (90, 99), component="vae", parent_id=3, **held(GIB, GIB, 25 * GIB)),
        ],
        "ledger": [blank("ledger", t_ns=1, account="nccl", bytes=3 * GIB)],
    }
    late = {
        "spans": [
            span(1, "load.t5", (3 * SECOND, 3 * SECOND + 1), **held(0, 0, 0)),
            span(2, "denoise", (3 * SECOND + 2, 3 * SECOND + 9), step=0, failed=True, **held(0, 0, 8 * GIB)),
        ]
    }
    ends = [{"status": "ok"}, {"status": "oom", "path": "denoise", "step": 0}]
    found = diagnose(empty, tables, late, rank_rows=ends)
    assert [(one.severity, one.is_peak, one.rule) for one in found] == [
        ("severe", True, "out_of_memory"),
        ("severe", True, "nccl_holds"),
        ("notable", True, "t5_stays"),
        ("notable", False, "holds_more"),
        ("minor", False, "starts_late"),
    ]
    assert diagnosis.lines(found, most=1) == [f"severe: {found[0].sentence}", f"  knob: {found[0].knob}"]
    assert diagnosis.lines(found[-1:])[0] == f"minor, below the peak: {found[-1].sentence}"


def settings() -> Iterator[Row]:
    """Every way in which what knobs go by can stand together, within reason."""
    either = (None, False, True)
    for expandable, wants, workload, told, buffers, groups, sharded, slicing in itertools.product(
        either,
        either,
        ("wan", "script"),
        (None, ALLOCATOR_SETTINGS[1]),
        (2**19, 2**20, 2**22),
        (1, 3),
        either,
        either,
    ):
        yield {
            "is_expandable": expandable, "wants_expandable": wants, "workload": workload,
            "allocator_variable": told, "allocator_conf": told and "a:1", "buffer_bytes": buffers,
            "num_groups": groups, "t5_fsdp": sharded, "dit_fsdp": sharded, "attention_slicing": slicing,
        }  # fmt: skip


def places() -> Iterator[Row]:
    """Every place in which something may lie."""
    choices = (
        ("dit", "t5", "vae", None), ("weight", "activation", None), ("denoise", "load.dit", "encode.text"),
        ("fp32", "bf16"), ("block", "stream"), ("rank0", "split"), (1, 4), (0, 1, 4), (2, 200), (None, 9),
    )  # fmt: skip
    for component, category, stage, precision, load, vae, ranks, number, free, others in itertools.product(
        *choices
    ):
        yield {
            "component": component, "category": category, "stage": stage, "precision": precision,
            "load_strategy": load, "vae": vae, "num_ranks": ranks, "ffn_chunks": number, "vae_slabs": number,
            "num_chunks": number, "num_slabs": number, "asked_bytes": 10 * MIB, "free_bytes": free * MIB,
            "others_bytes": others and others * MIB, "bytes": 5, "reserved_bytes": 9, "backend": "xfuser",
            "offload": number == 1, "ranks": [1], "typical_rank": 0, "is_public_wan": number == 4,
            "dtype": "float32" if number else "uint8", "num_blocks": number,
            "cfg": 2 if number == 1 else 1, "ulysses": max(1, number), "ring": 2 if number == 1 else 1,
            "activation_bytes": 7, "is_more": free == 2,
            "account": {0: "allocated", 1: "reserved", 4: "device_used"}[number],
        }  # fmt: skip


def every_knob() -> set[str]:
    """All that the rules may ever advise, in every combination that could matter to one of them."""
    far, near = list(settings()), list(places())
    rows = [{**near[0], **one} for one in far] + [
        {**far[index % len(far)], **one} for index, one in enumerate(near)
    ]
    return {rule.knob(row) for rule in diagnosis.RULES for row in rows}


def test_every_key_that_is_named_is_one_of_the_configuration_and_takes_that_value() -> None:
    texts = every_knob()
    named_keys = set(re.findall(r"\b([a-z_]+)\.([a-z][a-z0-9_]+)(?:: ([\w]+))?", "\n".join(sorted(texts))))
    named = {(section, key) for section, key, _ in named_keys if section in SECTIONS}
    assert len(named) >= 12
    assert named <= {(section, key) for section, model in SECTIONS.items() for key in model.model_fields}
    # Whatever else has a dot in it is no key: functions of torch, and stages.
    assert {section for section, _, _ in named_keys} - SECTIONS.keys() == {
        *("torch", "encode", "load", "optimizer", "model")
    }
    for section, key, value in named_keys:
        if section in SECTIONS and value and value != "more":
            read: Any = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
            is_degree = section == "parallel" and key in ("ulysses", "ring", "cfg")
            mapping = {"name": "x"} if is_degree else {"name": "x", "ranks": 2, "parallel": {"ulysses": 2}}
            mapping[section] = {**mapping.get(section, {}), key: read}  # type: ignore[dict-item]
            assert isinstance(from_mapping(mapping, source="test"), RunConfig)


def test_a_key_that_is_none_would_be_noticed() -> None:
    with pytest.raises(ConfigError):
        from_mapping({"name": "x", "optimization": {"expandable": True}}, source="test")


def test_every_variable_that_is_named_reaches_the_ranks_and_is_known() -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", "\n".join(every_knob())))
    measured = set(
        re.findall(r"`(NCCL_[A-Z_]+)", (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8"))
    )
    assert named == {"NCCL_BUFFSIZE", "NCCL_MAX_NCHANNELS", *ALLOCATOR_SETTINGS}
    assert named <= measured | set(ALLOCATOR_SETTINGS)
    assert all(any(fnmatchcase(name, pattern) for pattern in FORWARDED) for name in named)


def test_every_question_that_is_named_is_one() -> None:
    listed = re.findall(r"ray-memprof query (\w+), and (\w+)", "\n".join(every_knob()))
    assert {name for pair in listed for name in pair} == {
        "alive_at_peak", "largest_allocations", "books", "collectives", "fragmentation", "device_calls",
        "books_at_peak", "nccl_by_communicator", "predicted_vs_measured", "account_peaks",
    }  # fmt: skip
    assert {name for pair in listed for name in pair} <= {*questions.QUESTIONS, *TABLES}


def test_every_file_says_what_it_asks_and_lists_its_columns(empty: EmptyRun) -> None:
    empty.fill()
    diagnosis.findings(empty.connection)
    files = {path.stem for path in Path(diagnosis.__file__).parent.rglob("*.sql")}
    assert files == {*RULES, *diagnosis.EVIDENCE}
    for name in sorted(files):
        text = diagnosis.rule_text(name)
        kind = "Rule" if name in RULES else "Evidence"
        assert re.match(rf"-- {kind}: [^?]*\?\n-- One row = ", text), name
        assert name not in RULES or re.search(r"^--.*\bThresholds?: ", text, re.MULTILINE), name
        assert not re.search(r"SELECT\s+\*", text), name
        assert max(map(len, text.splitlines())) <= 80, name
        header = "\n".join(line for line in text.splitlines() if line.startswith("--"))
        columns = empty.connection.sql(text).columns
        missing = [column for column in columns if not re.search(rf"\b{column}\b", header)]
        assert missing == [], name


def test_every_rule_is_a_pair_of_files_and_is_asked() -> None:
    folder = Path(rules.__file__).parent
    files = {
        suffix: {path.stem for path in folder.glob(f"*{suffix}")} - {"__init__"} for suffix in (".py", ".sql")
    }
    assert files == {".py": {*RULES}, ".sql": {*RULES}}
    assert [rule.sentence.__module__.rpartition(".")[2] for rule in diagnosis.RULES] == RULES
    assert [rule.knob.__module__ for rule in diagnosis.RULES] == [
        rule.sentence.__module__ for rule in diagnosis.RULES
    ]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([3], "rank 3"),
        ([0, 1], "ranks 0 and 1"),
        (range(8), "ranks 0 to 7"),
        (range(1000), "ranks 0 to 999"),
        ([0, 2, 5], "ranks 0, 2 and 5"),
        (range(1, 35, 2), "17 ranks (1, 3, 5, 7 ...)"),
    ],
)
def test_ranks_in_few_words(ranks: Sequence[int], text: str) -> None:
    assert wording.rank_text(ranks) == text
