"""How the ranks of a run divide the work, as data; and messages that say which divisions are possible.

    layout = Layout(ranks=4, ulysses=2, cfg=2, dit_fsdp=True)
    layout.check("t2v-14B", num_heads=40)             # InputError, with the legal layouts, where it cannot be

Imports no torch: flags and configurations are checked before anything heavy is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from wan.errors import InputError

VaeRanks = Literal["rank0", "split"]
Backend = Literal["native", "xfuser"]
NUM_PASSES = 2
"""Passes of classifier-free guidance in a step: the conditional one, then the unconditional one."""


class Coordinates(NamedTuple):
    """Where a rank is in a layout."""

    ulysses: int
    """Its number in its Ulysses group."""
    ring: int
    """The number of that group in its ring."""
    cfg: int
    """The pass that it runs, where each pass has ranks of its own: 0 conditional, 1 unconditional; else 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is split over the ranks of one video.

    The tokens of the video are split over the ranks of a pass: its rank r holds stretch r. Ranks that follow one
    another form a Ulysses group, which exchanges tokens for heads; ranks `ulysses` apart form a ring, which passes keys
    and values. With cfg 2 the first half of the ranks runs the conditional pass, and the second half the unconditional
    one at the same time.
    """

    ranks: int
    """Processes, each with a device of its own."""
    ulysses: int = 1
    """Ranks that split the attention heads."""
    ring: int = 1
    """Ranks that pass keys and values around."""
    cfg: int = 1
    """Passes of guidance at the same time: 1, one after the other on all ranks; 2, each on half of the ranks."""
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
        return self.ranks_a_pass > 1

    @property
    def ranks_a_pass(self) -> int:
        """Ranks that share the tokens of one forward pass."""
        return self.ulysses * self.ring

    def coordinates(self, rank: int) -> Coordinates:
        """Where `rank` is; 0, 0, 0 is the first one."""
        # The ranks of a Ulysses group are neighbours, because their all-to-all is the heaviest traffic; the two passes
        # exchange one velocity a step, so their ranks may be the farthest apart.
        return Coordinates(
            ulysses=rank % self.ulysses,
            ring=rank // self.ulysses % self.ring,
            cfg=rank // self.ranks_a_pass % self.cfg,
        )

    def check(
        self,
        task: str,
        num_heads: int,
        names: Mapping[str, str] | None = None,
        *,
        guide_scale: float | None = None,
    ) -> None:
        """Refuse what cannot run.

        Args:
            task: for the message.
            num_heads: attention heads of the task's DiT.
            names: how the user spells the fields, and load_strategy: {"ulysses": "--ulysses_size"}; fields that are
                left out are spelled as here. Where "ranks" is among them, the user sets it, and not torchrun.
            guide_scale: of the video; None: not known yet.

        Raises:
            InputError: a degree does not fit the heads, the ranks or the guidance; the hint lists those that do.
        """
        names = dict(names or {})
        spelled = {
            name: name for name in (*self.__dataclass_fields__, "load_strategy", "guide_scale")
        } | names
        for name in ("ranks", "ulysses", "ring", "cfg"):
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
        self._check_cfg(spelled, guide_scale)
        if self.ranks == 1:
            start = (
                f"set {spelled['ranks']} to"
                if "ranks" in names
                else "start it with torchrun --nproc_per_node"
            )
            self._check_one_rank(spelled, start)
        else:
            self._check_ranks(task, num_heads, spelled, is_guided=guide_scale != 1.0)

    def _check_cfg(self, spelled: Mapping[str, str], guide_scale: float | None) -> None:
        if self.cfg == 1:
            return
        if self.cfg > NUM_PASSES:
            raise InputError(
                f"{spelled['cfg']} {self.cfg}: guidance has {NUM_PASSES} passes, conditional and unconditional",
                hint=f"{spelled['cfg']} {NUM_PASSES} gives each of them half of the ranks",
            )
        if guide_scale == 1.0:
            raise InputError(
                f"{spelled['cfg']} {self.cfg} gives half of the ranks the unconditional pass, which "
                f"{spelled['guide_scale']} 1 leaves out",
                hint=f"leave {spelled['cfg']} out, or set another {spelled['guide_scale']}",
            )
        if self.backend == "xfuser":
            raise InputError(
                f"{spelled['cfg']} {self.cfg} does not go with {spelled['backend']} xfuser",
                hint=f"{spelled['backend']} native runs each pass on half of the ranks",
            )

    def _check_ranks(self, task: str, num_heads: int, spelled: Mapping[str, str], *, is_guided: bool) -> None:
        options = _listed(spelled, legal_degrees(self.ranks, num_heads, is_guided=is_guided))
        wanted = self.ranks_a_pass * self.cfg
        if wanted not in (1, self.ranks):
            raise InputError(
                f"{_words(spelled, ' x ', self.ulysses, self.ring, self.cfg)} needs {wanted} ranks, "
                f"there are {self.ranks}",
                hint=f"with {self.ranks} ranks {task} takes {options}",
            )
        if wanted == 1 and not (self.dit_fsdp or self.t5_fsdp):
            raise InputError(
                f"{self.ranks} ranks share nothing: each would make the whole video of {task}",
                hint=f"use {options}, or {spelled['dit_fsdp']} to share the weights alone",
            )

    def _check_one_rank(self, spelled: Mapping[str, str], start: str) -> None:
        wanted = self.ranks_a_pass * self.cfg
        if wanted > 1:
            raise InputError(
                f"{_words(spelled, ' x ', self.ulysses, self.ring, self.cfg)} needs {wanted} ranks, there is 1",
                hint=f"{start} {wanted}",
            )
        for name in ("dit_fsdp", "t5_fsdp"):
            if getattr(self, name):
                raise InputError(
                    f"{spelled[name]} shards over ranks, and there is 1",
                    hint=f"{start} 2 or more; {spelled['load_strategy']} stream fits the 14B models on one small GPU",
                )


def legal_degrees(ranks: int, num_heads: int, *, is_guided: bool = True) -> list[tuple[int, int, int]]:
    """Every (ulysses, ring, cfg) that uses `ranks` ranks, most Ulysses first, because it moves fewer bytes than a ring.

    Those with cfg 2 come last; with no guidance there are none.
    """
    return [
        (u, ranks // cfg // u, cfg)
        for cfg in range(1, NUM_PASSES + 1 if is_guided else 2)
        if ranks % cfg == 0
        for u in range(ranks // cfg, 0, -1)
        if ranks // cfg % u == 0 and num_heads % u == 0
    ]


def _words(spelled: Mapping[str, str], joint: str, ulysses: int, ring: int, cfg: int = 1) -> str:
    """Degrees as the user spells them; cfg 1 is not named."""
    named = [f"{spelled['ulysses']} {ulysses}", f"{spelled['ring']} {ring}"]
    return joint.join([*named, f"{spelled['cfg']} {cfg}"] if cfg > 1 else named)


def _listed(spelled: Mapping[str, str], degrees: Sequence[tuple[int, int, int]]) -> str:
    """Legal degrees in words, those with cfg 2 by themselves."""
    of_cfg = {cfg: [_words(spelled, " ", u, r) for u, r, c in degrees if c == cfg] for _, _, cfg in degrees}
    return ", ".join(
        f"with {spelled['cfg']} {cfg} {' or '.join(pairs)}" if cfg > 1 else " or ".join(pairs)
        for cfg, pairs in of_cfg.items()
    )
