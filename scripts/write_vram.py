"""Writes docs/vram.md: how much of the device each task needs under common levers, predicted in full.

    python scripts/write_vram.py                    # predicts the cases that docs/vram.json lacks, then writes the page
    python scripts/write_vram.py --again            # predicts all of them; hours on two cores
    python scripts/write_vram.py --limit 2          # at most two cases now; the page has those that are known
    python scripts/write_vram.py --only-page        # from docs/vram.json alone
    python scripts/write_vram.py --check            # exit 1 if the page is not what docs/vram.json says

The figures are kept in docs/vram.json, each as soon as it is known, so that a run that is stopped goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray_memprof.planner.full import predict_in_full
from ray_memprof.planner.space import Asked, Choice
from ray_memprof.planner.table import levers_text
from ray_memprof.predictor.gpu_profile import gpu_profile
from ray_memprof.predictor.processes import Processes

DOCS = Path(__file__).resolve().parents[1] / "docs"
GPU = "H200"
CARDS_GB = (8, 12, 16, 24, 32, 48, 80, 141)
USABLE_FRACTION = 0.98
"""Of a card's nominal GiB, as drivers report it: 23.64 of 24, 31.36 of 32."""
GIB = 2**30

STREAMED = Choice(load_strategy="stream")
LEAST = Choice(load_strategy="stream", attention_slicing=True, ffn_chunks=16, vae_slabs=8)
LEVERS: dict[int, tuple[Choice, ...]] = {
    1: (Choice(), STREAMED, LEAST, Choice(weights_dtype="fp8")),
    2: (Choice(ulysses=2, dit_fsdp=True, t5_fsdp=True), Choice(cfg=2, load_strategy="stream")),
    4: (Choice(ulysses=4, dit_fsdp=True, t5_fsdp=True),),
}
SIZES = (
    ("t2v-14B", "1280*720"), ("t2v-1.3B", "832*480"), ("t2v-14B", "832*480"), ("i2v-14B", "1280*720"),
    ("i2v-14B", "832*480"), ("t2i-14B", "1024*1024"), ("flf2v-14B", "1280*720"), ("vace-1.3B", "832*480"),
    ("vace-14B", "1280*720"),
)  # fmt: skip
PICTURES = {"i2v-14B": ("image",), "flf2v-14B": ("first_frame", "last_frame")}
MEASURED = {
    ("t2v-14B", "1280*720", 1, LEVERS[1][0]): 31.98,
    ("t2v-14B", "1280*720", 1, STREAMED): 7.21,
    ("t2v-14B", "1280*720", 1, LEAST): 6.17,
    ("t2v-1.3B", "832*480", 1, STREAMED): 3.69,
    ("t2v-1.3B", "832*480", 1, LEAST): 2.05,
    ("t2v-14B", "1280*720", 2, LEVERS[2][0]): 20.74,
    ("t2v-14B", "1280*720", 4, LEVERS[4][0]): 13.59,
}
"""GiB of device used on H200s, from docs/benchmarks.md (2026-11-21, torch 2.11)."""

INTRO = """\
# Which card do I need?

The most of the device that any rank uses, from the prompt to the last frame, **predicted** without a GPU (H200; {made})
and written by `python scripts/write_vram.py`: 81 frames (one for t2i), bf16. *Measured* is the same on H200s
([benchmarks.md](benchmarks.md), 2026-11-21). How far predictions are off: [prediction.md](prediction.md). For your own
GPU, size and levers: `ray-memprof plan` ([plan.md](plan.md)).

*Card* is the smallest of 8, 12, 16, 24, 32, 48, 80 and 141 GB that holds it, with nothing else on the card; 2 % are
left to the driver. What is streamed waits in host memory: 27 GiB for a 14B model in bf16, and 11 for the text encoder.
"""
HEAD = "| task | size | levers | device used, GiB | measured | in | card |"


@dataclass(frozen=True, slots=True)
class Case:
    """A line of the page."""

    task: str
    size: str
    num_gpus: int
    choice: Choice

    @property
    def key(self) -> str:
        """Its name in the file of figures."""
        return f"{self.task} {self.size} x{self.num_gpus}: {levers_text(self.choice)}"


def cases() -> Iterator[Case]:
    """All lines, what most people ask for first."""
    for num_gpus in LEVERS:
        for task, size in SIZES:
            for choice in LEVERS[num_gpus]:
                if num_gpus == 1 or task in ("t2v-14B", "i2v-14B"):
                    yield Case(task, size, num_gpus, choice)


def predicted(
    case: Case, folder: Path, *, frame_num: int | None = None, processes: Processes | None = None
) -> dict[str, Any]:
    """The figures of a line.

    Args:
        case: the line.
        folder: for the predicted run, and for a picture to start from.
        frame_num: None: as many as the task makes.
        processes: that predict; None: new ones.
    """
    width, height = (int(side) for side in case.size.split("*"))
    overrides = []
    for key in PICTURES.get(case.task, ()):
        from PIL import Image

        path = folder / f"{key}.png"
        Image.new("RGB", (width, height)).save(path)
        overrides.append(f"generation.{key}={json.dumps(str(path))}")
    asked = Asked(
        task=case.task, size=case.size, gpu=GPU, num_gpus=case.num_gpus, frame_num=frame_num,
        limit_bytes=gpu_profile(GPU).total_bytes, overrides=tuple(overrides), folder=folder,
    )  # fmt: skip
    found = predict_in_full(asked, case.choice, processes)
    if found.exit_code:
        raise RuntimeError(f"{case.key}: exit code {found.exit_code}")
    return {
        "device_used_bytes": found.device_used_bytes,
        "stage": found.stage,
        "date": date.today().isoformat(),
        "torch": version("torch"),
    }


def smallest_card(size: int) -> str:
    """The smallest common card that holds so much: "24 GB"."""
    fits = (card for card in CARDS_GB if size <= USABLE_FRACTION * card * GIB)
    return f"{card} GB" if (card := next(fits, 0)) else "none"


def page(figures: dict[str, dict[str, Any]]) -> str:
    """The page for the figures that are known."""
    known = [case for case in cases() if case.key in figures]
    lines = [INTRO.format(made=_made([figures[case.key] for case in known]))]
    for num_gpus in LEVERS:
        rows = [case for case in known if case.num_gpus == num_gpus]
        if not rows:
            continue
        lines += [f"## {_gpus_text(num_gpus)}", "", HEAD, "|---|---|---|---|---|---|---|"]
        for case in rows:
            one = figures[case.key]
            size = one["device_used_bytes"]
            measured = MEASURED.get((case.task, case.size, case.num_gpus, case.choice))
            cells = [
                case.task, case.size, _levers(case.choice), f"{size / GIB:.2f}",
                "" if measured is None else f"{measured:.2f}", one["stage"], smallest_card(size),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _made(known: list[dict[str, Any]]) -> str:
    """With what, and when."""
    versions = ", ".join(sorted({one["torch"] for one in known}))
    days = sorted({one["date"] for one in known})
    return f"torch {versions}, {' to '.join(dict.fromkeys((days[0], days[-1])))}" if known else "not yet"


def _gpus_text(num_gpus: int) -> str:
    return "One GPU" if num_gpus == 1 else f"{num_gpus} GPUs, each"


def _levers(choice: Choice) -> str:
    text = levers_text(choice)
    if text == "no lever":
        return "none: weights on the device"
    return f"{text} (**inexact**)" if choice.is_inexact else text


def main(argv: list[str] | None = None, docs: Path = DOCS) -> int:
    """Predict what is missing and write the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="predict also what is known")
    parser.add_argument("--limit", type=int, default=1000, help="the most cases to predict now")
    parser.add_argument("--frames", type=int, help="other frames than the task's; for a test")
    parser.add_argument("--only-page", action="store_true", help="predict nothing")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page would differ")
    given = parser.parse_args(argv)
    data, target = docs / "vram.json", docs / "vram.md"
    figures = json.loads(data.read_text(encoding="utf-8")) if data.is_file() else {}
    if given.check:
        return int(target.read_text(encoding="utf-8") != page(figures))
    missing = [case for case in cases() if given.again or case.key not in figures]
    now = [] if given.only_page else missing[: given.limit]
    with Processes() if now else nullcontext() as processes:
        for number, case in enumerate(now, 1):
            with TemporaryDirectory() as folder:
                figures[case.key] = predicted(case, Path(folder), frame_num=given.frames, processes=processes)
            data.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            size = figures[case.key]["device_used_bytes"]
            print(f"{number} of {len(now)}: {case.key}: {size / GIB:.2f} GiB", flush=True)
    target.write_text(page(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
