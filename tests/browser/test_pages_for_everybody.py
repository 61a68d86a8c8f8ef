"""Reports, comparisons and plans at three widths, dark and light, by keyboard alone: nothing hidden, nothing faint.

axe-core looks for faults of accessibility; what it cannot see (text in figures, labels that are cut off) is looked at
here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe
import pytest
from browser_page import Page
from run_tables import make_ranks, make_run
from test_report_in_a_browser import GIB, TAB, rank_rows

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.report.comparison_page import write_comparison_page
from ray_memprof.report.plan_page import write_plan_page
from ray_memprof.report.run_page import write_run_page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]
PAGES = ("report", "comparison", "plan")
WIDTHS = (390, 1024, 1600)
SCHEMES = ("light", "dark")
NO_AXE = "needs axe-core, which comes with the package axe-playwright-python (extra dev)"
ENTER, SPACE, DOWN = "\ue007", "\ue00d", "\ue015"

# Text in figures: its contrast with what is behind it. A slice of a treemap or a flame graph has its own colour, a note
# its own box; the name of a stage may stand on either colour of the bands. Cells are judged by their colours.
FAINT = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([red, green, blue]) => [red, green, blue].map((one) => one / 255)
  .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
  .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
const contrast = (a, b) => {
  const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
const probe = document.createElement("i");
document.body.append(probe);
const named = (name) => {
  probe.style.color = `var(--${name})`;
  return channels(getComputedStyle(probe).color);
};
const behind = (text) => {
  const slice = text.closest("g.slice, g.pathbar")?.querySelector("path");
  if (slice) return [channels(getComputedStyle(slice).fill)];
  const box = text.closest("g.annotation")?.querySelector("rect.bg");
  if (box && channels(getComputedStyle(box).fill).length === 3 && getComputedStyle(box).fillOpacity === "1") {
    return [channels(getComputedStyle(box).fill)];
  }
  if (text.closest("g.annotation")) return [named("paper"), named("band0"), named("band1")];
  if (text.classList.contains("heatmap-label") || text.closest(".heatmap-label")) {
    const isChange = text.closest("[data-figure]").dataset.figure.endsWith("-change");
    const heats = [0, 1, 2, 3, 4].map((number) => `heat${number}`);
    return (isChange ? ["less2", "less1", "same", "more1", "more2"] : heats).map(named);
  }
  return [named("paper")];
};
const found = [];
for (const text of document.querySelectorAll("[data-figure] svg text")) {
  if (!text.textContent.trim() || !text.checkVisibility()) continue;
  const ink = channels(getComputedStyle(text).fill);
  const least = Math.min(...behind(text).map((colour) => contrast(ink, colour)));
  const figure = text.closest("[data-figure]").dataset.figure;
  if (least < 4.5) found.push(`${figure}: ${text.textContent}: ${least.toFixed(2)}`);
}
probe.remove();
return found;
"""

# Names of stages: within their picture, above the areas, on nothing else that is written or can be pressed.
MISPLACED = """
const found = [];
const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
for (const holder of document.querySelectorAll("[data-figure^=timelines]")) {
  if (!holder.checkVisibility()) continue;
  const picture = holder.querySelector(".main-svg").getBoundingClientRect();
  const areas = holder.querySelector(".plot rect, .nsewdrag").getBoundingClientRect();
  const names = [...holder.querySelectorAll("g.annotation")].filter((one) => !one.textContent.startsWith("peak"));
  const boxes = names.map((one) => one.querySelector("text").getBoundingClientRect());
  if (names.length === 0) found.push("no names");
  const others = [...document.querySelectorAll("button, [role=tab], nav")].map((one) => one.getBoundingClientRect());
  boxes.forEach((box, index) => {
    const name = names[index].textContent;
    if (box.left < picture.left || box.right > picture.right || box.top < picture.top) found.push(`${name} is cut off`);
    if (box.bottom > areas.top + 1) found.push(`${name} lies on the areas`);
    if (boxes.some((other, at) => at !== index && meet(box, other))) found.push(`${name} lies on another name`);
    if (others.some((other) => meet(box, other))) found.push(`${name} lies under a control`);
  });
}
return found;
"""
REACHABLE = """return [...document.querySelectorAll("a[href], button, summary, input, [tabindex='0']")]
  .filter((one) => one.checkVisibility() && one.tabIndex >= 0).length"""
FOCUSED = """
const one = document.activeElement;
if (one === document.body) return null;
one.dataset.reached = "";
return [one.tagName, getComputedStyle(one).outlineStyle !== "none"];
"""
MISSED = """return [...document.querySelectorAll("a[href], button, summary, input, [tabindex='0']")]
  .filter((one) => one.checkVisibility() && one.tabIndex >= 0 && !("reached" in one.dataset))
  .map((one) => one.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report against a base run whose ranks are swapped, a comparison of both, and a plan."""
    folder = tmp_path_factory.mktemp("pages")
    failed = {"status": "oom", "reason": "tried 2 GiB", "path": "denoise", "step": 1}
    ok, total = {"status": "ok", "num_checks": 1}, {"device_total_bytes": 20 * GIB}
    runs = []
    for name, end in (("base", {"status": "ok"}), ("other", failed)):
        run_dir = make_run(
            folder / name / "r", {rank: rank_rows(rank if name == "other" else 1 - rank) for rank in range(2)}
        )
        about = {"name": name, "run_id": "r", "status": end["status"], "source": "cuda"}
        make_ranks(run_dir, ok | total, ok | total | end, num_ranks=2, versions='{"torch": "2"}', **about)
        runs.append(run_dir)
    report = write_run_page(runs[1], ["rank 1: the last 3 bytes are missing"], base=runs[0])
    comparison = write_comparison_page(compare(runs), folder / "compare.html")
    return {
        "report": report,
        "comparison": comparison,
        "plan": write_plan_page(plan_facts(), plan_points(), folder / "plan.html"),
    }


def plan_facts() -> dict[str, Any]:
    """Two rows that fit, and what misses."""
    row = {"levers": "ulysses 2", "stage": "denoise", "rank": 0, "is_inexact": False}
    row |= {"device_used_bytes": 20 * GIB, "headroom_bytes": 4 * GIB, "host_bytes": 9 * GIB}
    rows = [row | {"row": number, "run_s": 90.0 * number, "step_s": 2.0 * number} for number in (1, 2)]
    rows[1] |= {"is_inexact": True, "device_used_bytes": 15 * GIB}
    nearest = {"levers": "ulysses 1", "misses_by_bytes": GIB, "stage": "decode", "misses_host_by_bytes": GIB}
    judged = dict.fromkeys(("legal", "over_by_weights", "over_by_bound", "over_host_memory"), 5)
    judged |= {"predicted": 4, "over_by_prediction": 2, "left": 0}
    return {
        "task": "t2v-14B", "num_gpus": 2, "gpu": "H200", "gpu_source": "measured", "limit_bytes": 24 * GIB,
        "rows": rows, "nearest": nearest | {"would_fit_with": {"offload": "true"}}, "judged": judged,
    }  # fmt: skip


def plan_points() -> list[dict[str, Any]]:
    """Other configurations, on both sides of the limit."""
    sizes = ((30, 40), (22, 120), (12, 400))
    return [
        {"run_s": time, "device_used_bytes": size * GIB, "levers": f"way {size}", "fits": size < 24}
        for size, time in sizes
    ]


def looks() -> Iterator[tuple[int, str]]:
    """Every width in light and dark."""
    return ((width, scheme) for width in WIDTHS for scheme in SCHEMES)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.skipif(axe.script() is None, reason=NO_AXE)
def test_axe_finds_no_serious_fault(page: Page, written: dict[str, Path], name: str) -> None:
    for width, scheme in looks():
        page.open(written[name], width=width, scheme=scheme)
        page.driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        assert axe.faults(page) == [], (width, scheme)


@pytest.mark.skipif(axe.script() is None, reason=NO_AXE)
def test_axe_sees_a_fault_where_there_is_one(page: Page, written: dict[str, Path]) -> None:
    page.open(written["plan"])
    page.driver.execute_script("document.querySelector('h2').style.color = '#aaaaaa'")
    # The heading, and the size within it.
    assert [fault.split()[1] for fault in axe.faults(page)] == ["<h2", "<span"]


@pytest.mark.parametrize("name", PAGES)
def test_text_in_figures_can_be_read_and_the_page_scrolls_one_way(
    page: Page, written: dict[str, Path], name: str
) -> None:
    for width, scheme in looks():
        page.open(written[name], width=width, scheme=scheme)
        assert page.driver.execute_script(FAINT) == [], (width, scheme)
        assert page.ask("document.documentElement.scrollWidth") <= width


def test_names_of_stages_are_whole_and_under_no_control(page: Page, written: dict[str, Path]) -> None:
    for width in WIDTHS:
        page.open(written["report"], width=width)
        assert page.driver.execute_script(MISPLACED) == [], width


def test_a_table_on_a_phone_keeps_the_first_column_in_view(page: Page, written: dict[str, Path]) -> None:
    page.open(written["report"], width=390)
    page.driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    wide = """[...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth)"""
    assert page.ask(f"{wide}.length") >= 5
    page.driver.execute_script(f"for (const one of {wide}) one.scrollLeft = 10000")
    lost = f"""{wide}.filter((one) => {{
        const box = one.getBoundingClientRect();
        const first = one.querySelector("tbody tr").firstElementChild.getBoundingClientRect();
        return Math.abs(first.left - box.left) > 1 || box.right > innerWidth || one.scrollLeft === 0;
    }}).map((one) => one.getAttribute("aria-label"))"""
    assert page.ask(lost) == []


@pytest.mark.parametrize("name", PAGES)
def test_the_tab_key_reaches_all_that_can_be_used_and_shows_where_it_is(
    page: Page, written: dict[str, Path], name: str
) -> None:
    page.open(written[name], width=1024)
    num = page.driver.execute_script(REACHABLE)
    assert num >= 3
    page.ask("document.body.focus()")
    unseen = []
    for _ in range(num + 2):
        page.press(TAB)
        reached = page.driver.execute_script(FOCUSED)
        if reached is None:
            break
        unseen += [] if reached[1] else [reached[0]]
    assert unseen == []
    assert page.driver.execute_script(MISSED) == []


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_sql_is_copied_by_a_key_from_a_file_with_and_without_a_clipboard(
    page: Page, written: dict[str, Path], has_clipboard: bool
) -> None:
    page.open(written["report"])
    allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.command("Browser.grantPermissions", permissions=allowed)
    read = "navigator.clipboard.readText"
    page.driver.execute_script(f"window.pasted = {read}.bind(navigator.clipboard)")
    if not has_clipboard:
        page.driver.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    for name, key in (("base_memory", ENTER), ("memory_parts", SPACE)):
        page.driver.execute_script(f"document.querySelector('[data-sql={name}]').focus()")
        page.press(key)
        page.wait(f"document.getElementById('copied').textContent.startsWith('SQL of {name} copied')")
        wanted = page.ask(f"JSON.parse(document.getElementById('sql').textContent).{name}")
        got = page.driver.execute_async_script("window.pasted().then(arguments[0])")
        assert got == wanted
        assert page.ask("document.activeElement.dataset.sql") == name


def test_sql_that_may_not_be_copied_is_shown_and_selected(page: Page, written: dict[str, Path]) -> None:
    page.open(written["report"])
    page.driver.execute_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined }); document.execCommand = () => false"
    )
    page.driver.execute_script("document.querySelector('[data-sql=base_memory]').click()")
    page.wait("document.activeElement.tagName === 'TEXTAREA'")
    wanted = page.ask("JSON.parse(document.getElementById('sql').textContent).base_memory")
    assert page.ask("getSelection().toString() || document.activeElement.value") == wanted


def test_the_peak_is_marked_with_rank_size_and_time_and_tells_what_was_alive(
    page: Page, written: dict[str, Path]
) -> None:
    page.open(written["report"])
    notes = "[...document.querySelectorAll('[data-figure=timelines-0] g.annotation text')]"
    told = page.ask(f"{notes}.map((one) => one.textContent).filter((text) => text.startsWith('peak'))")
    assert told == ["peak of rank 04.00 GiB at 0.12 s"]
    beside = page.ask("document.querySelector('#panel-timelines-0 .moment').innerText")
    assert "Peak of rank 0: 4.00 GiB of tensors at 0.12 s, in denoise of step 0" in beside
    assert "3.00 GiB activation of dit" in beside and "1.00 GiB weight of dit" in beside


def test_pictures_have_their_changes_against_the_base_run_as_texts_and_as_colours(
    page: Page, written: dict[str, Path]
) -> None:
    slices = """[...document.querySelectorAll(`[data-figure=${arguments[0]}] g.slice`)].map((one) => [
        one.textContent, getComputedStyle(one.querySelector("path")).fill])"""
    page.open(written["report"])
    less, more = "rgb(134, 187, 226)", "rgb(238, 159, 111)"
    for rank, colour, total in ((0, less, "4.00 GiB (-4.00 GiB)"), (1, more, "8.00 GiB (+4.00 GiB)")):
        for name, begins in (("treemaps", "alive at the peak"), ("flames", f"rank {rank}")):
            page.driver.execute_script(f"document.getElementById('tab-{name}-{rank}').click()")
            page.wait(f"document.querySelector('[data-figure={name}-{rank}] g.slice')")
            drawn = page.driver.execute_script(f"return {slices}", f"{name}-{rank}")
            assert f"{begins}, {total}" in {text for text, _ in drawn}
            assert {fill for _, fill in drawn} == {colour}
    cells = "[...document.querySelectorAll('[data-figure=heats-0-change] .heatmap-label')]"
    assert set(page.ask(f"{cells}.map((one) => one.textContent)")) >= {"-5.00 GiB", "+5.00 GiB"}


def test_a_search_in_a_flame_graph_gives_the_colours_of_changes_back(
    page: Page, written: dict[str, Path]
) -> None:
    page.open(written["report"])
    fills = """new Set([...document.querySelectorAll("[data-figure=flames-0] g.slice path")]
        .map((one) => getComputedStyle(one).fill)).size"""
    type_in = """const field = document.getElementById("search-flames-0"); field.value = arguments[0];
        field.dispatchEvent(new Event("input"))"""
    assert page.ask(fills) == 1
    page.driver.execute_script(type_in, "activation")
    page.wait(f"{fills} === 2")
    page.driver.execute_script(type_in, "")
    page.wait(f"{fills} === 1")
