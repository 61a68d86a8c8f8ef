"""limit_gpu_peak: what it measures, what it says, what it refuses, what it costs; pytest runs inside pytest here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plugin_fakes import GIB, FakeCuda, a_run

from ray_memprof import pytest_plugin
from ray_memprof.analysis.diagnosis import diagnose
from ray_memprof.config import matrix
from ray_memprof.pytest_plugin.limit import Launch
from ray_memprof.query import database

pytest_plugins = ("pytester",)
LOADED = (diagnose, matrix)
"""pytester forgets what a run inside imported, and a module that is loaded again has other classes."""

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"name": "two", "model_config": {"task": "t2v-tiny", "device": "cpu", "precision": "fp32"}}


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test file that another of its name, size and second follows would run again from its bytecode."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are installed beside ours would be imported anew in each run: most of a test's time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def run(pytester: pytest.Pytester, *flags: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        "-p", "ray_memprof.pytest_plugin", "--strict-markers", "-rs", "-p", "no:cacheprovider", *flags
    )


def of_body(pytester: pytest.Pytester, mark: str, body: str, *flags: str) -> pytest.RunResult:
    """A test with `mark`, in whose body `fake` is the device."""
    pytester.makepyfile(f"import pytest\nfrom torch import fake\n\n{mark}\ndef test_it():\n    {body}\n")
    return run(pytester, *flags)


def failure(result: pytest.RunResult) -> list[str]:
    """What the failed test says, without pytest's rulers."""
    lines = result.outlines
    start = next(number for number, line in enumerate(lines) if line.startswith("____")) + 1
    end = next(number for number in range(start, len(lines)) if lines[number].startswith("===="))
    return lines[start:end]


def refusal(pytester: pytest.Pytester, mark: str, arguments: str = "") -> list[str]:
    """The lines of a usage error."""
    pytester.makepyfile(test_file=f"import pytest\n\n@pytest.mark.{mark}\ndef test_it({arguments}): ...\n")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    return [line.replace(str(pytester.path), ".") for line in result.errlines if line]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> list[tuple[Launch, Path]]:
    """Runs are made by hand instead of being launched: three ranks at 4, 9 and 5 GiB."""
    calls: list[tuple[Launch, Path]] = []

    def instead(launch: Launch, output_dir: Path, root: Path) -> Path:
        calls.append((launch, root))
        return a_run(output_dir, {"allocated": [4 * GIB, 9 * GIB, 5 * GIB]})

    monkeypatch.setattr(pytest_plugin, "run_launch", instead)
    (pytester.path / "two.yaml").write_text(json.dumps({**CONFIG, "parallel": {"ring": 3}}))
    return calls


def of_run(pytester: pytest.Pytester, mark: str, body: str = "pass", arguments: str = "") -> pytest.RunResult:
    pytester.makepyfile(f"import pytest\n\n@pytest.mark.{mark}\ndef test_it({arguments}):\n    {body}\n")
    return run(pytester)


def test_without_a_mark_nothing_happens(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): ...")
    run(pytester).assert_outcomes(passed=1)


def test_loading_it_imports_neither_torch_nor_ray_nor_tables() -> None:
    program = "import sys, ray_memprof.pytest_plugin; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    heavy = {"torch", "ray", "duckdb", "pyarrow", "pydantic", "yaml"}
    assert (set(done.stdout.split()) & heavy, done.stderr) == (set(), "")


def test_the_mark_is_known(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--markers")
    result.stdout.fnmatch_lines(
        ["@pytest.mark.limit_gpu_peak(limit, *, rank='max', measure=None, config=None, *"]
    )


def test_without_a_device_it_is_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytester.makepyfile("import pytest\n\n@pytest.mark.limit_gpu_peak('1 GiB')\ndef test_it(): 1 / 0\n")
    result = run(pytester)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED * test_without_a_device_*.py:3: limit_gpu_peak needs a CUDA device: torch.cuda.is_available() *"
        ]
    )


def test_without_torch_it_is_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # type: ignore[arg-type]
    pytester.makepyfile("import pytest\n\n@pytest.mark.limit_gpu_peak('1 GiB')\ndef test_it(): 1 / 0\n")
    result = run(pytester)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * limit_gpu_peak needs torch, which is not installed here"])


@pytest.mark.parametrize(
    ("measure", "most"), [(None, 21), ("device_used", 21), ("reserved", 20), ("allocated", 12)]
)
def test_a_peak_as_high_as_the_limit_passes_and_a_byte_more_does_not(
    pytester: pytest.Pytester, cuda: FakeCuda, measure: str | None, most: int
) -> None:
    """12 GiB are allocated, 20 reserved, 1 is outside the allocator; all is gone again at the end."""
    body = "fake.hold(12, 14); fake.hold(3, 20); fake.hold(0, 2)"
    mark = f"@pytest.mark.limit_gpu_peak({most * GIB} - %d, measure={measure!r})"
    of_body(pytester, mark % 0, body).assert_outcomes(passed=1)
    result = of_body(pytester, mark % 1, body)
    result.assert_outcomes(failed=1)
    assert failure(result) == [
        f"the test, on cuda:0: {measure or 'device_used'} peaks at {most}.0 GiB ({most * GIB:,} bytes), "
        f"1 B over the limit of {most}.0 GiB ({most * GIB - 1:,} bytes)",
        "  the allocator's peaks: allocated 12.0 GiB, reserved 20.0 GiB",
    ]


def test_what_earlier_tests_held_does_not_count(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    cuda.hold(40, 60)
    cuda.hold(2, 60)
    mark = "@pytest.mark.limit_gpu_peak('3 GiB', measure='reserved')"
    of_body(pytester, mark, "fake.hold(3, 3)").assert_outcomes(passed=1)


def test_a_peak_that_the_test_lets_begin_anew_is_kept(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    body = "import torch; fake.hold(12, 14); fake.hold(1, 14); torch.cuda.reset_peak_memory_stats(0)"
    of_body(pytester, "@pytest.mark.limit_gpu_peak('11 GiB', measure='allocated')", body).assert_outcomes(
        failed=1
    )
    assert cuda.allocated_peak == 1 * GIB
    # And afterwards torch is as it was.
    assert torch._C._cuda_resetPeakMemoryStats == cuda.reset


def test_a_device_that_the_test_itself_starts_is_measured(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    cuda.is_initialized = False
    mark = "@pytest.mark.limit_gpu_peak('1 GiB', measure='allocated')"
    of_body(pytester, mark, "pass").assert_outcomes(passed=1)
    body = "fake.is_initialized = True; fake.hold(2, 2)"
    of_body(pytester, mark, body).assert_outcomes(failed=1)


def test_every_limit_of_a_test_must_hold(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    marks = "\n".join(
        f"@pytest.mark.limit_gpu_peak({limit!r}, measure={measure!r})"
        for measure, limit in (("device_used", "15 GiB"), ("allocated", "11 GiB"))
    )
    result = of_body(pytester, marks, "fake.hold(12, 12)")
    assert [line for line in failure(result) if "peaks at" in line] == [
        "the test, on cuda:0: allocated peaks at 12.0 GiB (12,884,901,888 bytes), 1.00 GiB over the limit of "
        "11.0 GiB (11,811,160,064 bytes)"
    ]


def test_a_test_that_fails_by_itself_is_left_at_that(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    result = of_body(pytester, "@pytest.mark.limit_gpu_peak('1 GiB')", "fake.hold(12, 12); assert 1 == 2")
    result.assert_outcomes(failed=1)
    assert "over the limit" not in result.stdout.str()


def test_what_was_measured_is_in_the_file_for_ci(pytester: pytest.Pytester, cuda: FakeCuda) -> None:
    of_body(pytester, "@pytest.mark.limit_gpu_peak('30 GiB')", "fake.hold(12, 12)", "--junit-xml=it.xml")
    assert f'name="gpu_device_used_peak_bytes" value="{13 * GIB}"' in (pytester.path / "it.xml").read_text()


def test_of_a_run_the_fullest_rank_counts(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]]
) -> None:
    mark = "limit_gpu_peak({}, config='two.yaml', overrides=['generation.sample_steps=4'], timeout_s=60)"
    of_run(pytester, mark.format(9 * GIB)).assert_outcomes(passed=1)
    ((launch, root),) = launched
    assert (launch.path, launch.overrides, launch.timeout_s) == (
        "two.yaml",
        ("generation.sample_steps=4",),
        60,
    )
    assert (launch.config.num_ranks, launch.config.generation.sample_steps) == (3, 4)
    assert root == pytester.path

    result = of_run(pytester, mark.format("'8.5 GiB'"))
    result.assert_outcomes(failed=1)
    first, *details, report = failure(result)
    assert first == (
        "two, rank 1: allocated peaks at 9.00 GiB (9,663,676,416 bytes), 512 MiB over the limit of 8.50 GiB "
        "(9,126,805,504 bytes)"
    )
    with database.open_run(Path(report.removeprefix("  report: ")).parent) as connection:
        said = diagnose.lines(diagnose.findings(connection), most=1)
    assert len(said) == 2 and "Rank 1 holds 4.00 GiB more" in said[0]
    assert details == [
        "  rank 1 has 9.00 GiB in stage denoise, denoise/dit.block of step 2",
        *(f"  {line}" for line in said),
    ]
    assert report.startswith("  report: ") and report.endswith(
        "gpu_run0/two/20260102-030405-abcd/report.html"
    )
    assert Path(report.removeprefix("  report: ")).exists()


def test_of_a_run_one_rank_or_the_mean_may_count(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]]
) -> None:
    mark = "limit_gpu_peak({}, config='two.yaml', rank={!r})"
    for rank, most in ((0, 4), (2, 5), ("mean", 6)):
        of_run(pytester, mark.format(most * GIB, rank)).assert_outcomes(passed=1)
        result = of_run(pytester, mark.format(most * GIB - 1, rank))
        result.assert_outcomes(failed=1)
        who = "mean of 3 ranks" if rank == "mean" else f"rank {rank}"
        assert failure(result)[0].startswith(f"two, {who}: allocated peaks at {most}.00 GiB ({most * GIB:,} ")


def test_a_test_gets_the_folder_of_its_run(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]]
) -> None:
    body = "assert gpu_run.joinpath('tables').is_dir() and gpu_run.parent.name == 'two'"
    of_run(pytester, "limit_gpu_peak('9 GiB', config='two.yaml')", body, "gpu_run").assert_outcomes(passed=1)
    assert len(launched) == 1


def test_two_limits_for_one_run_launch_it_once(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]]
) -> None:
    one, other = (f"limit_gpu_peak('9 GiB', config='two.yaml', rank={rank!r})" for rank in ("max", "mean"))
    of_run(pytester, f"{one}\n@pytest.mark.{other}").assert_outcomes(passed=1)
    assert len(launched) == 1


def test_a_run_for_more_devices_than_there_are_is_skipped_with_the_reason(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]], cuda: FakeCuda
) -> None:
    (pytester.path / "cuda.yaml").write_text(
        json.dumps({"name": "two", "model_config": {"task": "t2v-14B"}, "parallel": {"ulysses": 2}})
    )
    result = of_run(pytester, "limit_gpu_peak('9 GiB', config='cuda.yaml')")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*cuda.yaml needs 2 CUDA devices, and there are 1 here*"])
    assert launched == []


SIGNATURE = "limit_gpu_peak(limit, *, rank='max', measure=None, config=None, overrides=(), timeout_s=3600.0)"


@pytest.mark.parametrize(
    ("mark", "message", "hint"),
    [
        ("limit_gpu_peak", "limit_gpu_peak() missing 1 required positional argument: 'limit'", SIGNATURE),
        (
            "limit_gpu_peak('1 GiB', ranks=2)",
            "limit_gpu_peak() got an unexpected keyword argument 'ranks'",
            SIGNATURE,
        ),
        (
            "limit_gpu_peak('30')",
            "'30' is no size",
            "a number and its unit: 30 GiB, 500 MB or 4096 B; GiB are 1024^3 bytes, GB are 1000^3",
        ),
        ("limit_gpu_peak(1.5)", "limit is 1.5", 'a size such as "30 GiB", or a number of bytes'),
        ("limit_gpu_peak(-1)", "limit is -1", 'a size such as "30 GiB", or a number of bytes'),
        (
            "limit_gpu_peak('1 GiB', rank='min')",
            "rank is 'min'",
            '"max", "mean" or the number of a rank',
        ),
        (
            "limit_gpu_peak('1 GiB', rank=1)",
            "rank is 1, but a test by itself is one process",
            "name the configuration: config=",
        ),
        (
            "limit_gpu_peak('1 GiB', overrides=['a.b=1'])",
            "overrides is ['a.b=1'], but a test by itself is one process",
            "name the configuration: config=",
        ),
        (
            "limit_gpu_peak('1 GiB', measure='used')",
            "measure is 'used'",
            "one of device_used, reserved, allocated",
        ),
        (
            "limit_gpu_peak('1 GiB', config='none.yaml')",
            "none.yaml: No such file or directory",
            "check the path; configs/ holds examples",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', rank=3)",
            "rank is 3, and two.yaml has 3",
            "ranks count from 0",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', measure='device_used')",
            "measure is 'device_used', and two.yaml runs on the CPU",
            "allocated",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', overrides='a.b=1')",
            "overrides is 'a.b=1'",
            'a list: ["generation.sample_steps=4"]',
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', overrides=['logging.profile_memory=false'])",
            "two.yaml records nothing",
            "logging.profile_memory: true",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', timeout_s=0)",
            "timeout_s is 0",
            "seconds, above 0",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml', overrides=['matrix=[{name: a}, {name: b}]'])",
            "two.yaml is a table of 2 runs, and a limit is for one",
            "no matrix",
        ),
        (
            "limit_gpu_peak('1 GiB', config='two.yaml')\n@pytest.mark.limit_gpu_peak('1 GiB')",
            "several limits of one test are for different runs",
            "the same config, overrides and timeout_s",
        ),
    ],
)
def test_what_cannot_be_used_ends_in_a_line_and_a_hint(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]], mark: str, message: str, hint: str
) -> None:
    assert refusal(pytester, mark) == [
        f"ERROR: test_file.py::test_it: limit_gpu_peak: {message}",
        f"hint: {hint}",
    ]
    assert launched == []


def test_a_configuration_is_refused_as_the_launcher_refuses_it(
    pytester: pytest.Pytester, launched: list[tuple[Launch, Path]]
) -> None:
    mark = "limit_gpu_peak('1 GiB', config='two.yaml', overrides=['generation.sample_step=4'])"
    message, hint = refusal(pytester, mark)
    assert message.startswith("ERROR: test_file.py::test_it: limit_gpu_peak: ") and "sample_step" in message
    assert "generation.sample_steps" in hint


def test_in_a_worker_of_xdist_the_test_itself_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n\n@pytest.mark.limit_gpu_peak('30')\ndef test_it(): ...\n")
    result = run(pytester, "-p", "xdist", "-n", "1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*::test_it: limit_gpu_peak: '30' is no size", "hint: a number and its unit: *"]
    )


def test_the_folder_of_a_run_needs_a_run(pytester: pytest.Pytester) -> None:
    assert refusal(pytester, "limit_gpu_peak('1 GiB')", "gpu_run") == [
        "ERROR: test_file.py::test_it: limit_gpu_peak: the fixture gpu_run needs a run",
        'hint: @pytest.mark.limit_gpu_peak("16 GiB", config="...")',
    ]


def test_a_test_that_is_not_selected_is_not_looked_at(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n\n@pytest.mark.limit_gpu_peak('1')\ndef test_bad(): ...\n\ndef test_good(): ...\n"
    )
    run(pytester, "-k", "good").assert_outcomes(passed=1, deselected=1)


def test_a_launch_that_does_not_end_well_says_why(pytester: pytest.Pytester) -> None:
    """GIVEN a configuration whose picture is missing THEN the launcher's own words and the log are in the message."""
    picture = "generation.image=missing.png"
    (pytester.path / "two.yaml").write_text(
        json.dumps({**CONFIG, "model_config": {**CONFIG["model_config"], "task": "i2v-tiny"}})
    )
    result = of_run(pytester, f"limit_gpu_peak('1 GiB', config='two.yaml', overrides=[{picture!r}])")
    result.assert_outcomes(errors=1)
    first, error, *_, log = failure(result)
    assert first == "two.yaml ended with exit 2"
    assert error.startswith("  error: ") and "missing.png" in error
    assert "missing.png" in Path(log.removeprefix("  log: ")).read_text()


def test_a_launch_that_takes_too_long_is_ended(pytester: pytest.Pytester) -> None:
    (pytester.path / "two.yaml").write_text(json.dumps(CONFIG))
    # What the plug-in starts instead of the launcher; it writes its process id and waits.
    pytester.mkpydir("ray_memprof")
    (pytester.path / "ray_memprof" / "launch.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(3600)\n"
    )
    result = of_run(pytester, "limit_gpu_peak('1 GiB', config='two.yaml', timeout_s=2)")
    result.assert_outcomes(errors=1)
    assert failure(result)[0] == "two.yaml did not end within 2 s"
    pid = int((pytester.path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
