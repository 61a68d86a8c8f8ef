"""docs/vram.md: the page says what docs/vram.json holds, and the script predicts a case that is missing."""

import json
from pathlib import Path

import pytest
from command_line import import_script

from ray_memprof.planner.space import Choice

write_vram = import_script("write_vram")


def test_the_page_is_what_the_figures_say() -> None:
    assert write_vram.main(["--check"]) == 0


def test_every_measured_figure_has_a_line() -> None:
    lines = {(case.task, case.size, case.num_gpus, case.choice) for case in write_vram.cases()}
    assert set(write_vram.MEASURED) <= lines


@pytest.mark.parametrize(
    ("gib", "card"), [(6.17, "8 GB"), (7.9, "12 GB"), (23.5, "24 GB"), (23.6, "32 GB"), (150, "none")]
)
def test_a_card_keeps_a_little_for_the_driver(gib: float, card: str) -> None:
    assert write_vram.smallest_card(int(gib * write_vram.GIB)) == card


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_a_case_that_is_missing_is_predicted_kept_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [
        write_vram.Case("t2v-tiny", "64*48", 1, Choice()),
        write_vram.Case("i2v-tiny", "64*48", 1, Choice(load_strategy="stream")),
    ]
    monkeypatch.setattr(write_vram, "cases", lambda: iter(few))
    monkeypatch.setattr(write_vram, "PICTURES", {"i2v-tiny": ("image",)})
    assert write_vram.main(["--frames", "5", "--limit", "2"], docs=tmp_path) == 0
    figures = json.loads((tmp_path / "vram.json").read_text(encoding="utf-8"))
    assert list(figures) == [case.key for case in few]
    assert all(one["device_used_bytes"] > 500 * 2**20 for one in figures.values())
    text = (tmp_path / "vram.md").read_text(encoding="utf-8")
    assert (
        text == write_vram.page(figures) and "| t2v-tiny | 64*48 | none: weights on the device | 0." in text
    )
    assert write_vram.main(["--check"], docs=tmp_path) == 0
