"""Every attention kernel that is installed and fits this GPU, side by side in one process, at the sizes of Wan2.1.

    python scripts/bench_attention.py                     # all cases, under two minutes on one H200
    python scripts/bench_attention.py self-14B cross      # cases whose name begins so

Cases: self-attention of 14B at 720P (40 heads x 75,600 tokens x 128) and of 1.3B at 480P (12 x 32,760 x 128), and the
attention of those tokens to a context of 512 (text) and 257 (image) keys. q, k and v are bf16 noise; the keys of a head
also have a vector in common, as those of a trained model do. Columns:

    ms              median of the timed calls, after two warm-ups; the kernels take turns, so that all meet one clock
    TFLOP/s         4 x queries x keys x width x heads / time
    above output    peak of torch.cuda.max_memory_allocated() above q, k, v and the output, MB of 10^6 bytes
    error           |out - exact| / |out| over some query rows of some heads, exact in fp32 from the bf16 q, k and v
    LSE error       the largest error of the difference between the LSEs of the two halves of the keys (self only: the
                    ring asks for them)

A kernel that is not there, or does not fit, is named with the reason. The last lines repeat the table as Markdown.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wan.networks import attention_fp8
from wan.networks.attention_kernels import KERNELS, Kernel

WARM_UPS = 2
ROWS, HEADS = 512, 2  # of the output that is compared with fp32
HEADER = ("case", "kernel", "ms", "TFLOP/s", "above output", "error", "LSE error")


@dataclass(frozen=True)
class Case:
    """Sizes of one attention."""

    heads: int
    queries: int
    keys: int
    timed: int
    width: int = 128

    @property
    def tflop(self) -> float:
        """Multiplications and additions of both products, in 10^12."""
        return 4 * self.heads * self.queries * self.keys * self.width / 1e12


CASES = {
    "self-14B": Case(40, 75600, 75600, timed=7),
    "self-1.3B": Case(12, 32760, 32760, timed=30),
    "cross-14B-512": Case(40, 75600, 512, timed=30),
    "cross-14B-257": Case(40, 75600, 257, timed=30),
    "cross-1.3B-512": Case(12, 32760, 512, timed=30),
    "cross-1.3B-257": Case(12, 32760, 257, timed=30),
}


def inputs(case: Case) -> list[Tensor]:
    """q, k and v [1, L, N, D] bf16."""
    generator = torch.Generator("cuda").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    q = noise(1, case.queries, case.heads, case.width)
    k = noise(1, case.keys, case.heads, case.width)
    k += 2 * noise(1, 1, case.heads, case.width)
    return [q, k, noise(1, case.keys, case.heads, case.width)]


def exact(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output and LSE of the first ROWS queries of the first HEADS heads, in fp32 throughout."""
    q, k, v = q[0, :ROWS, :HEADS].float(), k[0, :, :HEADS].float(), v[0, :, :HEADS].float()
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        scores = torch.einsum("lnd,snd->nls", q, k) / math.sqrt(q.shape[-1])
        out = torch.einsum("nls,snd->lnd", scores.softmax(-1), v)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return out, scores.logsumexp(-1).t()


def error_of(out: Tensor, expected: Tensor) -> float:
    """Relative, of the part that exact() computes."""
    part = out[0, :ROWS, :HEADS].float()
    return float((part - expected).norm() / expected.norm())


def lse_error(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Of two parts of the keys: Kernel.by_parts() may shift the LSEs of a query, but all by the same."""
    half = k.shape[1] // 2
    attend = kernel.by_parts(q, k[:, :half])
    told = [attend(k[:, part], v[:, part])[1] for part in (slice(0, half), slice(half, None))]
    difference = (told[0] - told[1])[0, :ROWS, :HEADS, 0]
    right = exact(q, k[:, :half], v[:, :half])[1] - exact(q, k[:, half:], v[:, half:])[1]
    return float((difference - right).abs().max())


def above_output(call: Callable[[], Tensor]) -> float:
    """Bytes at the peak of a call beyond what was there before and what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - out.nbytes


def timed(calls: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """The median of each call in seconds; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UPS + times):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= WARM_UPS:
                seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in seconds.items()}


def usable(case: Case) -> dict[str, Kernel]:
    """The kernels that fit and are installed; the others are told on stderr."""
    found: dict[str, Kernel] = {}
    for name, kernel in KERNELS.items():
        reason = kernel.misfit(torch.device("cuda"), torch.bfloat16, case.width) or kernel.missing()
        if reason:
            print(f"{name}: left out, {kernel.package} {reason}", file=sys.stderr)
        else:
            found[name] = kernel
    return found


def rows_of(name: str, case: Case) -> list[tuple[str, ...]]:
    """The lines of the table for one case."""
    q, k, v = inputs(case)
    kernels = usable(case)
    calls = {kernel: lambda one=one: one.attend([q, k, v]) for kernel, one in kernels.items()}
    for kernel, call in calls.items():
        print(f"{name}: {kernel} ...", file=sys.stderr)
        call()  # compiles, and makes what stays
    if "fa3_fp8" in kernels:
        calls |= {
            "  of it quantising": lambda: (
                attention_fp8.quantise(q), attention_fp8.quantise_centred(k), attention_fp8.quantise(v),
            ),
        }  # fmt: skip
    seconds = timed(calls, case.timed)
    expected = exact(q, k, v)[0]
    made = []
    for kernel, call in calls.items():
        figures = [name, kernel, f"{seconds[kernel] * 1e3:.2f}"]
        if kernel in kernels:
            figures += [f"{case.tflop / seconds[kernel]:.0f}", f"{above_output(call) / 1e6:,.1f}"]
            figures.append(f"{error_of(call(), expected):.2e}")
            is_told = name.startswith("self")
            figures.append(f"{lse_error(kernels[kernel], q, k, v):.1e}" if is_told else "-")
        made.append((*figures, *["-"] * (len(HEADER) - len(figures))))
        print("  ".join(f"{figure:>20}" for figure in made[-1]))
    return made


def main() -> int:
    """Measures the cases asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"beginnings of: {', '.join(CASES)}; default: all")
    arguments = parser.parse_args()
    beginnings = tuple(arguments.cases) or ("",)
    chosen = {name: case for name, case in CASES.items() if name.startswith(beginnings)}
    if not chosen:
        parser.error(f"no case begins with {' or '.join(beginnings)}; there are {', '.join(CASES)}")
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    print("  ".join(f"{title:>20}" for title in HEADER))
    with torch.no_grad():
        table = [row for name, case in chosen.items() for row in rows_of(name, case)]
    print(f"\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for row in table:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
