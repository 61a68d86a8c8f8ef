"""The exchanges between ranks, over one communicator, each kind of exchange in a span of its own.

    ranks = Ranks(layout, device)                  # after torch.distributed.init_process_group
    states = ranks.once(lambda: encode(prompts))   # made on the first rank, returned on all

A further NCCL communicator costs 0.5 GiB of device memory at its first collective and 1.1 GiB more at its first
all_to_all (H200, NCCL 2.28), so there is only one, of all ranks. A Ulysses group exchanges over it and sends nothing to
ranks outside the group, a ring passes over it from neighbour to neighbour, and FSDP gathers over it.

Spans: comm.all_to_all, comm.ring, comm.all_gather, comm.broadcast, comm.all_reduce, comm.gather.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from wan.parallel.layout import Layout
from wan.spans import span

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
_MAX_DIMS = 8


def gather_into(
    out: Tensor, x: Tensor, *, group: dist.ProcessGroup, async_op: bool = False
) -> dist.Work | None:
    """dist.all_gather_into_tensor, which torch 2.13 renamed: there the old name warns.

    The function is looked up at each call, because a program that observes torch.distributed replaces these functions
    with its own.
    """
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    work: dist.Work | None = getattr(dist, name)(out, x, group=group, async_op=async_op)
    return work


class Pending:
    """Tensors under way. Call wait() before reading what arrives; what is sent is kept alive until then."""

    def __init__(self, works: Sequence[dist.Work], *held: Tensor) -> None:
        self._works, self._held = works, held

    def wait(self) -> None:
        """On a GPU the current stream waits, not the host."""
        for work in self._works:
            work.wait()
        self._works, self._held = (), ()


class Ranks:
    """This process among the ranks of `layout`.

    Args:
        layout: how many there are and what each does.
        device: where this rank's networks run.
        group: the ranks of one video; None: every process.
    """

    def __init__(self, layout: Layout, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        world = dist.group.WORLD if group is None else group
        assert world is not None, "torch.distributed.init_process_group comes first"
        self.layout, self.device, self.group = layout, device, world
        self.rank, self.size = dist.get_rank(world), dist.get_world_size(world)
        if self.size != layout.ranks:
            raise ValueError(f"the layout is for {layout.ranks} ranks, the process group has {self.size}")

    def once(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns on the first rank, on every rank; the others do not call it."""
        made = make().contiguous() if self.rank == 0 else None
        with span("comm.broadcast"):
            header = torch.zeros(2 + _MAX_DIMS, dtype=torch.int64, device=self.device)
            if made is not None:
                shape = [_DTYPES.index(made.dtype), made.dim(), *made.shape]
                header[: len(shape)] = torch.tensor(shape)
            self._broadcast(header)
            if made is None:
                made = self._empty(header)
            self._broadcast(made)
        return made

    def _empty(self, header: Tensor) -> Tensor:
        """Memory for what the header tells of: dtype, number of dimensions, shape."""
        code, dims, *shape = header.tolist()
        return torch.empty(shape[:dims], dtype=_DTYPES[code], device=self.device)

    def _broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, group=self.group, group_src=0)

    def exchange(
        self, send: Tensor, members: Sequence[int], *, sent: Sequence[int], received: Sequence[int]
    ) -> tuple[Tensor, Pending]:
        """Send blocks of rows to `members` and receive theirs, without waiting. All ranks call it at the same time.

        Args:
            send: [sum(sent), ...], contiguous.
            members: the ranks that exchange among themselves, this one included, in the same order on all.
            sent: rows for each member.
            received: rows from each member.

        Returns:
            [sum(received), ...], and what to wait for.
        """
        out = send.new_empty(sum(received), *send.shape[1:])
        # Sizes are left out where all are equal: NCCL then recognises an all-to-all.
        equal = len(members) == self.size and len({*sent, *received}) == 1
        with span("comm.all_to_all"):
            work = dist.all_to_all_single(
                out,
                send,
                output_split_sizes=None if equal else self._spread(received, members),
                input_split_sizes=None if equal else self._spread(sent, members),
                group=self.group,
                async_op=True,
            )
        assert work is not None
        return out, Pending([work], send)

    def _spread(self, rows: Sequence[int], members: Sequence[int]) -> list[int]:
        counts = [0] * self.size
        for member, count in zip(members, rows, strict=True):
            counts[member] = count
        return counts

    def rotate(self, sent: Sequence[Tensor], received: Sequence[Tensor], *, to: int, source: int) -> Pending:
        """Point to point: `sent` to one rank, `received` from another, each tensor contiguous."""
        with span("comm.ring"):
            ops = [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=to) for tensor in sent]
            ops += [
                dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=source) for tensor in received
            ]
            return Pending(dist.batch_isend_irecv(ops), *sent)

    def all_gather(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """x [rows[rank], ...] of every rank, one after the other: [sum(rows), ...]."""
        longest = max(rows)
        padded = x.contiguous()
        if x.shape[0] < longest:
            padded = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])])
        out = x.new_empty(self.size * longest, *x.shape[1:])
        with span("comm.all_gather"):
            gather_into(out, padded, group=self.group)
        if min(rows) == longest:
            return out
        return torch.cat([part[:count] for part, count in zip(out.split(longest), rows, strict=True)])

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, in place."""
        with span("comm.all_reduce"):
            dist.all_reduce(x, group=self.group)
        return x

    def receive(self, buffers: Sequence[tuple[int, Tensor]]) -> Pending:
        """On the first rank: take what each (rank, buffer) sends."""
        ops = [dist.P2POp(dist.irecv, buffer, group=self.group, group_peer=rank) for rank, buffer in buffers]
        with span("comm.gather"):
            return Pending(dist.batch_isend_irecv(ops) if ops else [])

    def send_to_first(self, x: Tensor) -> Pending:
        """On another rank: send x, contiguous, to the first."""
        with span("comm.gather"):
            return Pending(
                dist.batch_isend_irecv([dist.P2POp(dist.isend, x, group=self.group, group_peer=0)]), x
            )
