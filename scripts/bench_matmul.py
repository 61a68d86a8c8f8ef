"""Matrix products of a DiT on one GPU: bf16, our fp8, and torchao's where it is installed, side by side.

    python scripts/bench_matmul.py                    # about a minute on one H200
    python scripts/bench_matmul.py --tokens 4096      # fewer rows than a video has

Shapes are those of the linear layers at 720P (14B) and 480P (1.3B), all tokens at once: x [tokens, in] @ weight
[out, in]^T + bias. Numbers are normal, so the error is that of fp8 without outliers. Columns:

    ms              median of the timed calls after a warm-up
    TFLOP/s         2 * tokens * in * out / ms
    relative error  |y - y64| / |y64| over 1,024 rows; y64 is computed in fp64 from the same bf16 numbers
    extra MiB       peak above what was allocated before the call, the result included

"kernel" multiplies rows that are quantised already; "with quantising" quantises them too, in one Triton pass;
"dequantised" is what fp8 weights cost where products stay in bf16.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.levers import Levers
from wan.networks import kernels
from wan.networks.linear import Fp8Linear
from wan.weights.fp8 import quantise

SHAPES = (
    ("14B 720P q, k, v, o", 75600, 5120, 5120),
    ("14B 720P ffn.0", 75600, 5120, 13824),
    ("14B 720P ffn.2", 75600, 13824, 5120),
    ("1.3B 480P q, k, v, o", 32760, 1536, 1536),
    ("1.3B 480P ffn.0", 32760, 1536, 8960),
    ("1.3B 480P ffn.2", 32760, 8960, 1536),
)
NUM_TIMED = 20
NUM_COMPARED = 1024
Product = Callable[[], Tensor]


def products(x: Tensor, plain: nn.Linear) -> dict[str, Product]:
    """What is timed, by name."""
    layers: dict[str, Fp8Linear] = {}
    for matmul in ("fp8", "precision"):
        layer = Fp8Linear(plain, Levers(matmul=matmul))  # type: ignore[arg-type]
        layer.weight.data, layer.weight_scale.data = quantise(plain.weight)
        layers[matmul] = layer
    rows = kernels.quantise(x)
    made: dict[str, Product] = {
        "bf16 F.linear": lambda: F.linear(x, plain.weight, plain.bias),
        "fp8 kernel": lambda: layers["fp8"](rows),
        "fp8 with quantising": lambda: layers["fp8"](x),
        "fp8 weight dequantised": lambda: layers["precision"](x),
    }
    return made | torchao_products(x, plain)


def torchao_products(x: Tensor, plain: nn.Linear) -> dict[str, Product]:
    """torchao's two kinds of fp8 layer; empty where it is not installed."""
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
            quantize_,
        )
    except ImportError:
        return {}

    def layer(config: Any) -> nn.Sequential:
        copy = nn.Linear(plain.in_features, plain.out_features, dtype=torch.bfloat16, device="cuda")
        copy.load_state_dict(plain.state_dict())
        model = nn.Sequential(copy).requires_grad_(False)
        quantize_(model, config)
        return model

    dynamic = layer(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    weight_only = layer(Float8WeightOnlyConfig())
    return {
        "torchao dynamic, PerRow": lambda: dynamic(x),
        "torchao weight only": lambda: weight_only(x),
    }


def measure(product: Product, reference: Tensor) -> tuple[float, float, int]:
    """Median seconds, relative error of the first rows, and bytes allocated above what was there."""
    product()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = product()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    error = (out[: len(reference)].double() - reference).norm() / reference.norm()
    del out
    seconds = []
    for _ in range(NUM_TIMED):
        start = time.perf_counter()
        product()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), float(error), extra


def rows_of(name: str, tokens: int, inner: int, outer: int) -> list[str]:
    """Lines of the table for one shape."""
    torch.manual_seed(0)
    x = torch.randn(tokens, inner, device="cuda", dtype=torch.bfloat16)
    plain = nn.Linear(inner, outer, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
    plain.weight.normal_(std=inner**-0.5)
    reference = F.linear(x[:NUM_COMPARED].double(), plain.weight.double(), plain.bias.double())
    lines = []
    for product_name, product in products(x, plain).items():
        seconds, error, extra = measure(product, reference)
        rate = 2 * tokens * inner * outer / seconds / 1e12
        lines.append(
            f"| {name}: {tokens:,} x {inner:,} x {outer:,} | {product_name} | {seconds * 1e3:.2f} | {rate:,.0f} | "
            f"{error:.1e} | {extra / 2**20:,.0f} |"
        )
    return lines


def main() -> None:
    """Time every shape and print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, help="rows of x; default: those of a video")
    tokens = parser.parse_args().tokens
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| shape | product | ms | TFLOP/s | relative error | extra MiB |\n|---|---|---|---|---|---|")
    with torch.no_grad():
        for name, all_tokens, inner, outer in SHAPES:
            print("\n".join(rows_of(name, tokens or all_tokens, inner, outer)), flush=True)


if __name__ == "__main__":
    main()
