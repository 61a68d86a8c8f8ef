"""What one rank of a text-to-video run allocates, played without a GPU; make_synthetic_run.py makes rows of it.

    player, events, spans, times = play(rank=0, blocks=30)      # the parts are those of the second denoise step

An allocator with free lists: T5, DiT and VAE come and go, and addresses and sizes recur, as they do with a caching
allocator. The same arguments play the same events.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_memprof.store.schema import CATEGORIES

MIB = 2**20
ACTIONS = ("alloc", "free_requested", "free_completed", "segment_alloc", "segment_free")
TENSORS_A_SPAN = 20  # three events each: alloc, free_requested, free_completed
BASE_ADDRESS = 0x7F00_0000_0000
SIZES = np.outer(MIB * np.array([0.0005, 0.003, 0.06, 0.5, 1.25, 6, 24, 96]), [1, 1.25, 1.5, 2, 2.5]).ravel()
SHARES = np.repeat(np.array([0.24, 0.2, 0.14, 0.12, 0.1, 0.09, 0.06, 0.05]) / 5, 5)

DEFAULT_POOL = "(0, 0)"
"""The memory pool of all that has none of its own, as torch numbers it."""

Block = tuple[int, int, str]
"""Size, address and category of a tensor."""


@dataclass(frozen=True, slots=True)
class Skew:
    """Memory that one rank holds in one stage and no other rank does."""

    rank: int
    stage: str
    """encode.text, denoise or decode."""
    component: str
    """The component in whose span it is allocated."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """How a run differs from the plain one."""

    seed: int | None = None
    """Of the sizes and lifetimes of all ranks; None: each rank has its own."""
    is_shared: bool = False
    """Every rank decodes."""
    uneven_bytes: int = 0
    """Each rank holds up to so many more bytes from beginning to end, and each another amount."""
    skew: Skew | None = None
    num_graphs: int = 0
    """CUDA graphs of each rank, from before its first step to after its last; each has a memory pool of its own."""
    graph_bytes: int = 0
    """Of the pool of each graph; a quarter of it is free once the graph is there."""
    shared_bytes: int = 0
    """Of a torch.cuda.MemPool with a buffer that each rank holds from beginning to end; 0: there is none."""


PLAIN = Variant()


class Player:
    """Spans and events of one rank, in order; a block comes from the free list of its size and memory pool.

    Every block has a segment of its own: simpler than an allocator, with the same habits as seen from outside.
    """

    def __init__(self, seed: int) -> None:
        self.events: dict[str, list[int]] = {
            name: [] for name in ("action", "size", "address", "category", "span_id", "time_us", "pool")
        }
        self.pools = [DEFAULT_POOL]
        """By their numbers in events."""
        self.spans: list[dict[str, Any]] = []
        self.ledger: list[tuple[int, int, int, str, int]] = []
        self.growths: list[tuple[int, int, int]] = []
        """Growths of device memory outside the allocator: number of the next event, time and bytes."""
        self.now_us = self.outside = 0
        self.seed, self._clock = seed, np.random.default_rng(seed)
        self.reseed()
        self._open: list[dict[str, Any]] = []
        self._free: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._pool_at: dict[int, str] = {}
        self._pool, self._next = DEFAULT_POOL, BASE_ADDRESS

    def reseed(self) -> None:
        """Play the same sizes and lifetimes again."""
        self._rng = np.random.default_rng(self.seed)

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        """A span; what is played inside the block belongs to it."""
        around = self._open[-1] if self._open else None
        row: dict[str, Any] = {"component": None, "step": None, "block": None, "branch": None}
        if around is not None:
            row.update({key: around[key] for key in ("component", "step", "branch")})
        row.update(attributes, name=name, span_id=len(self.spans) + 1, depth=len(self._open))
        row["parent_id"] = around["span_id"] if around else 0
        row["path"] = f"{around['path']}/{name}" if around else name
        row["stage"] = around["stage"] if around else name
        row.update(first=len(self.events["size"]), start_us=self.now_us, outside_start=self.outside)
        self.spans.append(row)
        self._open.append(row)
        self.now_us += 3
        yield
        self.now_us += 3
        row.update(last=len(self.events["size"]), end_us=self.now_us, outside_end=self.outside)
        self._open.pop()

    @contextmanager
    def pool(self, name: str) -> Iterator[None]:
        """A memory pool; what is allocated inside the block is in segments of this pool."""
        outer, self._pool = self._pool, name
        if name not in self.pools:
            self.pools.append(name)
        yield
        self._pool = outer

    def alloc(self, size: int, category: str) -> Block:
        """Allocate a tensor; in a new segment, if no block of its size is free in the memory pool."""
        free = self._free[self._pool, size]
        if not free:
            self._pool_at[self._next] = self._pool
            self._event("segment_alloc", _segment(size), self._next, None)
            free.append(self._next)
            self._next += _segment(size)
        address = free.pop()
        self._event("alloc", size, address, category)
        return size, address, category

    def free(self, block: Block) -> None:
        """Free a tensor; its segment stays."""
        size, address, category = block
        self._event("free_requested", size, address, category)
        self._event("free_completed", size, address, category, pause=False)
        self._free[self._pool_at[address], size].append(address)

    def empty_cache(self) -> None:
        """Give segments without a tensor back to the device."""
        for (_, size), addresses in self._free.items():
            for address in addresses:
                self._event("segment_free", _segment(size), address, None)
            addresses.clear()

    def grow(self, account: str | None, size: int) -> None:
        """Take device memory outside the allocator; without `account`, it is not known whose it is."""
        self.outside += size
        self.growths.append((len(self.events["size"]), self.now_us, size))
        if account is not None:
            where = len(self.events["size"]), self.now_us, self._open[-1]["span_id"]
            self.ledger.append((*where, account, size))

    def churn(self, tensors: int = TENSORS_A_SPAN, scale: int = 1) -> None:
        """Activations that come and go, each freed soon after the next few came."""
        sizes = (self._rng.choice(SIZES, tensors, p=SHARES).astype(np.int64) // 512 * 512).clip(512) * scale
        kinds = self._rng.choice(["activation", "activation", "workspace", "communication"], tensors)
        alive: list[Block] = []
        for size, kind in zip(sizes.tolist(), kinds.tolist(), strict=True):
            alive.append(self.alloc(size, kind))
            if len(alive) > 6:
                self.free(alive.pop(int(self._rng.integers(len(alive)))))
        for block in alive:
            self.free(block)

    def _event(
        self, action: str, size: int, address: int, category: str | None, *, pause: bool = True
    ) -> None:
        self.now_us += int(self._clock.exponential(20)) + 1 if pause else 0
        row = (
            ACTIONS.index(action),
            size,
            address,
            -1 if category is None else CATEGORIES.index(category),
            self._open[-1]["span_id"] if self._open else 0,
            self.now_us,
            self.pools.index(self._pool_at[address]),
        )
        for values, value in zip(self.events.values(), row, strict=True):
            values.append(value)


def _segment(size: int) -> int:
    return -(-size // (2 * MIB)) * 2 * MIB


@contextmanager
def _resident(player: Player, component: str, parameter: int, count: int) -> Iterator[None]:
    """A component's weights, read to the device and given back at the end."""
    with player.span(f"load.{component}", component=component):
        weights = [player.alloc(parameter, "weight") for _ in range(count)]
    with player.span("residency.onload", component=component):
        pass
    yield
    with player.span("residency.offload", component=component):
        for block in weights:
            player.free(block)
        player.empty_cache()


@contextmanager
def _skewed(player: Player, rank: int, stage: str, skew: Skew | None) -> Iterator[None]:
    """A stage, with what this rank alone holds in it."""
    if skew is None or (skew.rank, skew.stage) != (rank, stage):
        yield
        return
    with player.span("module", component=skew.component):
        block = player.alloc(skew.bytes, "activation")
    yield
    player.free(block)


@contextmanager
def _graphs(player: Player, count: int, size: int) -> Iterator[None]:
    """CUDA graphs; what was freed while one was captured stays in its memory pool."""
    blocks: list[Block] = []
    for number in range(1, count + 1):
        with player.span("graph.capture", component="dit"), player.pool(f"({number}, 0)"):
            *kept, freed = (player.alloc(size // 4, "activation") for _ in range(4))
            player.free(freed)
        blocks += kept
    yield
    for block in blocks:
        player.free(block)


def _step(player: Player, step: int, blocks: int, rank: int, skew: Skew | None) -> None:
    player.reseed()  # steps are alike: the second one finds a block for each of its tensors
    with player.span("denoise", step=step, component="dit"), _skewed(player, rank, "denoise", skew):
        for branch in ("cond", "uncond"):
            with player.span("dit.forward", branch=branch):
                for index in range(blocks):
                    with player.span("dit.block", block=index):
                        player.churn()


def play(rank: int, blocks: int, variant: Variant = PLAIN) -> tuple[Player, slice, slice, tuple[int, int]]:
    """A run of two steps; events, spans and time of the second one, which may be repeated any number of times."""
    player = Player(seed=rank if variant.seed is None else variant.seed)
    skew = variant.skew
    with player.span("device.init"):
        player.grow("context", 560 * MIB)
        if variant.uneven_bytes:
            share = np.random.default_rng((player.seed, rank)).integers(variant.uneven_bytes // 512)
            player.alloc(512 * (1 + int(share)), "activation")
    with player.span("comm.init"):
        player.grow("nccl", 840 * MIB)
        player.grow(None, 6 * MIB)
    buffers: list[Block] = []
    if variant.shared_bytes:
        with player.span("pool.init"), player.pool("(0, 1)"):
            buffers.append(player.alloc(variant.shared_bytes, "communication"))
    with (
        player.span("encode.text", component="t5"),
        _skewed(player, rank, "encode.text", skew),
        _resident(player, "t5", 48 * MIB, 226),
    ):
        for index in range(24):
            with player.span("t5.block", block=index, component="t5"):
                player.churn()
    graphs = _graphs(player, variant.num_graphs, variant.graph_bytes)
    with _resident(player, "dit", 12 * MIB, 225), graphs:
        latents = player.alloc(8 * MIB, "output")
        _step(player, 0, blocks, rank, skew)
        if rank == 0:
            with player.span("warmup"):
                player.grow("libraries", 64 * MIB)
        start = len(player.events["size"]), len(player.spans), player.now_us
        # This step may be repeated, so what one rank holds alone in a step is in the first step.
        _step(player, 1, blocks, rank, None)
        end = len(player.events["size"]), len(player.spans), player.now_us
    if rank == 0 or variant.is_shared:
        with (
            player.span("decode", component="vae"),
            _skewed(player, rank, "decode", skew),
            _resident(player, "vae", 4 * MIB, 120),
        ):
            for index in range(21):
                with player.span("vae.chunk", block=index, component="vae"):
                    player.churn(scale=3)
    for block in (latents, *buffers):
        player.free(block)
    return player, slice(start[0], end[0]), slice(start[1], end[1]), (start[2], end[2])
