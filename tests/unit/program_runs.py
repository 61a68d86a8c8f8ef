"""Programs without a line of ours as rows: what is allocated in which span, and whose it is.

program = Program()
with program.span("GPT", stage="forward", component="GPT"):
    program.alloc(4 * GIB)
found = diagnose(empty, program.tables(), workload="script")
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from empty_run import GIB, EmptyRun, Tables, diagnose, held
from run_tables import Row, blank, span

from ray_memprof.analysis.diagnosis.diagnose import Finding


class Program:
    """Records what it is told, as a rank would; every event and every end of a span is at a time of its own."""

    def __init__(self) -> None:
        self._spans: list[Row] = []
        self._allocs: list[Row] = []
        self._owners: list[Row] = []
        self._open: list[tuple[int, str, str]] = []
        self._peaks: dict[int, int] = {}
        self._now = self._held = self._num_spans = 0
        self._begin("script", "script")

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _begin(self, name: str, stage: str) -> int:
        self._num_spans += 1
        path = f"{self._open[-1][1]}/{name}" if self._open else name
        self._open.append((self._num_spans, path, stage))
        self._peaks[self._num_spans] = self._held
        return self._num_spans

    @contextmanager
    def span(self, name: str, stage: str | None = None, **facts: Any) -> Iterator[None]:
        """A span inside those that are open; inside a stage, it belongs to that."""
        around = self._open[-1]
        stage = stage or (name if around[2] == "script" else around[2])
        number, begin, before = self._begin(name, stage), self._tick(), self._held
        yield
        path = self._open.pop()[1]
        measured = held(before, self._held, self._peaks[number])
        row = span(number, path, (begin, self._tick()), parent_id=around[0], stage=stage, **measured, **facts)
        self._spans.append(row)

    def alloc(
        self,
        size: int,
        category: str | None = None,
        owner: str = "",
        component: str | None = "GPT",
        dtype: str | None = "float32",
        made_as: str = "activation",
    ) -> int:
        """A tensor; with a category it was found out whose it is. Returns its number, to free it."""
        seq = len(self._allocs)
        self._event("alloc", size, seq, made_as)
        self._held += size
        for number, *_ in self._open:
            self._peaks[number] = max(self._peaks[number], self._held)
        if category is not None:
            named = {"owner": owner or f"{component}.x", "component": component, "category": category}
            self._owners.append(blank("owners", seq=seq, t_ns=self._now, dtype=dtype, **named))
        return seq

    def free(self, *numbers: int) -> None:
        """Tensors go."""
        for number in numbers:
            size = self._allocs[number]["size_bytes"]
            self._event("free_requested", size, number, self._allocs[number]["category"])
            self._event("free_completed", size, number, None)
            self._held -= size

    def _event(self, action: str, size: int, address: int, category: str | None) -> None:
        facts = {"action": action, "size_bytes": size, "requested_bytes": size, "address": address}
        facts |= {"span_id": self._open[-1][0], "category": category}
        self._allocs.append(blank("allocs", seq=len(self._allocs), t_ns=self._tick(), **facts))

    def tables(self) -> Tables:
        """What was recorded, with the span of the whole script."""
        whole = span(1, "script", (0, self._now + 1), **held(0, self._held, self._peaks[1]))
        return {"spans": [whole, *self._spans], "allocs": self._allocs, "owners": self._owners}


def trained(
    *,
    steps: int = 2,
    weights: int = GIB,
    weight_name: str = "GPT.w",
    state: int = 0,
    state_name: str = "GPT.w exp_avg",
    state_dtype: str = "float32",
    gradients: int = 0,
    passes: int = 1,
    is_kept: bool = False,
    blocks: Sequence[Sequence[int]] = (),
    has_block_spans: bool = False,
    head: int = 20 * GIB,
    peak_in: str = "backward",
    component: str | None = "GPT",
) -> Program:
    """Steps of a training, which end in the middle of a backward pass, or as peak_in says.

    Args:
        passes: backward passes for each step.
        is_kept: nobody takes the gradients away after a step.
        blocks: what each block keeps of its forward pass, in order.
        head: what is kept outside of blocks.
    """
    program, names = Program(), {"component": component}
    with program.span("load.GPT", **names):
        program.alloc(weights, "weight", weight_name, component, made_as="weight")
    grads: list[int] = []
    for step in range(steps):
        for turn in range(passes):
            is_last = (step, turn) == (steps - 1, passes - 1)
            with program.span("GPT", "forward", step=step, **names):
                kept = _forward(program, blocks, has_block_spans, names) + [program.alloc(head)]
                if is_last and peak_in == "forward":
                    program.alloc(GIB // 16)
            with program.span("backward", "backward", step=step, **names):
                if is_last and peak_in == "backward":
                    program.alloc(GIB // 16, made_as="temporary")
                program.free(*kept)
                if gradients and not grads:
                    grads = [program.alloc(gradients, "gradient", "GPT.w", component)]
        with program.span("optimizer", "optimizer", step=step, **names):
            if state and step == 0:
                program.alloc(state, "optimizer", state_name, component, state_dtype, made_as="temporary")
            if step == steps - 1 and peak_in == "optimizer":
                program.alloc(40 * GIB, made_as="temporary")
        if grads and not is_kept:
            program.free(*grads)
            grads = []
    return program


def _forward(
    program: Program, blocks: Sequence[Sequence[int]], has_block_spans: bool, names: Mapping[str, Any]
) -> list[int]:
    kept = []
    for number, sizes in enumerate(blocks):
        if has_block_spans:
            with program.span("GPT.blocks", block=number, module=f"GPT.blocks.{number}", **names):
                kept += [program.alloc(size) for size in sizes]
        else:
            kept += [program.alloc(size) for size in sizes]
    return kept


def optimizer_state(empty: EmptyRun, *, ranks: int = 1, state: int = 2 * GIB, **facts: Any) -> list[Finding]:
    """Each rank trains 1 GiB of weights with a state of so many bytes; the peak is about 24 GiB."""
    every = [trained(state=state, **facts).tables() for _ in range(ranks)]
    return diagnose(empty, *every, workload="script")


def gradients_kept(empty: EmptyRun, *, gradients: int = 2 * GIB, **facts: Any) -> list[Finding]:
    """The gradients of the first step are there in the second."""
    return diagnose(
        empty, trained(gradients=gradients, **{"is_kept": True} | facts).tables(), workload="script"
    )


BLOCK = (GIB, 2 * GIB, 2 * GIB, GIB // 2)
"""What a block keeps; the last one goes into the next block."""


def activations_kept(empty: EmptyRun, *, ranks: int = 1, **facts: Any) -> list[Finding]:
    """Six blocks keep 5.5 GiB each for the backward pass, 33 of 37 GiB."""
    program = trained(**{"blocks": [BLOCK] * 6, "has_block_spans": True, "head": 3 * GIB} | facts)
    return diagnose(empty, *[program.tables()] * ranks, workload="script")


def batch_larger(
    empty: EmptyRun, *, heads: Sequence[int] = (20 * GIB, 25 * GIB, 20 * GIB), **facts: Any
) -> list[Finding]:
    """What each rank keeps for its backward pass; the second keeps a quarter more."""
    every = [trained(head=head, **facts).tables() for head in heads]
    return diagnose(empty, *every, workload="script")


RUNS: dict[str, Callable[..., list[Finding]]] = {
    "optimizer_state": optimizer_state,
    "gradients_kept": gradients_kept,
    "activations_kept": activations_kept,
    "batch_larger": batch_larger,
}


def public_wan(
    *,
    text_encoder: int = 11 * GIB,
    transformer: int = 6 * GIB,
    vae: int = GIB // 2,
    encode: int = GIB // 2,
    loop: int = GIB,
    decode: int = 8 * GIB,
    dtype: str = "float32",
    offloads: bool = False,
    has_owners: bool = True,
    decodes: bool = True,
    classes: tuple[str, str, str] = ("T5Encoder", "WanModel", "WanVAE_"),
) -> Program:
    """generate.py of the public Wan2.1: networks come to the device, each works, and leaves if `offloads`.

    encode, loop, decode: what each stage takes beside weights.
    """
    program, coming = Program(), {}
    sizes = {"vae": vae, "dit": transformer, "t5": text_encoder}
    for component, size in sizes.items():
        with program.span(f"load.{component}", component=component):
            kind = {"t5": "bfloat16", "vae": "float32"}.get(component, dtype)
            owned = "weight" if has_owners else None
            coming[component] = program.alloc(size, owned, "", component, kind, made_as="weight")
    t5, dit, decoder = classes
    with program.span("t5", "encode.text", component="t5", module=t5, step=0):
        program.free(program.alloc(encode))
    if offloads:
        with program.span("residency.offload", component="t5"):
            program.free(coming["t5"])
    for step in range(2):
        with program.span("dit", "denoise", component="dit", module=dit, step=step):
            program.free(program.alloc(loop))
    if offloads:
        with program.span("residency.offload", component="dit"):
            program.free(coming["dit"])
    if decodes:
        with program.span("vae.decode", "decode", component="vae", module=decoder):
            program.free(program.alloc(decode, made_as="output"))
    return program
