"""How the ranks of a run divide the work, as data; and messages that say which divisions are possible.

    layout = Layout(ranks=4, ulysses=4, dit_fsdp=True)
    layout.check("t2v-14B", num_heads=40)             # InputError, with the legal layouts, where it cannot be

Imports no torch: flags and configurations are checked before anything heavy is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wan.errors import InputError

VaeRanks = Literal["rank0", "split"]
Backend = Literal["native", "xfuser"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is split over the ranks of one video.

    The tokens of the video are split over all ranks: rank r holds stretch r. Ranks that follow one another form a
    Ulysses group, which exchanges tokens for heads; ranks `ulysses` apart form a ring, which passes keys and values.
    """

    ranks: int
    """Processes, each with a device of its own."""
    ulysses: int = 1
    """Ranks that split the attention heads."""
    ring: int = 1
    """Ranks that pass keys and values around."""
    dit_fsdp: bool = False
    """Every rank stores 1/ranks of the DiT."""
    t5_fsdp: bool = False
    """Every rank stores 1/ranks of the text encoder, and all encode; else the first rank encodes."""
    vae: VaeRanks = "split"
    """Who decodes and encodes pixels: the first rank, or every rank a slab."""
    backend: Backend = "native"
    """Whose attention runs across ranks: this package's, or xfuser's (CUDA only)."""

    @property
    def splits_tokens(self) -> bool:
        """Whether a rank holds a part of the tokens only."""
        return self.ulysses * self.ring > 1

    def coordinates(self, rank: int) -> tuple[int, int]:
        """The number of `rank` in its Ulysses group, and the number of that group in the ring."""
        # The ranks of a Ulysses group are neighbours: their all-to-all is the heaviest traffic.
        return rank % self.ulysses, rank // self.ulysses % self.ring

    def check(self, task: str, num_heads: int, names: Mapping[str, str] | None = None) -> None:
        """Refuse what cannot run.

        Args:
            task: for the message.
            num_heads: attention heads of the task's DiT.
            names: how the user spells the fields, and load_strategy: {"ulysses": "--ulysses_size"}; fields that are
                left out are spelled as here. Where "ranks" is among them, the user sets it, and not torchrun.

        Raises:
            InputError: a degree does not fit the heads or the ranks; the hint lists those that do.
        """
        names = dict(names or {})
        spelled = {name: name for name in (*self.__dataclass_fields__, "load_strategy")} | names
        for name in ("ranks", "ulysses", "ring"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{spelled[name]} {getattr(self, name)}: must be at least 1",
                    hint=f"leave {spelled[name]} out",
                )
        if num_heads % self.ulysses:
            legal = ", ".join(str(size) for size in range(1, num_heads + 1) if num_heads % size == 0)
            raise InputError(
                f"{spelled['ulysses']} {self.ulysses} does not divide the {num_heads} heads of {task}",
                hint=f"use one of {legal}, or {spelled['ring']}",
            )
        self._check_ranks(task, num_heads, spelled, sets_ranks="ranks" in names)

    def _check_ranks(
        self, task: str, num_heads: int, spelled: Mapping[str, str], *, sets_ranks: bool
    ) -> None:
        if self.ranks == 1:
            start = f"set {spelled['ranks']} to" if sets_ranks else "start it with torchrun --nproc_per_node"
            self._check_one_rank(spelled, start)
            return
        ulysses, ring = spelled["ulysses"], spelled["ring"]
        options = " or ".join(f"{ulysses} {u} {ring} {r}" for u, r in legal_degrees(self.ranks, num_heads))
        if self.splits_tokens and self.ulysses * self.ring != self.ranks:
            raise InputError(
                f"{ulysses} {self.ulysses} x {ring} {self.ring} needs {self.ulysses * self.ring} ranks, "
                f"there are {self.ranks}",
                hint=f"with {self.ranks} ranks {task} takes {options}",
            )
        if not (self.splits_tokens or self.dit_fsdp or self.t5_fsdp):
            raise InputError(
                f"{self.ranks} ranks share nothing: each would make the whole video of {task}",
                hint=f"use {options}, or {spelled['dit_fsdp']} to share the weights alone",
            )

    def _check_one_rank(self, spelled: Mapping[str, str], start: str) -> None:
        wanted = self.ulysses * self.ring
        if wanted > 1:
            raise InputError(
                f"{spelled['ulysses']} {self.ulysses} x {spelled['ring']} {self.ring} needs {wanted} ranks, "
                "there is 1",
                hint=f"{start} {wanted}",
            )
        for name in ("dit_fsdp", "t5_fsdp"):
            if getattr(self, name):
                raise InputError(
                    f"{spelled[name]} shards over ranks, and there is 1",
                    hint=f"{start} 2 or more; {spelled['load_strategy']} stream fits the 14B models on one small GPU",
                )


def legal_degrees(ranks: int, num_heads: int) -> list[tuple[int, int]]:
    """Every (ulysses, ring) that uses `ranks` ranks, most Ulysses first, because it moves the fewest bytes."""
    return [(u, ranks // u) for u in range(ranks, 0, -1) if ranks % u == 0 and num_heads % u == 0]
