"""The report as a browser shows it: every figure drawn, nothing fetched, keyboard, light and dark, phone, paper."""

import base64
from pathlib import Path

import pytest
from browser_page import Page
from run_tables import Row, blank, make_ranks, make_run, span

from ray_memprof.report.run_page import write_run_page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]
GIB = 2**30
MS = 10**6
TOO_SMALL = """[...document.querySelectorAll("body *")].filter((one) =>
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) && one.checkVisibility()
    && parseFloat(getComputedStyle(one).fontSize) < 12).map((one) => one.outerHTML.slice(0, 200))"""
UNDRAWN = """[...document.querySelectorAll("[data-figure]")].filter((one) =>
    one.checkVisibility() && one.querySelectorAll(".main-svg path, .main-svg rect, .main-svg image").length < 3)
    .map((one) => one.dataset.figure)"""
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
ARROW_RIGHT, ARROW_LEFT, HOME, END, TAB = "\ue014", "\ue012", "\ue011", "\ue010", "\ue004"


def rank_rows(rank: int) -> dict[str, list[Row]]:
    """Weights come, two steps are taken, one rank decodes; every account and category holds something."""
    size = (1 + rank) * GIB
    steps = [
        span(2 + step, "denoise", (100 * MS * (1 + step), 100 * MS * (2 + step)), step=step, component="dit")
        | {f"{what}_peak_bytes": 4 * size for what in ("allocated", "reserved", "active", "device_used")}
        for step in range(2)
    ]
    begin = span(1, "load.dit", (0, 100 * MS), component="dit", device_used=(GIB, 5 * size, 5 * size))
    events = [(5, "segment_alloc", 5 * size, None, 1), (10, "alloc", size, "weight", 1)]
    for step in (1, 2):
        events += [(100 * step + 20, "alloc", 3 * size, "activation", 1 + step)]
        events += [(100 * step + 60, "free_completed", 3 * size, "activation", 1 + step)]
    allocs = [
        blank(
            "allocs",
            seq=seq,
            address=1 if category == "weight" else 2,
            t_ns=at * MS,
            action=action,
            size_bytes=bytes_,
            category=category,
            span_id=span_id,
        )
        for seq, (at, action, bytes_, category, span_id) in enumerate(events)
    ]
    book = [
        blank("ledger", t_ns=0, account=account, bytes=GIB // 4)
        for account in ("context", "nccl", "libraries")
    ]
    return {"spans": [begin, *steps], "allocs": allocs, "ledger": book}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three ranks, the last one out of memory."""
    run_dir = make_run(tmp_path_factory.mktemp("run"), {rank: rank_rows(rank) for rank in range(3)})
    ok, total = {"status": "ok", "num_checks": 1}, {"device_total_bytes": 20 * GIB}
    failed = {"status": "oom", "reason": "tried 2 GiB", "path": "denoise", "step": 1}
    make_ranks(
        run_dir, ok | total, ok | total, failed | total, name="a run", run_id="r", status="oom", source="cuda"
    )
    return write_run_page(run_dir)


def test_every_figure_is_drawn_without_a_complaint_or_a_request(page: Page, written: Path) -> None:
    page.open(written)
    page.driver.execute_script("for (const tab of document.querySelectorAll('[role=tab]')) tab.click()")
    page.wait(
        "[...document.querySelectorAll('[data-figure]')].every((one) => one.hasAttribute('data-drawn'))"
    )
    assert page.ask("document.querySelectorAll('[data-figure]').length") == 19
    assert page.ask(UNDRAWN) == []
    assert page.ask(TOO_SMALL) == []
    assert page.complaints() == []
    assert page.requests() == []
    print("first paint, ms:", page.ask("performance.getEntriesByName('first-paint')[0].startTime"))


def test_tabs_are_one_stop_and_arrows_move_among_them(page: Page, written: Path) -> None:
    page.open(written)
    chosen = "document.querySelector('[role=tab][aria-selected=true]').textContent"
    shown = "[...document.querySelectorAll('#panel-timelines-0, #panel-timelines-1, #panel-timelines-2, "
    shown += "#panel-timelines-3')].map((one) => !one.hidden)"
    page.driver.execute_script("document.querySelector('[role=tab]').focus()")
    moves = ((ARROW_RIGHT, 1), (ARROW_LEFT, 0), (ARROW_LEFT, 3), (HOME, 0), (END, 3))
    for key, at in moves:
        page.press(key)
        assert page.ask(shown) == [at == number for number in range(4)]
        assert page.ask("document.activeElement.textContent") == page.ask(chosen)
    page.press(TAB)
    assert page.ask("document.activeElement.id") == "panel-timelines-3"


def test_the_numbers_of_a_figure_are_a_table_too(page: Page, written: Path) -> None:
    page.open(written)
    page.driver.execute_script("document.querySelector('[data-table-of=timelines-0] summary').click()")
    page.wait("document.querySelector('[data-table-of=timelines-0] tbody tr') !== null")
    head = page.ask(
        "[...document.querySelectorAll('[data-table-of=timelines-0] th')].map((one) => one.textContent)"
    )
    assert head[:4] == ["second", "weight", "activation", "cached"]
    titles = "[...document.querySelectorAll('[data-table-of=timelines-0] td')].map((one) => one.title)"
    assert "1,073,741,824 bytes" in page.ask(titles)


@pytest.mark.parametrize(("scheme", "paper"), [("light", LIGHT), ("dark", DARK)])
def test_figures_follow_light_and_dark(page: Page, written: Path, scheme: str, paper: str) -> None:
    page.open(written, scheme=scheme)
    assert page.ask("getComputedStyle(document.body).backgroundColor") == paper
    other = "dark" if scheme == "light" else "light"
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    before = page.ask(ink)
    assert before == page.ask("getComputedStyle(document.body).color")
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": other}])
    page.wait(f"{ink} !== '{before}'")


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_phone_scrolls_one_way_only(page: Page, written: Path, width: int) -> None:
    page.open(written, width=width, height=800)
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(TOO_SMALL) == []


def test_it_prints_on_paper_in_light_colours_within_the_margins(page: Page, written: Path) -> None:
    page.open(written, scheme="dark")
    paper = page.command("Page.printToPDF", preferCSSPageSize=True)
    assert base64.b64decode(paper["data"]).startswith(b"%PDF")
    # Afterwards it is dark and as wide as the window again.
    assert page.ask("getComputedStyle(document.body).backgroundColor") == DARK
    page.wait("document.querySelector('.main-svg').clientWidth > 1000")
    page.driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    page.wait("document.querySelector('.main-svg').clientWidth === 690")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == LIGHT
    page.driver.execute_script("dispatchEvent(new Event('afterprint'))")


def test_a_run_without_rows_needs_no_script(page: Page, tmp_path: Path) -> None:
    path = write_run_page(make_run(tmp_path, {0: {}}))
    page.driver.get(path.as_uri())
    assert page.ask("document.querySelectorAll('script').length") == 0
    assert (page.complaints(), page.requests()) == ([], [])
