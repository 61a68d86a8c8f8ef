"""scripts/mutants.py: what it samples, what it takes for seen, and that nothing is left behind."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import ROOT, import_script
from typer.testing import CliRunner

mutants = import_script("mutants")

CODE = "def larger(a, b):\n    return max(a, b)\n\n\ndef unseen(a):\n    return a + a\n"
TESTS = """
from wan.counts import larger

def test_that_fails_anyway():
    assert False

def test_larger():
    assert larger(1, 2) == 2
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with one file and its tests."""
    root = tmp_path / "tree"
    files = {
        "wan/__init__.py": "",
        "wan/counts.py": CODE,
        "tests/unit/test_counts.py": TESTS,
        ".gitignore": "big",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "big").write_text("ignored")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def listing(root: Path) -> dict[Path, tuple[str, int]]:
    files = [path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path: (path.read_text(), path.stat().st_mtime_ns) for path in files}


def test_an_area_without_files_has_no_mutants(tmp_path: Path) -> None:
    assert mutants.sample(tmp_path, "sql", 3, 0) == []


def test_a_seed_gives_the_same_mutants_and_another_seed_others() -> None:
    first = mutants.sample(ROOT, "sql", 20, 1)
    assert len(first) == len(set(first)) == 20
    assert mutants.sample(ROOT, "sql", 20, 1) == first
    assert mutants.sample(ROOT, "sql", 20, 2) != first


def test_only_some_files() -> None:
    found = mutants.sample(ROOT, "python", 30, 0, ["ray_memprof/wording", "ray_memprof/formats/csv"])
    assert {str(one.path) for one in found} == {"ray_memprof/wording.py", "ray_memprof/formats/csv.py"}


def test_what_changes_nothing_is_not_counted(root: Path) -> None:
    assert len(mutants.sample(root, "wan", 9, 0)) == 4
    (root / "scripts").mkdir()
    (root / "scripts/mutants_equivalent.toml").write_text(
        '[[mutant]]\nfile = "wan/counts.py"\nold = "return a + a"\nnew = "return a - a"\nreason = "none"\n'
    )
    left = {one.key for one in mutants.sample(root, "wan", 9, 0)}
    assert left == {
        ("wan/counts.py", "return max(a, b)", "return min(a, b)"),
        ("wan/counts.py", "return max(a, b)", "return None"),
        ("wan/counts.py", "return a + a", "return None"),
    }


def test_what_is_listed_as_equivalent_is_still_there() -> None:
    """A line that was rewritten needs another look."""
    for file, old, _ in mutants.equivalent(ROOT):
        text = [line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
        assert set(old.splitlines()) <= set(text), (file, old)


def test_a_copy_has_what_git_does_not_ignore(root: Path, tmp_path: Path) -> None:
    mutants.Copy(root, tmp_path / "copy")
    copied = sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert copied == [
        tmp_path / "copy" / name
        for name in (".gitignore", "tests/unit/test_counts.py", "wan/__init__.py", "wan/counts.py")
    ]


def test_a_changed_file_is_newer_and_comes_back_as_it_was(root: Path, tmp_path: Path) -> None:
    copy = mutants.Copy(root, tmp_path / "copy")
    (mutant, *_) = mutants.sample(root, "wan", 1, 0)
    before, path = listing(tmp_path / "copy"), tmp_path / "copy/wan/counts.py"
    with pytest.raises(ZeroDivisionError), copy.changed(mutant):
        assert path.read_text() == mutant.mutation.applied_to(CODE)
        assert path.stat().st_mtime_ns > before[path][1]
        raise ZeroDivisionError
    assert listing(tmp_path / "copy") == before


@pytest.mark.slow
def test_seen_is_what_a_test_that_passed_before_fails_on(root: Path, tmp_path: Path) -> None:
    before = listing(root)
    by_key = {one.key[2]: one for one in mutants.sample(root, "wan", 9, 0)}
    trial = mutants.Trial(root, [by_key["return min(a, b)"], by_key["return a - a"]], jobs=1, within_s=60)
    assert [is_seen for _, is_seen in trial.run()] == [True, False]
    assert trial.failing == {"tests/unit/test_counts.py::test_that_fails_anyway"}
    assert listing(root) == before


@pytest.mark.slow
def test_what_does_not_end_in_time_is_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "tests/unit/test_counts.py").write_text("import time\n\ndef test():\n    time.sleep(100)\n")
    monkeypatch.setattr(mutants, "NEAR_LIMIT_S", 2)
    trial = mutants.Trial(root, mutants.sample(root, "wan", 1, 0), jobs=1, within_s=2)
    assert [is_seen for _, is_seen in trial.run()] == [None]


def test_the_command_line_shows_diffs_and_refuses_other_areas() -> None:
    runner, app = CliRunner(), mutants.typer.Typer()
    app.command()(mutants.main)
    path = "ray_memprof/query/sql/time/steps"
    shown = runner.invoke(app, ["--area", "sql", "--num", "1", "--only", path, "--show"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"--- {path}.sql\n+++ {path}.sql\n@@ ")
    assert runner.invoke(app, ["--area", "rust"]).exit_code == 2


@pytest.mark.slow
def test_tests_that_run_are_ended_when_a_copy_is_stopped(root: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (root / "tests/unit/test_counts.py").write_text(
        f"import pathlib, time\n\ndef test():\n    pathlib.Path({str(begun)!r}).touch()\n    time.sleep(1000)\n"
    )
    copy = mutants.Copy(root, tmp_path / "copy")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(copy.outcome, ["tests/unit/test_counts.py"], 1000)
        while not begun.exists() and not running.done():
            time.sleep(0.05)
        copy.stop()
        assert running.result().is_failed
    # Nothing is begun after it: the test would take longer than this one may.
    copy.outcome(["tests/unit/test_counts.py"], 1000)
