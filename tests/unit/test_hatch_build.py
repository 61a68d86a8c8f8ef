"""hatch_build.py: a wheel holds plotly.js of the pinned plotly, whole, with its licence."""

import gzip
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from plotly.offline import get_plotlyjs

from ray_memprof.report import page

pytest.importorskip("hatchling")


def hatch_build() -> ModuleType:
    path = Path(__file__).parents[2] / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packed_file_is_that_of_the_installed_version_with_its_licence(tmp_path: Path) -> None:
    script, licence = hatch_build().pack(tmp_path / "plotly")
    assert gzip.decompress(script.read_bytes()).decode() == get_plotlyjs()
    text = licence.read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "Plotly" in text


def test_the_same_version_makes_the_same_files(tmp_path: Path) -> None:
    made = [[path.read_bytes() for path in hatch_build().pack(tmp_path / name)] for name in ("a", "b")]
    assert made[0] == made[1]


def test_a_report_of_an_editable_install_takes_it_from_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_PLOTLY", Path("nowhere"))
    page.packed_plotly.cache_clear()
    import base64

    assert gzip.decompress(base64.b64decode(page.packed_plotly())).decode() == get_plotlyjs()
    page.packed_plotly.cache_clear()


def test_a_wheel_has_the_sample_run_where_it_is_looked_for(tmp_path: Path) -> None:
    from ray_memprof.store import sample

    ((source, target),) = hatch_build().SAMPLE.items()
    packed, in_repository = sample._PLACES
    root = Path(__file__).parents[2]
    assert (root / source, root / target) == (in_repository, packed)
    assert next(in_repository.glob("*/tables")).is_dir()
