"""Programs that know nothing of the profiler: each is written to a folder, started there as a user would, and read."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.query import database, questions

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 100
RECORD = (sys.executable, "-m", "ray_memprof.record")
TORCHRUN_NODES = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
MODEL = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256))
def train(model=model, steps=2):
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.ones(64, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""
"""A little training; other parts of a program are put behind it."""
CHILDREN = f"""{MODEL}
import multiprocessing, os, subprocess, sys
from torch.utils.data import DataLoader, TensorDataset
def work(number):
    return int(torch.ones(1000, 1000).sum()) * number
if __name__ == "__main__":
    train()
    child = os.fork()
    if child == 0:
        work(1)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(work, [2]))
        for batch in DataLoader(TensorDataset(torch.ones(4, 2)), num_workers=1, multiprocessing_context=method):
            pass
    code = "import torch, os; print(os.environ['RAY_MEMPROF_RANK'])"
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
"""
"""A program with children of every kind."""
PRINTED_BY_CHILDREN = "7\n[2000000]\n[2000000]\n0\n"


@dataclass
class Done:
    """A program that has ended, and what it left."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def run_dir(self) -> Path:
        """The only run that it left."""
        (found,) = (
            one for one in self.folder.glob("profiler_logs/*/*/tables") if not one.parent.is_symlink()
        )
        return found.parent

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says."""
        found: dict[str, Any] = json.loads((self.run_dir / "run.json").read_text())
        return found

    def ask(self, question: str) -> list[dict[str, Any]]:
        """The rows of a question, or of any SQL."""
        with database.open_run(self.run_dir) as connection:
            text = questions.question(question) if question in questions.QUESTIONS else question
            rows: list[dict[str, Any]] = connection.sql(text).to_arrow_table().to_pylist()
        return rows

    def paths(self) -> set[str]:
        """Paths of all spans."""
        return {row["path"] for row in self.ask("SELECT DISTINCT path FROM spans")}


Start = Callable[..., Done]
