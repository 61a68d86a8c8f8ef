"""What axe-core says of a page that is open in a browser: serious and critical faults of accessibility.

axe.min.js comes with the package axe-playwright-python; nothing else of it is used.
"""

import importlib.util
from pathlib import Path

from browser_page import Page

PACKAGE = "axe_playwright_python"


def script() -> Path | None:
    """axe.min.js, or None where the package is not installed."""
    # Only looked for: its import would bring a whole second browser driver.
    found = importlib.util.find_spec(PACKAGE)
    folders = (found.submodule_search_locations or ()) if found else ()
    return next((path for folder in folders if (path := Path(folder, "axe.min.js")).is_file()), None)


RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ["violations"] }).then(
  (result) => done(result.violations.filter((one) => ["serious", "critical"].includes(one.impact)).flatMap(
    (one) => one.nodes.map((node) => `${one.id}: ${node.html.slice(0, 160)}: ${node.failureSummary}`))),
  (error) => done([`axe failed: ${error}`]));
"""


def faults(page: Page) -> list[str]:
    """Each serious or critical fault of the page that is shown, with the element."""
    path = script()
    assert path is not None
    if not page.ask("typeof axe === 'object'"):
        page.driver.execute_script(path.read_text(encoding="utf-8"))
    found: list[str] = page.driver.execute_async_script(RUN)
    return found
