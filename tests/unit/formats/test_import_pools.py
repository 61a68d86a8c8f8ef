"""Memory pools in imported snapshots, as releases of torch write them: by event, or by segment alone."""

from collections import Counter
from pathlib import Path

import pytest
from allocator_model import VERSIONS, Model, Settings, Version
from run_tables import answer
from snapshots import write

from ray_memprof.formats.torch_snapshot.read import import_snapshots
from ray_memprof.report.derive import derive

MIB = 2**20
GRAPH, SHARED = (1, 0), (0, 1)


def grown(expandable: bool) -> Model:
    """A program that only allocates: its peak is its end."""
    model = Model(Settings(expandable=expandable))
    for number in range(12):
        model.alloc((1 + number) * MIB)
        model.alloc(3 * MIB + 512 * number, GRAPH)
        model.alloc(700, SHARED if number % 2 else GRAPH)
    return model


@pytest.mark.parametrize("version", [one for one in VERSIONS if one.pools], ids=lambda one: one.name)
@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("start", [0, 17])
def test_each_pool_holds_what_the_allocator_has_in_it(
    tmp_path: Path, version: Version, expandable: bool, start: int
) -> None:
    model = grown(expandable)
    import_snapshots(
        [write(tmp_path / "rank0.pickle", model.snapshot(version, start))], tmp_path / "run", "x"
    )
    reserved, allocated = Counter[str](), Counter[str]()
    for segment in model.snapshot(VERSIONS[-1])["segments"]:
        pool = str(segment["segment_pool_id"])
        reserved[pool] += segment["total_size"]
        allocated[pool] += sum(block["size"] for block in segment["blocks"] if block["state"] != "inactive")
    found = answer(tmp_path / "run", "pools")
    assert {pool: (size, held) for _, pool, _, _, size, held, _ in found} == {
        pool: (reserved[pool], allocated[pool]) for pool in reserved
    }
    owners = {pool: owner for _, pool, owner, *_ in found}
    assert owners == {"(0, 0)": "default", "(1, 0)": "graph", "(0, 1)": "shared"}


def test_the_report_has_a_part_on_pools(tmp_path: Path) -> None:
    path = write(tmp_path / "rank0.pickle", grown(False).snapshot(VERSIONS[-1]))
    import_snapshots([path], tmp_path / "run", "x", derive=derive)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="pools"' in page
    assert "a MemPool, or graphs that share it" in page


def test_a_release_that_names_no_pools_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rank0.pickle", grown(False).snapshot(VERSIONS[0]))
    import_snapshots([path], tmp_path / "run", "x")
    assert answer(tmp_path / "run", "pools") == []
