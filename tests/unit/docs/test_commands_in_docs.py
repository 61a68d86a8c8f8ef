"""Every command of every page runs in CI, or is excused with what it needs."""

import re

import pytest
from pages import ROOT, console_commands, joined

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "profiler_logs/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMANDS = [command for path in PAGES for command in console_commands(path.read_text(encoding="utf-8"))]
"""Of all pages, in their order."""

# What CI cannot run, as patterns over whole commands, each with its reason.
_OF_THE_TOUR = r"(ulysses4|ring4|rank0_decodes)"
NOT_IN_CI = {
    r"python -m ray_memprof\.launch (?!.*--dry-run).*": "needs CUDA devices; `make demo` launches on the CPU",
    r"python -m ray_memprof\.predict .* --gpu .*": "takes a minute; another prediction is made, and tests name GPUs",
    r"ray-memprof run .*": "needs CUDA devices, or a program of one's own; tests run made-up ones",
    r"torchrun .*": "needs several CUDA devices and a program or an official checkpoint; `make programs` has others",
    r"(srun|mpirun) .*": "needs that starter and a program of one's own; tests set the variables of each",
    r"RAY_MEMPROF=\S+ .*": "needs a program of one's own; `make programs` starts others in this way",
    r"python -m ray_memprof\.record train\.py": "needs a program of one's own; `make programs` records others",
    r"python scripts/check_program\.py .*": "needs a program of one's own; `make programs` checks others",
    rf"ray-memprof (query \w+|diagnose|compare) .*\b{_OF_THE_TOUR}\b.*": "needs runs on four GPUs (tour.md)",
    rf"ray-memprof diagnose {_OF_THE_TOUR}": "needs a run on four GPUs (tour.md)",
    r"ray-memprof (query \w+|diagnose|compare) .*\bskewed\b.*": "a made-up run, which write_docs.py asks",
    r"ray-memprof compare predicted measured": "needs a run on GPUs; tests compare made-up ones",
    r"ray-memprof query peak_by_rank baseline": "needs a run on a CUDA device; the same is asked of others",
    r"ray-memprof import .*": "needs snapshots of a CUDA program; tests import made-up ones",
    r"ray-memprof audit latest|ray-memprof query predicted_vs_measured latest": "needs a run that a GPU has measured; "
    "tests let a predicted run be one",
    r"ray-memprof calibrate .*": "needs a CUDA device; tests calibrate a made-up one",
    r"(ray-memprof|python -m ray_memprof\.)\s?plan .*": "takes minutes; tests plan for tiny tasks",
    r"ray-memprof what-if latest .*": "needs a run on a CUDA device; it is asked of the sample",
    r"ray-memprof finish .*": "needs a run that was cut off; tests finish made-up ones, and one of two hosts",
    r"rsync -a host2:.*": "needs a second host; `make programs` has two nodes with a folder each",
    r"WANDB_MODE=offline .*": "needs wandb, which .[dev] leaves out for its size; tests send where it is installed",
    r"MLFLOW_TRACKING_URI=.*": "needs mlflow and a server; tests send to its local store where it is installed",
    r"tensorboard --logdir .*": "stays open until it is stopped; tests read the events with TensorBoard's own reader",
    r"hf download .*": "downloads 6 to 80 GB",
    r"pip install '\.\[mcp\]'": "`make env` installs it",
    r"duckdb .*": "needs DuckDB's own client and a run on several GPUs; the same database is read in tests",
    r"python -m wan\.generate .*--ckpt_dir .*": "needs a CUDA device and an official checkpoint",
    r"python scripts/compare_levers\.py .*--ckpt_dir .*": "needs a CUDA device and an official checkpoint",
    r"python3 -m venv \.venv": "belongs to the install with CUDA; `make env` does the same here",
    r"\.venv/bin/python -m pip install torch==\S+": "belongs to the install with CUDA",
}


def commands_of_ci() -> list[str]:
    return joined((ROOT / ".ci" / "run").read_text(encoding="utf-8"))


def test_a_text_without_console_blocks_has_no_commands() -> None:
    assert console_commands("words\n```text\n$ no command\n```\n") == []


def test_commands_are_read_over_continued_lines_and_without_comments() -> None:
    text = "```console\n$ make demo     # why\nits output\n$ python -m x \\\n    --y '1*2'\n```\n"
    assert console_commands(text) == ["make demo", "python -m x --y '1*2'"]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_runs_in_ci_or_has_a_reason_not_to(command: str) -> None:
    excused = [reason for pattern, reason in NOT_IN_CI.items() if re.fullmatch(pattern, command)]
    assert (command in commands_of_ci()) != bool(excused), f"neither called in .ci/run nor excused: {command}"


def test_every_excuse_is_in_use() -> None:
    unused = [pattern for pattern in NOT_IN_CI if not any(re.fullmatch(pattern, one) for one in COMMANDS)]
    assert unused == []
