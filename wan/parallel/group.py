"""The process group of a run: it is made before the work, and left when all ranks are done.

with joined(Place.of(os.environ), torch.device("cuda:0")):
    ...
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from wan.parallel.environment import Place
from wan.spans import span


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[None]:
    """The default process group of torch.distributed, where there is more than one rank.

    After a failure the group is not left: other ranks may be waiting in a collective that never ends, and this rank
    would wait too. The program that started the ranks must end them.
    """
    if place.num_ranks == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with span("comm.init"):
        # With `device_id` the communicator is made now, and not inside the first stage that sends something.
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    yield
    dist.barrier()
    dist.destroy_process_group()
