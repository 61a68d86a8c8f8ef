"""The networks of a task as Components: how each is built, where its weights come from, what of it is streamed.

made = Components(task, ckpt_dir=folder, device=device, strategy="stream", offload=True, seed=0)
with made.dit(Levers(), torch.bfloat16).on_device() as dit: ...
"""

from collections.abc import Callable
from pathlib import Path

import torch

from wan.config import Task
from wan.levers import Levers, LoadStrategy, WeightsDtype
from wan.networks.dit import WanDit
from wan.networks.dtypes import DTYPES
from wan.networks.image import ImageEncoder, build_image_encoder
from wan.networks.linear import in_fp8
from wan.networks.text import TextEncoder, build_text_encoder
from wan.networks.vae.network import WanVae
from wan.parallel.apply import split_over
from wan.parallel.fsdp import Sharded
from wan.parallel.ranks import Ranks
from wan.weights import checkpoint, fill
from wan.weights.checkpoint import FileSource
from wan.weights.fill import on_meta
from wan.weights.fp8 import Fp8Source
from wan.weights.residency import Component


class Components:
    """Makes the networks of one task. None refers back to this object, so one that is dropped is freed at once."""

    def __init__(
        self,
        task: Task,
        *,
        ckpt_dir: Path | None,
        device: torch.device,
        strategy: LoadStrategy,
        offload: bool,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks
        self._task, self._folder, self._seed = task, ckpt_dir, seed
        self._device, self._strategy, self._offload = device, strategy, offload

    def text(self, dtype: torch.dtype, *, on_cpu: bool) -> Component[TextEncoder]:
        """UMT5; with `on_cpu` it runs on the CPU, whatever the device of the other networks."""
        config = self._task.text
        if self._ranks is not None and self._ranks.layout.t5_fsdp:
            return Sharded(
                "t5",
                lambda: build_text_encoder(config, dtype),
                self._source(checkpoint.open_text, fill.random_text),
                ranks=self._ranks,
                units=lambda encoder: list(encoder.blocks),
                tables=("token_embedding",),
                device=self._device,
                offload=self._offload,
            )
        beside = on_cpu and self._device.type != "cpu"
        return Component(
            "t5",
            lambda: build_text_encoder(config, dtype),
            self._source(checkpoint.open_text, fill.random_text),
            # A network that stays on the CPU while the others use a GPU needs no streaming.
            strategy="block" if beside else self._strategy,
            device=torch.device("cpu") if on_cpu else self._device,
            offload=self._offload,
            units=lambda encoder: list(encoder.blocks),
            stay=("token_embedding",),
        )

    def clip(self, dtype: torch.dtype) -> Component[ImageEncoder] | None:
        """The CLIP image tower; None where the task reads no images."""
        config = self._task.clip
        if config is None:
            return None
        return Component(
            "clip",
            lambda: build_image_encoder(config, dtype),
            self._source(checkpoint.open_clip, fill.random_clip),
            strategy=self._strategy,
            device=self._device,
            offload=self._offload,
            units=lambda encoder: list(encoder.blocks),
        )

    def vae(self, levers: Levers, *, encoder: bool) -> Component[WanVae]:
        """One half of the VAE, in levers.vae_dtype."""
        config, fused = self._task.vae, levers.fused_kernels
        dtype = DTYPES[levers.vae_dtype]

        def build() -> WanVae:
            return WanVae(config, encoder=encoder, decoder=not encoder, fused=fused)

        return Component(
            "vae",
            lambda: on_meta(build, dtype),
            self._source(checkpoint.open_vae, fill.random_vae),
            strategy=self._strategy,
            device=self._device,
            offload=self._offload,
        )

    def dit(
        self, levers: Levers, dtype: torch.dtype, weights_dtype: WeightsDtype = "precision"
    ) -> Component[WanDit]:
        """The diffusion transformer; `weights_dtype` is that of the linear layers in its blocks."""
        config, ranks = self._task.dit, self._ranks
        is_fp8 = weights_dtype == "fp8"

        def build() -> WanDit:
            dit = on_meta(lambda: WanDit(config, levers), dtype)
            if is_fp8:
                in_fp8(dit.execution_order(), levers)
            return dit if ranks is None else split_over(dit, ranks)

        as_stored = self._source(checkpoint.open_dit, fill.random_dit)

        def source() -> fill.Source:
            return Fp8Source(as_stored()) if is_fp8 else as_stored()

        if ranks is not None and ranks.layout.dit_fsdp:
            return Sharded(
                "dit",
                build,
                source,
                ranks=ranks,
                units=WanDit.execution_order,
                device=self._device,
                offload=self._offload,
            )
        return Component(
            "dit",
            build,
            source,
            strategy=self._strategy,
            device=self._device,
            offload=self._offload,
            units=WanDit.execution_order,
        )

    def _source(
        self, from_folder: Callable[[Task, Path], FileSource], random: Callable[[int], fill.Source]
    ) -> Callable[[], fill.Source]:
        task, folder, seed = self._task, self._folder, self._seed
        # All ranks of a host together keep no more of the files in memory than one rank would.
        limit = checkpoint.MAPPED_LIMIT_BYTES // (1 if self._ranks is None else self._ranks.size)

        def from_files(folder: Path) -> fill.Source:
            source = from_folder(task, folder)
            source.mapped_limit_bytes = limit
            return source

        return lambda: random(seed) if folder is None else from_files(folder)
