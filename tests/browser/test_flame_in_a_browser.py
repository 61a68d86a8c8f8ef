"""Flame graphs as a browser shows them: drawn, searched, zoomed, one rank after the other; nothing fetched."""

from pathlib import Path
from typing import Any

import pytest
from browser_page import Page
from run_tables import Row, blank, event, make_ranks, make_run

from ray_memprof.report.flame_page import write_flame_page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]
GIB = 2**30
STACKS = {
    0: [("linear", "/env/site-packages/torch/nn/functional.py"), ("forward", "model.py"), ("main", "run.py")],
    1: [("forward", "model.py"), ("<b>decode</b>", "vae.py"), ("main", "run.py")],
    2: [("main", "run.py")],
}
SHOWN = """[...document.querySelectorAll("[data-figure=flames-0] g.slice")].map((one) =>
    one.querySelector("text").textContent)"""
FILLED = """[...document.querySelectorAll("[data-figure=flames-0] g.slice")].filter((one) =>
    getComputedStyle(one.querySelector("path")).fill === "rgb(11, 87, 164)").map((one) =>
    one.querySelector("text").textContent)"""
FOUND = "document.getElementById('found-flames-0').textContent"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two ranks: 1 GiB for each of three stacks, and no stack at all."""
    frames: list[Row] = [
        blank("stacks", stack_id=number, frame=index, function=function, file=file, line=1)
        for number, stack in STACKS.items()
        for index, (function, file) in enumerate(stack)
    ]
    allocs = [event(number, "alloc", GIB, address=number, stack_id=number) for number in STACKS]
    bare = [event(1, "alloc", GIB, address=1)]
    folder = tmp_path_factory.mktemp("run")
    run_dir = make_run(folder / "run", {0: {"allocs": allocs, "stacks": frames}, 1: {"allocs": bare}})
    make_ranks(run_dir, {}, {}, name="a run", run_id="r", status="ok")
    return write_flame_page(run_dir, folder / "flame.html")


def search(page: Page, text: str) -> None:
    script = "const field = document.getElementById('search-flames-0'); field.value = arguments[0]; "
    page.driver.execute_script(script + "field.dispatchEvent(new Event('input'))", text)


def click(page: Page, name: str, kind: str = "slice") -> None:
    """On the first frame of this name, as a mouse does; of kind pathbar: in the bar above the graph."""
    found: list[Any] = page.driver.find_elements("css selector", f"[data-figure=flames-0] g.{kind}")
    next(one for one in found if one.text == name).click()


def test_every_rank_is_drawn_without_a_complaint_or_a_request(page: Page, written: Path) -> None:
    page.open(written)
    page.driver.execute_script("document.getElementById('tab-flames-1').click()")
    page.wait("document.querySelectorAll('[data-figure=flames-1] g.slice').length === 3")
    page.driver.execute_script("document.getElementById('tab-flames-0').click()")
    assert sorted(page.ask(SHOWN)) == sorted(
        ["rank 0, 3.00 GiB", "main", "forward", "linear", "<b>decode</b>", "forward"]
    )
    assert page.complaints() == []
    assert page.requests() == []


def test_a_search_fills_frames_and_counts_their_bytes_once(page: Page, written: Path) -> None:
    page.open(written)
    for text, told, filled in (
        ("FORWARD", "2 frames match: 2.00 GiB of 3.00 GiB (66.7%)", ["forward", "forward"]),
        ("<b>", "1 frame matches: 1.00 GiB of 3.00 GiB (33.3%)", ["<b>decode</b>"]),
        ("run.py", "1 frame matches: 3.00 GiB of 3.00 GiB (100.0%)", ["main"]),
        ("e.py", "1 frame matches: 1.00 GiB of 3.00 GiB (33.3%)", ["<b>decode</b>"]),
        (".py", "5 frames match: 3.00 GiB of 3.00 GiB (100.0%)", None),
        ("nothing", "no frame matches", []),
        ("", "", []),
    ):
        search(page, text)
        page.wait(f"{FOUND} === {told!r}")
        if filled is not None:
            page.wait(f"{FILLED}.length === {len(filled)}")
            assert page.ask(FILLED) == filled


def test_a_click_zooms_and_a_search_keeps_the_zoom(page: Page, written: Path) -> None:
    page.open(written)
    click(page, "<b>decode</b>")
    page.wait(f"{SHOWN}.length === 2")
    assert page.ask(SHOWN) == ["<b>decode</b>", "forward"]
    search(page, "forward")
    page.wait(f"{FILLED}.length === 1")
    assert page.ask(SHOWN) == ["<b>decode</b>", "forward"]
    search(page, "")
    page.wait(f"{FILLED}.length === 0")
    click(page, "rank 0, 3.00 GiB", "pathbar")
    page.wait(f"{SHOWN}.length === 6")
