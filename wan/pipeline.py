"""The main path: prompt (and images or video) -> states -> latents -> video. Read `generate` first.

    pipeline = Pipeline(TASKS["t2v-1.3B"], ckpt_dir=Path("Wan2.1-T2V-1.3B"), device="cuda")
    video = pipeline.generate(Request(prompt="a red fox in the snow", size=(832, 480)))   # [3, 81, 480, 832], host

Each network is a Component of its own, so a stage holds what it needs and, with offload_model, nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wan.components import Components
from wan.config import LARGEST_SEED, MAX_GUIDE_SCALE, NEGATIVE_PROMPT, Solver, Task, sides_of
from wan.errors import InputError
from wan.finite import FirstNotFinite
from wan.inputs import conditioning
from wan.levers import Levers, LoadStrategy, Precision, WeightsDtype, check_dtypes
from wan.networks.attention_kernels import choose
from wan.networks.dit import WanDit
from wan.networks.dtypes import DTYPES
from wan.networks.image import encode_image
from wan.networks.linear import check_matmul
from wan.networks.text import encode_text
from wan.parallel import Layout
from wan.parallel import vae as split_vae
from wan.parallel.ranks import Ranks
from wan.sampler import Sampler
from wan.sampler import check as check_schedule
from wan.spans import span
from wan.weights.folder import refuse_wrong
from wan.weights.tokenizer import load_tokenizer

OnStep = Callable[[int, int], None]
Contexts = dict[str, Tensor]
"""States [1, text_len, d_model] of the prompts, by the pass that reads them: cond, and with guidance uncond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What one video is made from; None takes the task's default."""

    prompt: str
    negative_prompt: str | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    frame_num: int | None = None
    """4n+1."""
    solver: Solver = "unipc"
    steps: int | None = None
    shift: float | None = None
    guide_scale: float | None = None
    """1 runs no unconditional pass."""
    seed: int = 0
    image: Tensor | None = None
    """[3, H, W] in [-1, 1]: what the video starts from (i2v)."""
    first_frame: Tensor | None = None
    last_frame: Tensor | None = None
    """[3, H, W] in [-1, 1] (flf2v)."""
    src_video: Tensor | None = None
    """[3, F, H, W] in [-1, 1] (vace)."""
    src_mask: Tensor | None = None
    """[1, F, H, W] in [0, 1] (vace)."""
    src_ref_images: tuple[Tensor, ...] = ()
    """[3, H, W] in [-1, 1] each (vace)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What the DiT is told besides the text, and the shape of the latents it works on."""

    shape: tuple[int, ...]
    """[16, r + T', h, w]."""
    num_refs: int = 0
    """Leading latent frames that are reference images and are cut off before decoding."""
    image_latents: Tensor | None = None
    image_states: Tensor | None = None
    control: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """As keyword arguments of WanDit.forward, with a batch dimension."""
        named = {
            "image_latents": self.image_latents,
            "image_states": self.image_states,
            "control": self.control,
        }
        return {name: value.unsqueeze(0) for name, value in named.items() if value is not None}


class Pipeline:
    """One task on one device, or on the devices of several ranks that make one video together.

    Args:
        task: a value of wan.config.TASKS.
        ckpt_dir: an official checkpoint folder; None: random weights of the same names, shapes and dtypes.
        device: where the networks run.
        precision: storage and matrix products of the DiT, every parameter included; its time path, modulation,
            norm statistics and head are computed in fp32 whatever the storage. UMT5 runs in bf16 and CLIP in
            fp16 as published, and in fp32 when this is fp32; the VAE runs in levers.vae_dtype.
        weights_dtype: storage of the linear layers in the DiT's blocks; fp8 makes the result inexact, see linear.py.
        load_strategy: how weights get to the device, see residency.py.
        offload_model: give a network's device memory back after its stage.
        t5_cpu: run UMT5 on the CPU.
        levers: see levers.py.
        weights_seed: the seed of random weights.
        layout: how the ranks of the default process group divide the work (wan/parallel); None: there is one rank.
            Every rank makes a pipeline with the same arguments, except its device, and calls the same methods.
    """

    def __init__(
        self,
        task: Task,
        *,
        ckpt_dir: Path | None,
        device: torch.device | str,
        precision: Precision = "bf16",
        weights_dtype: WeightsDtype = "precision",
        load_strategy: LoadStrategy = "full",
        offload_model: bool = True,
        t5_cpu: bool = False,
        levers: Levers | None = None,
        weights_seed: int = 0,
        layout: Layout | None = None,
    ) -> None:
        self.task, self.device, self.levers = task, torch.device(device), levers or Levers()
        check_dtypes(precision, weights_dtype, self.levers.matmul)
        check_matmul(self.levers.matmul, self.device)
        self._ranks: Ranks | None = None
        if layout is not None and layout.ranks > 1:
            self._check_layout(layout)
            self._ranks = Ranks(layout, self.device)
        if self.levers.attention_kernel != "auto":
            choose(self.levers.attention_kernel, self.device, DTYPES[precision], task.dit.head_dim)
        if ckpt_dir is not None:
            refuse_wrong(task, ckpt_dir)
        self._tokenizer = load_tokenizer(ckpt_dir, task.text)
        reference = precision == "fp32"
        made = Components(
            task,
            ckpt_dir=ckpt_dir,
            device=self.device,
            strategy=load_strategy,
            offload=offload_model,
            seed=weights_seed,
            ranks=self._ranks,
        )
        self.text = made.text(torch.float32 if reference else torch.bfloat16, on_cpu=t5_cpu)
        self.clip = made.clip(torch.float32 if reference else torch.float16)
        self.vae_encoder = None if task.dit.model_type == "t2v" else made.vae(self.levers, encoder=True)
        self.vae_decoder = made.vae(self.levers, encoder=False)
        self.dit = made.dit(self.levers, DTYPES[precision], weights_dtype)
        # Before hours are spent, check that every file is there and fits. The DiT comes first, because it shows a
        # folder of another task.
        for component in (self.dit, self.text, self.clip, self.vae_encoder, self.vae_decoder):
            if component is not None:
                component.prepare()

    def generate(self, request: Request, on_step: OnStep | None = None) -> Tensor | None:
        """The video [3, F, H, W] fp32 in [-1, 1] on the host of the first rank; None on the others.

        `on_step(step, steps)` is called after each step. A warning names the first stage that makes values that are not
        finite.
        """
        check = FirstNotFinite(quiet=self._ranks is not None and self._ranks.rank > 0)
        latents = self.latents(request, on_step, check)
        with torch.no_grad():
            video = self.decode(latents)
        check("decode", video)
        return video

    def latents(
        self, request: Request, on_step: OnStep | None = None, check: FirstNotFinite | None = None
    ) -> Tensor:
        """What generate() decodes: [16, T', h, w] fp32, the same to the bit on every rank.

        Args:
            request: what the video is made from.
            on_step: called with the number of the step and that of all steps, after each step.
            check: told what each stage makes; None: nobody looks.

        Raises:
            InputError: a request that cannot work.
        """
        _refuse(request, self.task)
        if self._ranks is not None:
            self._check_layout(self._ranks.layout, self._guidance(request))
        check = check or FirstNotFinite(quiet=True)
        with torch.no_grad():
            positive, negative = self.encode_prompts(request)
            check("encode.text", positive, negative)
            contexts = self.own_contexts(positive, negative)
            del positive, negative
            conditions = self.condition(request)
            check("encode.image", conditions.image_states)
            check("encode.video", conditions.image_latents, conditions.control)
            latents = self.denoise(request, contexts, conditions, on_step)
            check("denoise", latents)
        # The leading frames that are reference images are no part of the video.
        return latents[:, conditions.num_refs :]

    def encode_prompts(self, request: Request) -> tuple[Tensor, Tensor | None]:
        """States [1, text_len, d_model] of the prompt and, where guidance uses it, of the negative prompt."""
        negative = request.negative_prompt
        if negative is None:
            negative = self.task.negative_prefix + NEGATIVE_PROMPT
        prompts = [request.prompt, negative] if self._guidance(request) != 1.0 else [request.prompt]

        def encode() -> Tensor:
            with self.text.on_device() as encoder:
                return encode_text(encoder, self._tokenizer, prompts, self.device)

        with span("encode.text"):
            shared = self._ranks is not None and self._ranks.layout.t5_fsdp
            states = encode() if shared else self._once(encode)
        return states[:1], states[1:] if len(prompts) > 1 else None

    def own_contexts(self, positive: Tensor, negative: Tensor | None) -> Contexts:
        """Those of the passes that this rank runs: of one pass, where each has ranks of its own."""
        both = {"cond": positive} if negative is None else {"cond": positive, "uncond": negative}
        if self._ranks is None or self._ranks.layout.cfg == 1:
            return both
        branch = list(both)[self._ranks.layout.coordinates(self._ranks.rank).cfg]
        # A copy, so that the states of the other prompt are freed: both are parts of one tensor.
        return {branch: both[branch].clone()}

    def condition(self, request: Request) -> Conditions:
        """Image, frames or control video as the DiT reads them."""
        width, height = request.size or sides_of(self.task.sizes[0])
        frame_num = self.task.frame_num if request.frame_num is None else request.frame_num
        kind = self.task.dit.model_type
        if kind == "t2v":
            return Conditions(shape=self.task.latent_shape(width, height, frame_num))
        if kind == "vace":
            return self._condition_on_video(request, (height, width), frame_num)
        return self._condition_on_images(request, width * height, frame_num)

    def _condition_on_images(self, request: Request, max_area: int, frame_num: int) -> Conditions:
        first = request.image if self.task.dit.model_type == "i2v" else request.first_frame
        assert first is not None
        size = conditioning.i2v_size(first.shape[1], first.shape[2], max_area)
        images = [first]
        if self.task.dit.model_type == "flf2v":
            assert request.last_frame is not None
            images.append(conditioning.fit_last_frame(request.last_frame, first))
        with span("encode.image"):
            states = self._once(lambda: self._encode_images(images))

        def latents_of(encode: conditioning.Encode) -> Tensor:
            if len(images) == 1:
                return conditioning.i2v_latents(first, frame_num, size, encode)
            return conditioning.flf2v_latents(first, images[1], frame_num, size, encode)

        return Conditions(
            shape=self.task.latent_shape(size[1], size[0], frame_num),
            image_latents=self._with_encoder(latents_of),
            image_states=states,
        )

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        assert self.clip is not None and self.task.clip is not None
        with self.clip.on_device() as clip:
            # One after the other: the two images of flf2v may differ in size.
            return torch.cat([encode_image(clip, image[None], self.task.clip)[0] for image in images])

    def _condition_on_video(self, request: Request, size: tuple[int, int], frame_num: int) -> Conditions:
        given = conditioning.vace_inputs(
            request.src_video, request.src_mask, request.src_ref_images, size=size, frame_num=frame_num
        )
        control = self._with_encoder(lambda encode: conditioning.vace_latents(given, encode))
        shape = (self.task.vae.z_dim, *control.shape[1:])
        return Conditions(shape=shape, num_refs=len(given.refs), control=control)

    def _with_encoder(self, make: Callable[[conditioning.Encode], Tensor]) -> Tensor:
        """What `make` builds from encoded videos, on every rank: the ranks encode together, or the first one alone."""
        component, ranks, slabs = self.vae_encoder, self._ranks, self.levers.vae_slabs
        assert component is not None

        def alone() -> Tensor:
            with component.on_device() as vae:
                return make(lambda video: vae.encode(video, slabs=slabs))

        with span("encode.video"):
            if ranks is None or ranks.layout.vae == "rank0":
                return self._once(alone)
            with component.on_device() as vae:
                return make(lambda video: split_vae.encode(vae, video, ranks, slabs))

    def _once(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns, on every rank; only the first rank calls it."""
        return make() if self._ranks is None else self._ranks.once(make)

    def denoise(
        self,
        request: Request,
        contexts: Contexts,
        conditions: Conditions,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Noise to latents [16, r + T', h, w] fp32, guided by the prompts; the same to the bit on every rank."""
        steps, shift = _schedule(request, self.task)
        sampler = Sampler(request.solver, steps, shift, self.device)
        generator = torch.Generator(self.device).manual_seed(request.seed)
        latents = torch.randn(conditions.shape, generator=generator, device=self.device)
        inputs, guidance = conditions.inputs(), self._guidance(request)
        with self.dit.on_device() as dit:
            for step in range(steps):
                with span("denoise", step=step):
                    time = sampler.timesteps[step : step + 1]
                    velocity = _guided(dit, latents, time, contexts, guidance, inputs)
                    latents = sampler.step(velocity, step, latents)
                if on_step is not None:
                    on_step(step + 1, steps)
        return latents

    def decode(self, latents: Tensor) -> Tensor | None:
        """Latents [16, T', h, w] to a video [3, F, H, W] fp32 in [-1, 1] on the first rank's host; else None."""
        ranks, slabs = self._ranks, self.levers.vae_slabs
        with span("decode"):
            if ranks is not None and ranks.layout.vae == "split":
                with self.vae_decoder.on_device() as vae:
                    return split_vae.decode(vae, latents, ranks, slabs)
            if ranks is not None and ranks.rank:
                return None
            with self.vae_decoder.on_device() as vae:
                return vae.decode(latents, slabs=slabs)

    def _check_layout(self, layout: Layout, guide_scale: float | None = None) -> None:
        layout.check(self.task.name, self.task.dit.num_heads, guide_scale=guide_scale)

    def _guidance(self, request: Request) -> float:
        return self.task.sample_guide_scale if request.guide_scale is None else request.guide_scale


def _guided(
    dit: WanDit,
    latents: Tensor,
    time: Tensor,
    contexts: Contexts,
    guidance: float,
    inputs: dict[str, Tensor],
) -> Tensor:
    """Classifier-free guidance: the passes of this rank one after the other, so that one's activations exist at a time.

    Where each pass has ranks of its own, the one forward pass of a rank brings the velocities of both (apply.py).
    """
    velocities: list[Tensor] = []
    for branch, context in contexts.items():
        with span("dit.forward", branch=branch):
            velocities += dit(latents.unsqueeze(0), time, context, **inputs).unbind()
    if len(velocities) == 1:
        return velocities[0]
    velocity, base = velocities
    return base + guidance * (velocity - base)


def _schedule(request: Request, task: Task) -> tuple[int, float]:
    """Steps and shift."""
    width, height = request.size or sides_of(task.sizes[0])
    default = task.default_shift(f"{width}*{height}")
    steps = task.sample_steps if request.steps is None else request.steps
    return steps, default if request.shift is None else request.shift


def _refuse(request: Request, task: Task) -> None:
    """InputError for a request that cannot work; the command line says the same in terms of its flags."""
    frame_num, size = request.frame_num, request.size
    if frame_num is not None and (frame_num < 1 or frame_num % 4 != 1):
        raise InputError(f"frame_num {frame_num} is not 4n+1", hint="use 81, or 1 for an image")
    if size is not None and (min(size) < 16 or size[0] % 16 or size[1] % 16):
        raise InputError(f"size {size[0]}x{size[1]}: sides must be multiples of 16", hint="use (832, 480)")
    check_schedule(request.solver, *_schedule(request, task))
    if not 0 <= request.seed <= LARGEST_SEED:
        raise InputError(
            f"seed {request.seed}: must be from 0 to {LARGEST_SEED}", hint="any number in that range will do"
        )
    if not abs(request.guide_scale or 0) <= MAX_GUIDE_SCALE:
        raise InputError(
            f"guide_scale {request.guide_scale} is no finite number in fp32",
            hint="5 is a usual value, 1 is none",
        )
    # Before the ranks do different work: later only the first one would find it, while the others wait for its latents.
    if task.dit.model_type == "flf2v" and frame_num == 1:
        raise InputError(f"frame_num 1: {task.name} goes from a first to a last frame", hint="use at least 5")
    needed = {"i2v": ("image",), "flf2v": ("first_frame", "last_frame")}.get(task.dit.model_type, ())
    for name in needed:
        if getattr(request, name) is None:
            raise InputError(
                f"{name} is missing: {task.name} starts from it", hint=f"give Request({name}=...)"
            )
