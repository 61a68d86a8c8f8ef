"""What the doctor says of torch, the driver, the disk and packages, well or not."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ray_memprof.driver import doctor
from ray_memprof.driver.doctor import Check, _disk, _shared_memory, _torch, _torch_checks

GIB = 2**30
GPU = {"gpu_index": 0, "gpu_name": "H200", "free_bytes": 100 * GIB, "device_total_bytes": 140 * GIB}
DRIVER = {"version": "570.1", "gpus": [GPU]}
CUDA = {"version": "2.13.0", "cuda": "12.8", "nccl": "2.29.7", "num_devices": 1}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_machine_without_a_gpu() -> None:
    torch = {"version": "2.13.0+cpu", "cuda": None, "nccl": "", "num_devices": 0}
    assert _torch_checks(torch, None) == [
        Check("torch", "2.13.0+cpu"),
        Check("CUDA", "none, a build for the CPU; no GPU"),
        Check("driver", "none: this machine has no NVIDIA GPU, or it is not passed on to this container"),
        Check("NCCL", "none: ranks on the CPU use gloo"),
    ]


def test_a_machine_with_a_gpu() -> None:
    assert _torch_checks(CUDA, DRIVER) == [
        Check("torch", "2.13.0"),
        Check("CUDA", "12.8; torch sees 1 of 1 GPUs"),
        Check("driver", "570.1; 0: H200, 100 GiB of 140 GiB free"),
        Check("NCCL", "2.29.7"),
    ]


@pytest.mark.parametrize(
    ("torch", "hidden", "trouble"),
    [
        ({"cuda": None, "num_devices": 0}, None, "this torch is a build for the CPU"),
        ({"num_devices": 0}, "", "torch sees none: CUDA_VISIBLE_DEVICES is ''"),
        ({"num_devices": 0}, None, "torch sees none: the driver may be too old"),
        ({}, None, ""),
    ],
)
def test_a_gpu_that_torch_does_not_use(
    monkeypatch: pytest.MonkeyPatch, torch: dict[str, Any], hidden: str | None, trouble: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = _torch_checks(CUDA | torch, DRIVER)[1].trouble
    assert found.startswith(trouble) and bool(found) == bool(trouble)


def test_a_torch_that_cannot_be_imported_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH", "raise ImportError('libcudart.so is not there')")
    assert _torch() == {"error": "ImportError: libcudart.so is not there"}
    monkeypatch.setattr(doctor, "_TORCH", "import os; os._exit(7)")
    assert _torch() == {"error": "its import ended with code 7"}
    monkeypatch.setattr(doctor, "_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "TORCH_S", 0.2)
    assert _torch() == {"error": "not imported within 0 s"}
    assert [one.name for one in _torch_checks(_torch(), DRIVER)] == ["torch", "driver"]


def test_the_disk_is_that_of_the_folder_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(9 * GIB, 0, GIB if path == tmp_path else 0))
    (found,) = _disk(tmp_path / "a" / "b")
    assert found.text == f"1.00 GiB free for runs in {tmp_path / 'a' / 'b'}"
    assert found.trouble.startswith("make room")


def test_a_small_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SHM", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(64 * 2**20, 0, 60 * 2**20))
    (found,) = _shared_memory()
    assert found == Check(
        "/dev/shm", "60.0 MiB of 64.0 MiB free", "start the container with --shm-size=8g or --ipc=host"
    )
    monkeypatch.setattr(doctor, "_SHM", tmp_path / "none")
    assert _shared_memory() == []


PROGRAM = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'torch', 'ray', 'pynvml', 'pyarrow', 'duckdb'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
from ray_memprof.cli import app
app(['doctor'])
"""


def test_packages_that_are_missing_give_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nvidia-ml-py is not installed" in done.stdout
