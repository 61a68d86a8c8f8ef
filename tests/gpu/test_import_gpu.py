"""A snapshot of torch's own allocator, recorded late: the peaks that an import finds are those of its counters."""

import random
from pathlib import Path

import pytest
import torch

from ray_memprof.allocator.before_trace import BeforeTrace
from ray_memprof.allocator.replay import BlockReplay
from ray_memprof.formats.torch_snapshot.pickle_reader import PickleStream

pytestmark = pytest.mark.gpu


def churn(held: list[torch.Tensor], chance: random.Random, side: torch.cuda.Stream, times: int) -> None:
    """Tensors of 1 byte to 128 MiB that come and go, some used on another stream while they are freed."""
    for _ in range(times):
        if len(held) < 150 or chance.random() < 0.5:
            held.append(torch.empty(int(2 ** chance.uniform(0, 27)), dtype=torch.uint8, device="cuda"))
            continue
        tensor = held.pop(chance.randrange(len(held)))
        if chance.random() < 0.1:
            with torch.cuda.stream(side):
                torch.cuda._sleep(2_000_000)
            tensor.record_stream(side)
        if chance.random() < 0.002:
            torch.cuda.empty_cache()


@pytest.mark.parametrize("context", [None, "alloc"])
def test_peaks_equal_the_counters(tmp_path: Path, context: str | None) -> None:
    held: list[torch.Tensor] = []
    chance, side, path = random.Random(1), torch.cuda.Stream(), tmp_path / "rank0.pickle"
    churn(held, chance, side, 1500)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history("all", context=context, stacks="python", max_entries=10**6)
    try:
        churn(held, chance, side, 8000)
        stats = torch.cuda.memory_stats()
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(None)

    witness, replay, events = BeforeTrace(), BlockReplay(), []
    with open(path, "rb") as file:
        snapshot = PickleStream(file, path.name, lambda device, event: events.append(event)).read()
    witness.see(*([event.get(key, 0) for event in events] for key in ("action", "addr", "size")))
    replay.configure(snapshot["allocator_settings"])
    replay.prime(witness.segments_at_start(snapshot["segments"], replay.rules), 0)
    replay.feed(events)

    assert replay.num_strays == 0 and len(events) > 8000
    peaks = [stats[f"{name}_bytes.all.peak"] for name in ("allocated", "reserved", "active")]
    found = [replay.allocated_peak, replay.reserved_peak, replay.active_peak]
    assert found[1] == peaks[1]
    assert all(0 <= true - here <= witness.doubt_bytes for true, here in zip(peaks, found, strict=True))
    # Bytes that no event tells of are in the earliest blocks alone: at the end there is no doubt.
    assert (replay.allocated, replay.active) == (
        stats["allocated_bytes.all.current"], stats["active_bytes.all.current"]
    )  # fmt: skip
