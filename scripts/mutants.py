"""Do the tests see a change? Applies random small changes, one at a time, and runs the unit tests.

    python scripts/mutants.py                                     # 40 of each area: python, sql, wan
    python scripts/mutants.py --area sql --num 100 --seed 7
    python scripts/mutants.py --only ray_memprof/formats          # in these files alone; may be repeated

Every change is made in a copy of the tree, in a scratch folder that is gone afterwards. Tests that import the changed
file (for SQL: that name it) run first, then some of those that reach it through others. A test that fails without the
change too does not count. Prints each change that no test saw as a diff, and the share caught by area. A change whose
tests did not end in time is reported as such and not counted: on a busy machine give --within more seconds. Changes in
mutants_equivalent.toml have no effect that a test could see, and are not counted.
"""

import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated
from xml.etree import ElementTree

import pytest
import typer
from concerned_tests import Concerned
from mutations import Mutation, is_valid, mutations_of
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
AREAS = {
    "python": ("ray_memprof/**/*.py", ("tests/unit",)),
    "sql": ("ray_memprof/**/*.sql", ("tests/unit",)),
    "wan": ("wan/**/*.py", ("tests/unit", "tests/parallel")),
}
"""By area: its files, and the tests that should see a change of them."""
NOT_ON_A_CPU = ("wan/networks/kernels.py", "wan/networks/vae/kernels.py", "wan/parallel/xfuser_backend.py")
EQUIVALENT = "scripts/mutants_equivalent.toml"
NEAR_LIMIT_S = 600
"""A test that hangs is ended by its own time limit; this is for all tests of a file together."""
PASSED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
errors, out = Console(stderr=True, highlight=False), Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Mutant:
    """One change to one file of the tree."""

    area: str
    path: Path
    """Relative to the tree."""
    text: str
    mutation: Mutation

    @property
    def diff(self) -> str:
        """As a patch, with two lines around it."""
        lines = self.text.splitlines(), self.mutation.applied_to(self.text).splitlines()
        return "\n".join(difflib.unified_diff(*lines, str(self.path), str(self.path), n=2, lineterm=""))

    @property
    def key(self) -> tuple[str, str, str]:
        """File, lines taken out and lines put in: what mutants_equivalent.toml knows it by, wherever they stand."""
        changed = [line for line in self.diff.splitlines()[2:] if line[:1] in "+-"]
        gone, come = ("\n".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
        return str(self.path), gone, come


def sample(root: Path, area: str, num: int, seed: int, only: Sequence[str] = ()) -> list[Mutant]:
    """`num` changes of an area at random; the same for the same seed and files."""
    known, found = equivalent(root), []
    for path in sorted(root.glob(AREAS[area][0])):
        name = path.relative_to(root)
        if str(name) in NOT_ON_A_CPU or (only and not any(str(name).startswith(one) for one in only)):
            continue
        text = path.read_text(encoding="utf-8")
        found += [Mutant(area, name, text, mutation) for mutation in mutations_of(path, text)]
    random.Random(f"{seed} {area}").shuffle(found)
    chosen: list[Mutant] = []
    for mutant in found:
        if len(chosen) == num:
            break
        if is_valid(mutant.path, mutant.text, mutant.mutation) and mutant.key not in known:
            chosen.append(mutant)
    return chosen


def equivalent(root: Path) -> set[tuple[str, str, str]]:
    """Keys of the changes that change nothing."""
    path = root / EQUIVALENT
    listed = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []) if path.exists() else []
    return {(one["file"], one["old"].strip(), one["new"].strip()) for one in listed}


class Copy:
    """A copy of the tree to change and to test.

    Args:
        root: the tree; what git ignores is not copied.
        folder: where to, empty.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        self._is_stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            check=True,
            stdout=subprocess.PIPE,
        )
        for name in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, folder / name)

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The tree with one file changed, and as it was afterwards."""
        path = self._folder / mutant.path
        before = path.stat()
        path.write_text(mutant.mutation.applied_to(mutant.text), encoding="utf-8")
        # Python takes a file of the same size and second for the one that it compiled.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**10))
        try:
            yield
        finally:
            path.write_text(mutant.text, encoding="utf-8")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def outcome(self, tests: Sequence[str], limit_s: float, left_out: Iterable[str] = ()) -> "Outcome":
        """Run tests up to the first that fails; whatever they started is ended with them."""
        results = self._folder / "results.xml"
        results.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-n",
            "0",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
        ]
        options = [
            f"--junitxml={results}",
            "-o",
            "junit_family=xunit1",
            *(f"--deselect={one}" for one in left_out),
        ]
        process = subprocess.Popen(
            [*command, *options, *tests],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = process
        if self._is_stopped:
            self.stop()
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Outcome(is_over=False)
        finally:
            _end(process)
        return Outcome(code not in PASSED, tuple(_failed(results)) if results.exists() else ())

    def stop(self) -> None:
        """End the tests that run, and whatever would be started after them."""
        self._is_stopped = True
        if self._process is not None:
            _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Outcome:
    """What tests said: whether one failed, and its name where they lived to tell it."""

    is_failed: bool = False
    names: tuple[str, ...] = ()
    is_over: bool = True
    """False: the time ran out."""


def _failed(results: Path) -> Iterator[str]:
    """Tests that failed, named as the command line takes them; a file that cannot be imported by its own name."""
    for case in ElementTree.parse(results).iter("testcase"):
        if not {"failure", "error"} & {part.tag for part in case}:
            continue
        file, owner = case.get("file"), case.attrib["classname"]
        if file is None:
            yield case.attrib["name"].replace(".", "/") + ".py"
            continue
        classes = owner.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
        yield "::".join([file, *filter(None, classes.split(".")), case.attrib["name"]])


def _near_and_far(concerned: Concerned, path: Path) -> tuple[list[str], list[str]]:
    """The tests that read a file themselves, and those that reach it through others: first those of its own room."""
    near, *more = concerned.by_distance(path, most=4)
    room = f"/{path.parts[1] if len(path.parts) > 2 else path.parts[0]}/"
    return near, sorted((test for level in more for test in level), key=lambda test: room not in test)


class Trial:
    """A sample of mutants, each tried in one of several copies of the tree.

    Args:
        root: the tree.
        mutants: what to try.
        jobs: number of copies, and of tests side by side.
        within_s: seconds for tests that reach the changed file only through another, for each mutant.
    """

    def __init__(self, root: Path, mutants: Sequence[Mutant], jobs: int, within_s: float) -> None:
        self._root, self._mutants, self._jobs, self._within_s = root, mutants, jobs, within_s
        found = {area: Concerned(root, AREAS[area][1]) for area in {one.area for one in mutants}}
        self._levels = {one.path: _near_and_far(found[one.area], one.path) for one in mutants}
        self._sound: set[str] = set()
        self.failing: set[str] = set()
        """Tests that failed without a change, too."""

    def run(self) -> Iterator[tuple[Mutant, bool | None]]:
        """Every mutant, in order, and whether a test saw it; None: its tests did not end in time."""
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            every = [Copy(self._root, Path(folder) / str(number)) for number in range(self._jobs)]
            copies: SimpleQueue[Copy] = SimpleQueue()
            for copy in every:
                copies.put(copy)

            def see(mutant: Mutant) -> bool | None:
                copy = copies.get()
                try:
                    near, far = self._levels[mutant.path]
                    seen: bool | None = False
                    for tests, limit_s in ((near, NEAR_LIMIT_S), (far, self._within_s)):
                        if (one := self._is_seen(copy, mutant, tests, limit_s)) is not False:
                            seen = one
                        if seen:
                            break
                    return seen
                finally:
                    copies.put(copy)

            pool = ThreadPoolExecutor(self._jobs)
            try:
                yield from zip(self._mutants, pool.map(see, self._mutants), strict=True)
            finally:  # at Ctrl-C too: neither what waits nor what runs goes on
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in every:
                    copy.stop()
                pool.shutdown()

    def _is_seen(self, copy: Copy, mutant: Mutant, tests: Sequence[str], limit_s: float) -> bool | None:
        """Whether one of these tests fails with the change, and passes without it; None: they did not end in time."""
        while tests:
            with copy.changed(mutant):
                outcome = copy.outcome(tests, limit_s, sorted(self.failing))
            if not outcome.is_over:
                return None
            if not outcome.is_failed:
                return False
            doubtful = set(outcome.names) - self._sound
            if not doubtful or not copy.outcome(sorted(doubtful), NEAR_LIMIT_S).is_failed:
                self._sound |= doubtful
                return True
            if doubtful <= self.failing:  # cannot be left out by its name
                return False
            self.failing |= doubtful
        return False


def main(
    area: Annotated[list[str], typer.Option(help=f"{', '.join(AREAS)}; may be repeated")] = list(AREAS),  # noqa: B006
    num: Annotated[int, typer.Option(help="mutants of each area")] = 40,
    seed: Annotated[int, typer.Option(help="the same seed and files: the same mutants")] = 0,
    only: Annotated[list[str], typer.Option(help="only files whose path begins so; may be repeated")] = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(help="side by side, each in a copy of its own")] = 2,
    within: Annotated[
        float, typer.Option(help="seconds for tests that only reach the file through another")
    ] = 60,
    least: Annotated[float, typer.Option(help="exit 1 where less than this share of an area is caught")] = 0,
    show: Annotated[bool, typer.Option(help="print the mutants and run nothing")] = False,
) -> None:
    """Print what no test saw, and the share caught by area."""
    unknown = [one for one in area if one not in AREAS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is no area: there are {', '.join(AREAS)}")
    mutants = [mutant for one in area for mutant in sample(ROOT, one, num, seed, only)]
    if show:
        for mutant in mutants:
            out.print(mutant.diff, markup=False)
        return
    # As Ctrl-C does, so that no scratch folder and no test is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    caught: dict[str, list[bool | None]] = {}
    trial = Trial(ROOT, mutants, jobs, within)
    for number, (mutant, is_seen) in enumerate(trial.run(), start=1):
        caught.setdefault(mutant.area, []).append(is_seen)
        said = "out of time" if is_seen is None else "caught" if is_seen else "NOT SEEN"
        errors.print(f"{number} of {len(mutants)}: {mutant.path} {said}")
        if is_seen is False:
            out.print(mutant.diff, "\n", markup=False)
    for name in sorted(trial.failing):
        errors.print(f"warning: {name} fails without a change too, and was left out")
    table = Table("area", "mutants", "out of time", "caught", "share of those tried")
    is_enough = True
    for name, seen in caught.items():
        tried = [one for one in seen if one is not None]
        share = sum(tried) / len(tried) if tried else 0.0
        table.add_row(name, str(len(seen)), str(len(seen) - len(tried)), str(sum(tried)), f"{share:.0%}")
        is_enough = is_enough and share >= least
    out.print(table)
    if not is_enough:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
