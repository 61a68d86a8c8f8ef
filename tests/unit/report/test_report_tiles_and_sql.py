"""What a report says first, what it says against a base run, and the SQL that it offers to copy."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from run_tables import Row, blank, event, make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.query.ask import ask
from ray_memprof.query.database import build
from ray_memprof.report import comparison_page, flame_page, run_page

GIB = 2**30


def tables_of(rank: int, more: int = 0) -> dict[str, list[Row]]:
    """Weights come, two steps are taken, the second one with `more` bytes of activations."""
    size, first = (1 + rank) * GIB, 10 * GIB
    held = {"reserved": (0, first, first), "device_used": (GIB, first, first)}
    spans = [
        span(1, "load.dit", (0, 10), allocated=(0, size, size), component="dit", **held),
        span(2, "denoise", (10, 20), allocated=(size, size, 2 * size), step=0, component="dit", **held),
        span(
            3, "denoise", (20, 30), allocated=(size, size, 2 * size + more), step=1, component="dit", **held
        ),
        span(4, "decode", (30, 40), allocated=(size, size, size + GIB), component="vae", **held),
        span(5, "residency.offload", (40, 42), allocated=(size, 0, size), component="dit", **held),
    ]
    allocs = [
        event(1, "segment_alloc", first, span_id=1),
        event(2, "alloc", size, "weight", address=1, span_id=1, stack_id=0),
        event(12, "alloc", size, "activation", address=2, span_id=2),
        event(13, "free_requested", size, "activation", address=2, span_id=2),
        event(14, "free_completed", size, "activation", address=2, span_id=2),
        event(22, "alloc", size + more, "activation", address=2, span_id=3),
    ]
    stacks = [blank("stacks", stack_id=0, frame=0, function="forward", file="model.py", line=3)]
    ledger = [blank("ledger", t_ns=0, account="context", bytes=GIB)]
    calls = [
        blank("collectives", start_ns=11, end_ns=12, op="all_reduce", bytes=8, group="world", group_size=2)
    ]
    samples = [blank("samples", t_ns=9, device_used_bytes=first)]
    return {
        **{"spans": spans, "allocs": allocs, "stacks": stacks, "ledger": ledger, "collectives": calls},
        "samples": samples,
    }


def make(folder: Path, name: str, more: int = 0) -> Path:
    """A run of two ranks of which the second one failed, with its database."""
    run_dir = make_run(folder / name / "r1", {rank: tables_of(rank, more) for rank in range(2)})
    failed = {"status": "oom", "reason": "tried 2 GiB", "path": "denoise", "step": 1}
    facts = {"num_checks": 1, "device_total_bytes": 20 * GIB}
    about = {"name": name, "run_id": "r1", "source": "cuda", "status": "oom", "versions": '{"torch": "2"}'}
    make_ranks(run_dir, {"status": "ok", **facts}, failed | facts, num_ranks=2, **about)
    build(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base run, and one whose second step takes 1 GiB more on each rank."""
    folder = tmp_path_factory.mktemp("runs")
    return make(folder, "base"), make(folder, "other", GIB)


class Parts(HTMLParser):
    """Of each section of a page: whether it has a figure or a table, and which SQL its buttons copy."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.shown: list[tuple[str, set[str]]] = []
        self.texts: dict[str, str] = {}
        self.reads = False
        self.inside: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "section":
            self.inside.append([])
        if self.inside and (tag == "table" or "data-figure" in given):
            self.inside[-1].append(f"<{tag}>")
        if "data-sql" in given:
            assert (given["type"], given["aria-label"]) == ("button", f"Copy SQL: {given['data-sql']}")
            if self.inside:
                self.inside[-1].append(given["data-sql"] or "")
        self.reads = given.get("id") == "sql"

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            found = self.inside.pop()
            if any(one.startswith("<") for one in found):
                self.shown.append((" ".join(found), {one for one in found if not one.startswith("<")}))

    def handle_data(self, data: str) -> None:
        if self.reads:
            self.texts = json.loads(data)
            self.reads = False


def test_every_figure_and_table_offers_sql_that_runs_by_query_and_in_plain_duckdb(
    runs: tuple[Path, Path],
) -> None:
    base, other = runs
    report = Parts(run_page.render(other, base=base))
    pages = [report, Parts(comparison_page.render(compare([base, other]))), Parts(flame_page.render(other))]
    assert all(names for page in pages for _, names in page.shown), [page.shown for page in pages]
    assert len(report.shown) == 19
    texts: dict[str, str] = {}
    for page in pages:
        assert set().union(*(names for _, names in page.shown)) <= page.texts.keys()
        texts |= page.texts
    assert {"memory_parts", "headlines", "peak_moment", "endings", "versions", "run_values"} < texts.keys()
    with duckdb.connect(str(other / "run.duckdb"), read_only=True) as connection:
        for name, text in texts.items():
            # A comment in front would be an option to a command line; a shell would change these between quotes.
            assert not re.match(r"\s*-", text) and not re.search(r'["`\\]|\$[\w({]', text), name
            by_query = ask(text, [other])
            plain = connection.sql(text).to_arrow_table()
            assert by_query.num_rows == plain.num_rows > 0 or name == "predicted_vs_measured", name
            assert by_query.column_names == plain.column_names, name


def tiles(html: str) -> dict[str, str]:
    """The text of each tile by its name."""
    (listed,) = re.findall(r'<dl class="tiles">(.*?)</dl>', html, flags=re.DOTALL)
    found = re.findall(r"<dt>(.*?)</dt>(.*?)</div>", listed, flags=re.DOTALL)
    return {name: " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split()) for name, text in found}


def test_tiles_say_the_parts_of_the_memory_in_the_words_of_a_reader(runs: tuple[Path, Path]) -> None:
    found = tiles(run_page.render(runs[1]))
    assert found == {
        "Total peak": "10.0 GiB device used, rank 0, 50% of 20.0 GiB",
        "Peak of tensors (allocated)": "5.00 GiB rank 1, in denoise of step 1",
        "Base memory per component": "dit rank 1 2.00 GiB each on the rank where it is largest",
        "Activation peak per stage": (
            "denoise rank 1, step 1 3.00 GiB decode rank 0 1.00 GiB each on the rank where it is largest"
        ),
        "Fragmentation": "9.00 GiB rank 0: reserved beyond the tensors when it grew to its peak",
        "Model switching": "<0.001 s 2 loads and moves on rank 0, 1.00 GiB came to the device",
        "Imbalance": "1.25 x rank 1 against the mean of allocated",
        "Unexplained": found["Unexplained"],
        "Recording": found["Recording"],
    }


def test_a_base_run_stands_beside_every_number(runs: tuple[Path, Path]) -> None:
    base, other = runs
    html = run_page.render(other, base=base)
    assert "changes against the base run: base, r1, source cuda" in html
    assert "it did not end well (oom)" in html
    found = tiles(html)
    assert found["Peak of tensors (allocated)"].startswith("5.00 GiB +1.00 GiB, +25.0% rank 1")
    assert "denoise rank 1, step 1 3.00 GiB +1.00 GiB, +50.0%" in found["Activation peak per stage"]
    assert found["Total peak"].startswith("10.0 GiB = device used")
    row = next(line for line in html.splitlines() if line.startswith('<tr><th scope="row">1</th><td><span'))
    assert 'GiB</span><small title="in the base run: 4.00 GiB">+1.00 GiB, +25.0%</small>' in row
    # Each table has its changes, and figures have the base's lines and bars.
    for part in (
        "peak_by_stage",
        "imbalance",
        "steps",
        "base_memory",
        "activation_by_stage",
        "books_at_peak",
    ):
        section = html.split(f'id="{part}"')[1].split("</section>")[0]
        assert "in the base run" in section, part
    assert html.count("device used, base run") == 2 and html.count("denoise, base run") == 2
    assert "rank 0, base" in html
    assert "base run" not in run_page.render(other)


def test_a_run_against_itself_has_no_changes_and_what_the_base_lacks_is_said(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, other = runs
    assert set(re.findall(r"<small title[^>]*>([^<]*)<", run_page.render(other, base=other))) == {"="}
    alone = make_run(tmp_path / "alone", {0: tables_of(0)})
    assert "not in the base run" in run_page.render(other, base=alone)
    assert "source unknown; <strong>it did not end well (unknown)" in run_page.render(other, base=alone)
    assert base != other
