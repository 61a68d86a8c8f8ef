"""docs/grafana.json asks Prometheus only for gauges and labels that are written, and draws all of them."""

import json
import re
from pathlib import Path
from typing import Any

from ray_memprof.driver import ray_metrics
from ray_memprof.formats.trackers import to_prometheus

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
LIVE = {f"ray_{name}": set(ray_metrics.LABELS) for name in ray_metrics.GAUGES}
LABELS = LIVE | {
    name: set(to_prometheus._LABELS.get(name, to_prometheus._RUN)) for name in to_prometheus.GAUGES
}
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
VARIABLES = DASHBOARD["templating"]["list"]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bray_memprof_\w+", text))


def test_every_gauge_of_the_dashboard_exists_and_every_gauge_is_drawn() -> None:
    assert set.union(*(names_in(target["expr"]) for target in TARGETS)) == LABELS.keys()
    asked = " ".join(one["query"]["query"] for one in VARIABLES if one["type"] == "query")
    assert names_in(asked) <= LABELS.keys()


def test_every_label_is_one_of_its_gauge() -> None:
    for target in TARGETS:
        known = set.union(*(LABELS[name] for name in names_in(target["expr"])))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known, target
        for name, selector in re.findall(r"(ray_memprof_\w+)\{(.*?)\}", target["expr"]):
            assert set(re.findall(r"(\w+)=", selector)) <= LABELS[name], target


def test_measures_are_those_that_are_written() -> None:
    from ray_memprof.formats.trackers.account import MEASURES

    asked = {one for target in TARGETS for one in re.findall(r'measure="(\w+)"', target["expr"])}
    assert asked and asked <= set(MEASURES)


def test_variables_of_the_panels_are_defined() -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__all"} == {one["name"] for one in VARIABLES}


def test_panels_have_numbers_and_places_of_their_own() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers) and len(set(places)) == len(places)


def test_the_page_names_every_gauge_that_goes_on_while_a_run_does() -> None:
    page = (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8")
    assert LIVE.keys() - set(re.findall(r"`(ray_\w+)`", page)) == set()
