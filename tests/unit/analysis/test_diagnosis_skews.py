"""Diagnosis on generated runs: the right rank, stage and component of every injected skew, silence without one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ray_memprof.analysis.diagnosis import diagnose as diagnosis
from ray_memprof.analysis.diagnosis.diagnose import Finding
from ray_memprof.query import database
from ray_memprof.store.run_files import TABLES_DIR
from ray_memprof.store.run_tables import write_driver_tables

BLOCKS, EVENTS = 2, 2_000
RUNS = [pytest.param(number, marks=[] if number < 4 else [pytest.mark.slow]) for number in range(50)]
STAGES = ("encode.text", "denoise", "decode")
COMPONENTS = ("t5", "clip", "dit", "vae")
LEAST_FRACTION = 0.05
UNEVEN_FRACTION = 0.01
"""Of the peak of the smallest stage: ranks with equal work are not equal to the byte."""


def peaks(maker: ModuleType, seed: int) -> dict[str, int]:
    """Peak of each stage on any rank, before anything is injected."""
    rows = maker.Rows(0, EVENTS, BLOCKS, maker.Variant(seed=seed, is_shared=True))
    spans = rows.spans()
    found: dict[str, int] = {}
    for stage, peak in zip(spans["stage"].to_pylist(), spans["allocated_peak_bytes"].tolist(), strict=True):
        found[stage] = max(peak, found.get(stage, 0))
    return found


def diagnose(maker: ModuleType, run_dir: Path, ranks: int, variant: object) -> Iterator[list[Finding]]:
    """What is said of a run of level event, and of the same run without its events, as level stage leaves it."""
    maker.make(run_dir, ranks, EVENTS, blocks=BLOCKS, variant=variant)
    write_driver_tables(run_dir, *maker.driver_rows(run_dir, ranks))
    for level in ("event", "stage"):
        if level == "stage":
            shutil.rmtree(run_dir / TABLES_DIR / "allocs")
        with database.open_run(run_dir) as connection:
            yield diagnosis.findings(connection)


@pytest.mark.parametrize("number", RUNS)
def test_a_skew_is_found_with_its_rank_stage_and_component(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # What the others say of a skew is not looked at, and asking all takes ten times as long.
    rule = next(one for one in diagnosis.RULES if one.name == "holds_more")
    monkeypatch.setattr(diagnosis, "RULES", (rule,))
    draw = np.random.default_rng(number)
    ranks = int(draw.integers(2, 6))
    stage = STAGES[int(draw.integers(len(STAGES)))]
    held = peaks(maker, number)
    size = int(held[stage] * draw.uniform(LEAST_FRACTION, 0.5)) // 512 * 512 + 512
    skew = maker.Skew(int(draw.integers(ranks)), stage, COMPONENTS[int(draw.integers(4))], size)
    uneven = int(UNEVEN_FRACTION * min(held[stage] for stage in STAGES))

    for found in diagnose(maker, tmp_path, ranks, maker.Variant(number, True, uneven, skew)):
        assert [(one.ranks, one.stage, one.component) for one in found] == [
            ((skew.rank,), skew.stage, skew.component)
        ]
        assert abs(found[0].bytes - size) <= uneven


@pytest.mark.parametrize("number", RUNS)
def test_ranks_that_do_the_same_are_passed_over_in_silence(
    maker: ModuleType, tmp_path: Path, number: int
) -> None:
    seed = 1000 + number
    held = peaks(maker, seed)
    uneven = int(UNEVEN_FRACTION * min(held[stage] for stage in STAGES))
    for found in diagnose(maker, tmp_path, 2 + number % 4, maker.Variant(seed, True, uneven)):
        # The player's allocator gives each size segments of its own: that it fragments is no false alarm.
        assert [one for one in found if one.rule != "fragments"] == []
