"""The report, its figures and the last lines on the console: empty runs, failed runs, many ranks, strange names."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from run_tables import blank, make_ranks, make_run, span, summary_lines

from ray_memprof.analysis.comparison.stage_peaks import StagePeaks, stage_peaks
from ray_memprof.errors import ConfigError
from ray_memprof.report import run_page
from ray_memprof.report.run_page import write_run_page
from ray_memprof.store.run_tables import write_predicted

GIB = 2**30
VOID = {"input", "meta"}


class Outline(HTMLParser):
    """Tags in balance, headings and ids in order, scripts by id, and whatever a browser would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts: dict[str, str] = {}
        self.fetched: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.fetched += [
            f"{tag} {name}={value}"
            for name, value in attributes
            if name in ("src", "href", "srcset", "poster", "data") and not (value or "").startswith("#")
        ]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.references += [
            value.removeprefix("#")
            for name, value in attributes
            if value
            and (name in ("aria-controls", "aria-labelledby", "for") or (name == "href" and value[0] == "#"))
        ]
        if tag == "script":
            self.scripts[given.get("id") or "code"] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "script":
            self.scripts[next(reversed(self.scripts))] += data


def outline(html: str) -> Outline:
    found = Outline(html)
    assert found.open == []
    assert found.fetched == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.references) <= set(found.ids)
    # Of the page's own code and looks; what plotly.js could fetch it is not asked for (tests/browser sees to that).
    assert not re.search(r"https?:|@import|url\(", html.replace(found.scripts.get("plotly", ""), ""))
    return found


def drawn(found: Outline) -> dict[str, Any]:
    """The figures of a page by id, each one that plotly knows how to draw."""
    figures = {
        name.removeprefix("data-"): json.loads(text)
        for name, text in found.scripts.items()
        if name.startswith("data-")
    }
    for figure in figures.values():
        # report.js puts in colours and GiB; plotly's own schema judges the rest.
        text = re.sub(r'"var:[\w-]+"', '"#000000"', json.dumps(figure))
        known = json.loads(text)
        go.Figure(data=known["data"], layout=known["layout"])
    return figures


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two ranks, the second one out of memory in step 3."""
    book = [blank("ledger", t_ns=5, account="context", bytes=GIB)]
    ok = [
        span(
            1,
            "load.dit",
            (0, 10),
            allocated=(0, GIB, GIB),
            device_used=(0, 2 * GIB, 2 * GIB),
            component="dit",
        ),
        span(
            2,
            "denoise",
            (10, 90),
            allocated=(GIB, GIB, 2 * GIB),
            reserved=(GIB, 2 * GIB, 2 * GIB),
            active=(GIB, GIB, 2 * GIB),
            device_used=(2 * GIB, 3 * GIB, 3 * GIB),
            step=0,
        ),
    ]
    failed = [span(1, "denoise", (10, 50), device_used=(0, 4 * GIB, 4 * GIB), step=3, failed=True)]
    make_run(tmp_path, {0: {"spans": ok, "ledger": book}, 1: {"spans": failed}})
    checked = {"num_checks": 2, "num_events": 10}
    return make_ranks(
        tmp_path,
        {"status": "ok", "device_total_bytes": 8 * GIB, **checked},
        {
            "status": "oom",
            "reason": "tried <b>2 GiB</b>",
            "path": "denoise",
            "step": 3,
            "host": "h",
            **checked,
        },
        run_id="r1",
        name="baseline",
        status="oom",
        reason="rank 1: out of memory & more",
        num_ranks=2,
        versions='{"torch": "2.11<x>"}',
        end_ns=2_000_000_000,
    )


def test_a_run_without_rows_has_a_report_that_says_so(tmp_path: Path) -> None:
    html = write_run_page(make_run(tmp_path, {0: {}})).read_text()
    found = outline(html)
    assert found.headings == [
        tmp_path.name,
        "The driver wrote no verdict",
        "Total peak per rank",
        "Versions, configuration",
    ]
    assert "No rank recorded a span." in html
    # Nothing to draw: no program to draw it.
    assert found.scripts == {}
    assert summary_lines(tmp_path) == ["peak: no span was recorded"]


def test_one_rank_is_not_compared_with_itself(tmp_path: Path) -> None:
    make_ranks(make_run(tmp_path, {0: {"spans": [span(1, "denoise", (0, 9))]}}), {})
    assert "Imbalance" not in outline(run_page.render(tmp_path)).headings


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        write_run_page(tmp_path)


def test_a_failed_run_says_first_what_happened_and_escapes_it(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("prompt: a <cat> & a dog\n")
    html = write_run_page(run_dir, ["rank 1: the last <3> bytes"]).read_text()
    found = outline(html)
    assert found.headings == [
        "baseline",
        "The run failed: oom",
        "What makes the peak high",
        "Total peak per rank",
        "Memory over time",
        "Base memory per component",
        "Activation peak per stage",
        "Activation peak per step",
        "Fragmentation and fluctuation",
        "Model switching",
        "Books at the peak",
        "Peak by stage and rank",
        "Imbalance",
        "Steps",
        "Replay check",
        "Versions, configuration",
    ]
    assert html.index("The run failed") < html.index("Ranks that did not end well") < html.index("<dl")
    assert list(drawn(found)) == [
        *("timelines-0", "timelines-1", "timelines-2", "activations-0", "activations-1"),
        *("books", "heats-0", "heats-1", "heats-2", "imbalance", "steps"),
    ]
    # Which findings there are is test_diagnosis.py's business; here, that they come first.
    assert html.index("The run failed") < html.index('class="diagnosis"') < html.index("<nav")
    for text in (
        "<p>rank 1: out of memory &amp; more</p>",
        '<td class="text">denoise of step 3</td><td class="text">tried &lt;b&gt;2 GiB&lt;/b&gt;</td>',
        "<li>rank 1: the last &lt;3&gt; bytes</li>",
        '<td class="text">2.11&lt;x&gt;</td>',
        '<pre tabindex="0">prompt: a &lt;cat&gt; &amp; a dog\n</pre>',
    ):
        assert text in html, text


def test_sizes_have_their_unit_with_the_bytes_as_a_tooltip(run_dir: Path) -> None:
    html = run_page.render(run_dir)
    row = next(line for line in html.splitlines() if line.startswith('<tr><th scope="row">0</th><td><span'))
    assert re.findall(r'title="([^"]*)">([^<]*)<', row) == [
        ("2,147,483,648 bytes", "2.00 GiB"),
        ("2,147,483,648 bytes", "2.00 GiB"),
        ("3,221,225,472 bytes", "3.00 GiB"),
        ("3,221,225,472 bytes", "3.00 GiB"),
        ("0 bytes", "0 B"),
    ]
    assert '<td class="text">37.50%<span class="share"' in row


def test_summary_names_peaks_imbalance_books_and_replay(run_dir: Path) -> None:
    # Findings follow: test_summary.py.
    assert summary_lines(run_dir)[:6] == [
        "rank 0: peak allocated 2.00 GiB, reserved 2.00 GiB, device used 3.00 GiB (38% of 8.00 GiB), "
        "in denoise of step 0",
        "rank 1: peak allocated 0 B, reserved 0 B, device used 4.00 GiB, in denoise of step 3",
        "imbalance: rank 0 peaks at 2.00 x the mean of allocated",
        "imbalance: rank 1 peaks at 1.14 x the mean of device used",
        "books at the peak: unexplained at most 4.00 GiB, 100.00% of what is used on the device (rank 1)",
        "replay: exact to the byte on 2 of 2 ranks",
    ]


def test_summary_has_one_line_for_ranks_that_are_alike(tmp_path: Path) -> None:
    """GIVEN 20 ranks, of which only rank 7 differs in what the line shows: the others differ by a few bytes."""
    used = {rank: 3 * 2**30 + (2**30 if rank == 7 else rank) for rank in range(20)}
    make_run(
        tmp_path,
        {
            rank: {"spans": [span(1, "denoise", (0, 1), device_used=(0, 0, size))]}
            for rank, size in used.items()
        },
    )
    others = ", ".join(map(str, [0, 1, 2, 3]))
    assert summary_lines(tmp_path)[:2] == [
        f"19 ranks ({others} ...): peak allocated 0 B, reserved 0 B, device used 3.00 GiB, in denoise",
        "rank 7: peak allocated 0 B, reserved 0 B, device used 4.00 GiB, in denoise",
    ]


def test_summary_lists_the_fullest_of_many_ranks_and_every_wrong_replay(tmp_path: Path) -> None:
    ranks = {
        rank: {"spans": [span(1, "denoise", (0, 1), device_used=(0, 0, 7 * rank % 20))]} for rank in range(20)
    }
    wrong = {"num_checks": 1, "max_error_bytes": 1_024, "num_lost_events": 3}
    make_ranks(make_run(tmp_path, ranks), {"num_checks": 1}, wrong)
    lines = summary_lines(tmp_path)
    listed = [int(line.split()[1].rstrip(":")) for line in lines if line.startswith("rank ")]
    assert listed == [rank for rank in range(20) if 7 * rank % 20 >= 4]
    assert lines[16] == "the 16 fullest of 20 ranks; all of them: peak_by_rank in run.duckdb"
    assert lines[-1] == "replay: rank 1 is off by up to 1,024 bytes, 3 events were lost"


def test_summary_says_what_is_a_lower_bound_and_why(tmp_path: Path) -> None:
    """GIVEN a rank with a past, one whose device nobody looked at inside its spans, and one of which all is known."""
    size = (0, 0, 2**30)
    spans = [
        span(
            1,
            "denoise",
            (0, 1),
            allocated=size,
            reserved=size,
            device_used=size,
            num_samples=int(number != 1),
        )
        for number in range(3)
    ]
    make_run(tmp_path, {rank: {"spans": [one]} for rank, one in enumerate(spans)})
    well = {"status": "ok"}
    make_ranks(tmp_path, {**well, "peak_at_least": True}, well, well, status="ok")
    told = "peak allocated {0}1.00 GiB, reserved {0}1.00 GiB, device used {1}1.00 GiB, in denoise"
    assert summary_lines(tmp_path)[:5] == [
        f"rank 0: {told.format('at least ', '')}",
        f"rank 1: {told.format('', 'at least ')}",
        f"rank 2: {told.format('', '')}",
        "peaks of rank 0 are lower bounds: what was held before the first event is not known, and the peak may lie "
        "there",
        "device used of rank 1 is a lower bound: no sample was taken between the boundaries of spans",
    ]
    page = run_page.render(tmp_path)
    rows = [line for line in page.splitlines() if line.startswith('<tr><th scope="row">')][:3]
    assert [row.count("at least") for row in rows] == [2, 1, 0]
    assert page.count('<dd class="big">at least <span title="1,073,741,824 bytes">1.00 GiB</span></dd>') == 1


def test_summary_says_of_which_ranks_the_replay_could_be_compared(tmp_path: Path) -> None:
    exact = {"status": "ok", "num_checks": 3, "num_events": 5}
    ends = ("interrupted", "died", "interrupted")
    cut = [{"status": status, "num_events": 5} for status in ends]
    vague = {**exact, "inexact_bytes": 1_536, "max_error_bytes": 512}
    make_ranks(tmp_path, exact, *cut, exact, vague)
    lines = [line for line in summary_lines(tmp_path) if line.startswith("replay")]
    assert lines == [
        "replay: exact to the byte on ranks 0 and 4",
        "replay: rank 5 is right within 1,536 bytes: a rule of the allocator is not known there",
        "replay: not compared on ranks 1 to 3: ended before that (died, interrupted)",
    ]
    make_run(tmp_path, {rank: {"spans": [span(1, "denoise", (0, 1))]} for rank in range(6)})
    page = run_page.render(tmp_path)
    assert '<dd class="big">2 of 3</dd>' in page
    assert "ranks replay to the byte, 1 within 1,536 bytes, 3 ended before they could be compared" in page
    assert [word in page for word in ("exact</td>", "not compared</td>", "within 1,536 bytes</td>")] == [
        True
    ] * 3


def test_summary_says_when_nothing_was_checked(tmp_path: Path) -> None:
    make_ranks(tmp_path, {})
    assert summary_lines(tmp_path)[-1] == "replay: not checked: no allocator events were recorded"


def test_summary_of_ranks_that_were_killed_does_not_deny_their_events(tmp_path: Path) -> None:
    make_ranks(tmp_path, {"status": "died"}, {"status": "died"})
    assert summary_lines(tmp_path)[-1] == "replay: not checked: no rank came to its end"


def test_what_plotly_needs_is_in_the_file_and_comes_out_whole(run_dir: Path) -> None:
    packed = outline(run_page.render(run_dir)).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode().startswith("/**\n* plotly.js v")
    assert run_page.render(run_dir) == run_page.render(run_dir)


def test_names_from_a_run_cannot_leave_their_script_element(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    make_ranks(make_run(tmp_path, {0: {"spans": [span(1, evil.replace("/", ""), (0, 9))]}}), {})
    found = outline(run_page.render(tmp_path))
    assert sorted(found.scripts) == [
        *("code", "data-books", "data-heats-0", "data-heats-1", "data-heats-2", "data-timelines-0", "plotly"),
        "sql",
    ]
    assert drawn(found)["heats-0"]["data"][0]["y"] == ["&lt;script&gt;&lt;script&gt;alert(1)&lt;script&gt;"]


def test_names_from_a_run_are_no_links_in_a_figure(tmp_path: Path) -> None:
    link = '<a href="javascript:alert(1)">x<b>'
    events = [blank("allocs", seq=1, action="alloc", size_bytes=5, category="weight", span_id=1)]
    spans = [span(1, link, (0, 9), allocated=(0, 5, 5), step=0, component=link)]
    make_ranks(make_run(tmp_path, {rank: {"spans": spans, "allocs": events} for rank in (0, 1)}), {}, {})
    text = run_page.render(tmp_path)
    figures = drawn(outline(text))
    assert {name.split("-")[0] for name in figures} >= {
        "heats",
        "treemaps",
        "timelines",
        "imbalance",
        "steps",
    }
    for figure in figures.values():
        assert "<a" not in json.dumps(figure).replace("<b>%", "")
    assert link not in text
    assert "&lt;a href" in json.dumps(figures["treemaps-0"])


def test_of_256_ranks_the_telling_ones_are_drawn_and_the_range_of_all(tmp_path: Path) -> None:
    ranks = {
        rank: {"spans": [span(1, "denoise", (0, 9), device_used=(1, 1, 1000 + rank))]} for rank in range(256)
    }
    make_ranks(
        make_run(tmp_path, ranks), *({"status": "died" if rank == 77 else "ok"} for rank in range(256))
    )
    html = run_page.render(tmp_path)
    figures = drawn(outline(html))
    shown = [0, 77, *range(242, 256)]
    assert f"({', '.join(map(str, shown))})" in html
    names = [trace["name"] for trace in figures["timelines-0"]["data"]]
    assert names == ["min of all ranks", "max of all ranks", *(f"rank {rank}" for rank in (0, 77, 254, 255))]
    assert figures["timelines-0"]["data"][1]["customdata"][-1] == 1
    assert len(figures["heats-0"]["data"][0]["x"]) == 256
    assert len(html) < 4_000_000


def test_a_prediction_stands_beside_what_was_measured(tmp_path: Path) -> None:
    for name, source, size in (("measured", "cuda", 4 * GIB), ("predicted", "predicted", 3 * GIB)):
        spans = [span(1, "denoise", (0, 9), allocated=(0, 0, size)), span(2, name, (9, 10))]
        make_ranks(
            make_run(tmp_path / name, {0: {"spans": spans}}), {}, run_id=name, source=source, status="ok"
        )
    names = ("stage", "here_bytes", "there_bytes", "difference_fraction")
    html = run_page.render(tmp_path / "measured", beside=tmp_path / "predicted")
    assert "Predicted and measured" in outline(html).headings
    assert stage_peaks(tmp_path / "measured", tmp_path / "predicted") == StagePeaks(
        "predicted",
        "predicted",
        [
            dict(zip(names, ("denoise", 4 * GIB, 3 * GIB, -0.25), strict=True), rank=0),
            dict(zip(names, ("measured", 0, None, None), strict=True), rank=0),
        ],
    )
    (row,) = re.findall(r"<tr>.*<td>-25.00%</td></tr>", html)
    assert re.findall(r">(\d\.\d\d GiB)<", row) == ["4.00 GiB", "3.00 GiB"]
    with pytest.raises(ConfigError, match="it must have another source"):
        run_page.render(tmp_path / "measured", beside=tmp_path / "measured")


def test_a_run_that_was_predicted_afterwards_shows_both(tmp_path: Path) -> None:
    spans = [span(1, "denoise", (0, 9), allocated=(0, 0, 4 * GIB), reserved=(0, 0, 5 * GIB))]
    make_ranks(make_run(tmp_path, {0: {"spans": spans}}), {}, status="ok", source="cuda")
    assert "predicted_vs_measured" not in run_page.render(tmp_path)
    told = [{"stage": stage, "account": "allocated", "bytes": 3 * GIB} for stage in (None, "denoise")]
    write_predicted(tmp_path, {0: told})
    html = run_page.render(tmp_path)
    page = Outline(html)
    assert "Predicted and measured" in page.headings and not page.open
    assert page.ids.count("predicted_vs_measured") == 1
    wanted = '<td class="text">{}</td><td class="text">allocated</td>'
    assert html.count(wanted.format("whole run")) == html.count(wanted.format("denoise")) == 1
    assert html.count("<td>-25.00%</td>") == 2 and html.count(">beyond</td>") == 2
    assert "1.00 GiB more in tensors in denoise than the 3.00 GiB that are predicted" in html


def test_a_report_of_many_steps_is_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    ranks = {}
    for rank in (0, 1):
        spans = [
            span(n, "denoise", (10 * n, 10 * n + 9), allocated=(0, 0, 5), step=n) for n in range(1, 1_001)
        ]
        spans[500 + rank] = span(
            501 + rank, "denoise", (5010, 5019), allocated=(0, 0, 999 + rank), step=501 + rank
        )
        ranks[rank] = {"spans": spans}
    make_ranks(make_run(tmp_path, ranks), {}, {})
    text = run_page.render(tmp_path)
    assert "1,600 more rows are left out" in text
    assert "There are 1,000 steps. At most 400 points are drawn" in text
    assert text.count('title="999 bytes"') and text.count('title="1,000 bytes"')
    figures = drawn(outline(text))
    assert [max(trace["customdata"]) for trace in figures["steps"]["data"][::2]] == [999, 1000]
