"""The process group of a run: it is made before the work, and left when all ranks are done.

with joined(Place.of(os.environ), torch.device("cuda:0")):
    ...
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from wan.parallel.environment import Place
from wan.spans import span


@contextmanager
def joined(place: Place, device: torch.device, *, timeout: timedelta | None = None) -> Iterator[None]:
    """The default process group of torch.distributed, where there is more than one rank.

    After a failure the group is not left: other ranks may be waiting in a collective that never ends, and this rank
    would wait too. The program that started the ranks must end them.

    Args:
        place: this rank, and how many there are.
        device: of this rank.
        timeout: how long a collective waits for the other ranks; None: torch's default.
    """
    if place.num_ranks == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with span("comm.init"):
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=place.rank,
            world_size=place.num_ranks,
            timeout=timeout,
            # With a device id the communicator is made now, and not inside the first stage that sends something.
            device_id=device if on_gpu else None,
        )
        # The first collective makes NCCL's connections, so a missing rank is noticed here.
        meet(place)
    yield
    dist.destroy_process_group()


def meet(place: Place) -> None:
    """Wait for all other ranks, if there are any."""
    if place.num_ranks > 1:
        dist.barrier()
