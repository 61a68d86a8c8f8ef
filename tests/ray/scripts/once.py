"""Ranks that are to have what the first one makes (wan.parallel's Ranks.once), and an error in place of it.

    once.py --who first|all --error ValueError|WeightsError [--marker FOLDER]

first: rank 0 fails while it makes it, and the others wait for what never comes; all: every rank fails before, alike.
"""

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from wan.errors import WeightsError
from wan.parallel.layout import Layout
from wan.parallel.ranks import Ranks

ERRORS = {
    "ValueError": ValueError("a prompt of no words"),
    "WeightsError": WeightsError("t5.pth: cut off", hint="load it again"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--who", choices=("first", "all"))
    parser.add_argument("--error", choices=ERRORS)
    parser.add_argument("--marker", type=Path)
    options = parser.parse_args()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    written = options.marker / f"{rank}.tmp"
    written.write_text(str(os.getpid()))
    written.rename(options.marker / f"rank{rank}.pid")  # whole from the first moment on
    distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
    ranks = Ranks(Layout(ranks=world_size), torch.device("cpu"))

    def make() -> torch.Tensor:
        if rank == 0:
            (options.marker / "struck").write_text(repr(time.time()))
        raise ERRORS[options.error]

    distributed.barrier()
    if options.who == "all":
        make()
    ranks.once(make)


if __name__ == "__main__":
    main()
