"""A DiT in fp8 in shards: the result is that of one process, and a rank stores its share of the fp8 bytes."""

from typing import Any

import pytest
import torch
from crew import Crew
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.dit_inputs import inputs
from wan.components import Components
from wan.config import TASKS
from wan.levers import Levers, Matmul
from wan.parallel import Layout
from wan.parallel.ranks import Ranks

CPU = torch.device("cpu")
TASK = TASKS["vace-tiny"]


def made(ranks: Ranks | None, matmul: Matmul) -> dict[str, Any]:
    """The velocity of two visits, and the bytes that are stored of the weights."""
    components = Components(
        TASK, ckpt_dir=None, device=CPU, strategy="block", offload=True, seed=0, ranks=ranks
    )
    part = components.dit(Levers(matmul=matmul), torch.bfloat16, "fp8")
    velocities: list[Tensor] = []
    with torch.no_grad():
        for _ in range(2):
            with part.on_device() as dit:
                velocities.append(dit(**inputs(TASK.dit)))
                stored = [p.to_local() if isinstance(p, DTensor) else p for p in dit.parameters()]
                stored_bytes = sum(each.nbytes for each in stored)
                dtypes = {str(each.dtype) for each in stored}
    return {"velocities": velocities, "bytes": stored_bytes, "dtypes": dtypes}


def sharded(rank: int, size: int, matmul: Matmul, ulysses: int) -> dict[str, Any]:
    return made(Ranks(Layout(ranks=size, dit_fsdp=True, ulysses=ulysses), CPU), matmul)


@pytest.mark.parametrize("matmul", ["precision", "fp8"])
@pytest.mark.parametrize("ulysses", [1, 2])
def test_shards_in_fp8_give_the_result_of_one_process(two: Crew, matmul: Matmul, ulysses: int) -> None:
    alone = made(None, matmul)

    told = two.run(sharded, 2, matmul, ulysses)

    assert sum(each["bytes"] for each in told) == alone["bytes"]
    for each in told:
        assert each["dtypes"] == {"torch.float8_e4m3fn", "torch.float32", "torch.bfloat16"}
        assert each["bytes"] < 0.56 * alone["bytes"]
        for velocity in each["velocities"]:
            torch.testing.assert_close(
                velocity, alone["velocities"][0], rtol=0, atol=0 if ulysses == 1 else 0.05
            )
