"""A run of the CPU is told without words of a GPU; a prediction has the words of the device that it predicts."""

import re
from pathlib import Path

import pytest
from run_tables import blank, make_ranks, make_run, span, summary_lines

from ray_memprof.report import run_page
from ray_memprof.report.words import ON_CPU, ON_GPU, words_of

MIB = 2**20


def run_of(run_dir: Path, source: str) -> Path:
    """Two ranks with 4 MiB of tensors in processes of 100 MiB, 60 of which were there at the start."""
    held = (4 * MIB, 4 * MIB, 4 * MIB)
    used = (100 * MIB, 100 * MIB, 100 * MIB)
    rows = {
        "spans": [span(1, "denoise", (5, 9), allocated=held, reserved=held, active=held, device_used=used)],
        "ledger": [blank("ledger", t_ns=1, account="context", bytes=60 * MIB)],
    }
    make_run(run_dir, {0: rows, 1: rows})
    one = {"status": "ok", "num_checks": 1}
    return make_ranks(run_dir, one, one, status="ok", source=source, num_ranks=2, workload="wan")


def test_a_run_of_the_cpu_has_the_words_of_a_process(tmp_path: Path) -> None:
    assert summary_lines(run_of(tmp_path, "cpu"))[:4] == [
        "ranks 0 and 1: peak tensors 4.00 MiB, process memory 100 MiB, in denoise",
        "imbalance: rank 0 peaks at 1.00 x the mean of tensors",
        "imbalance: rank 0 peaks at 1.00 x the mean of process memory",
        "process at the peak: unexplained at most 36.0 MiB, 36.00% of its memory (rank 0)",
    ]
    html = run_page.render(tmp_path)
    page = re.sub(r"var:\w+", "", html[html.index("<main") : html.index('id="plotly"')])
    for text in ("process memory, rank 0", "Peak of tensors", "Process at the peak", "process at its start"):
        assert text in page
    for text in ("device used", "reserved", "context", "NCCL", "of device", "Fragmentation", ">0.00"):
        assert text not in page


@pytest.mark.parametrize("source", ["cuda", "predicted"])
def test_a_device_has_its_own_words_whether_measured_or_predicted(tmp_path: Path, source: str) -> None:
    lines = summary_lines(run_of(tmp_path, source))
    assert lines[0] == (
        "ranks 0 and 1: peak allocated 4.00 MiB, reserved 4.00 MiB, device used 100 MiB, in denoise"
    )
    assert lines[3].endswith("unexplained at most 36.0 MiB, 36.00% of what is used on the device (rank 0)")
    assert "device used, rank 0" in run_page.render(tmp_path)


def test_a_run_without_a_row_of_its_driver_has_the_words_of_a_device() -> None:
    assert (words_of(None), words_of("cpu").has_device) == (ON_GPU, False)


def test_every_account_of_the_cpu_has_a_name_without_a_gpu() -> None:
    assert {"context", "nccl", "others", "active"} <= ON_CPU.accounts.keys()
