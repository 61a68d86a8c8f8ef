"""A stage of a run on fake tensors, by itself and cut short: what it holds at least, and how long it takes.

    measured = probe(Probe(config=config, stage="denoise", gpu="RTX 4090"))      # in a process that does nothing else
    measured.floor_bytes, measured.seconds

wan's own code runs, as a prediction runs it, on the first rank, but for a few units only: blocks of the DiT in one
pass, latent frames of the VAE. The others are alike. So each of them takes the time of the last unit that is run, and
adds what it holds for good: a block its weights, a latent frame its features. floor_bytes adds these to the most of
tensors and of what is outside the allocator: the whole run has a moment with all of this, so its device used is never
less. How weights are read is left out of it, for that depends on where they come from.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from ray_memprof.config.run_config import RunConfig
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.sizes import latent_shape, num_slabs, vae_number_bytes
from wan.config import TASKS, Task, sides_of

if TYPE_CHECKING:
    import torch

    from ray_memprof.allocator.caching import Block
    from wan.networks.dit import WanDit
    from wan.pipeline import Conditions, Pipeline, Request

Stage = Literal["text", "denoise", "decode"]
STAGES: tuple[Stage, ...] = ("text", "denoise", "decode")
DEVICE = "cuda:0"
_NUM_LATENTS = 3
"""The VAE remembers two frames: from the third latent frame on, all are alike."""
_NUM_SLABS = 3
"""The first one is at the border of the image; those in the middle, which read most, are alike."""
_NUM_BLOCKS = 3
"""A streamed block waits for one that ran two blocks before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A stage of a configuration on a GPU model; data that can be sent to a process."""

    config: RunConfig
    stage: Stage
    gpu: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A stage of the first rank, with all of its units."""

    floor_bytes: int
    """A lower bound of the device used in the stage."""
    weights_bytes: int
    """A lower bound that is the same for all levers which move no weights: these, and what is outside the allocator."""
    used_bytes: int
    """An estimate of it: what the allocator keeps besides tensors is that of the units which were run."""
    resident_bytes: int
    """Weights that are on the device for the whole stage; where networks are not offloaded, also after it."""
    host_bytes: int
    """The most in host memory."""
    kept_host_bytes: int
    """In host memory after the stage."""
    seconds: float
    """Of the stage; of denoising, of a step."""
    load_seconds: float = 0.0
    """Of denoising, before the first step."""


class _Gauge(FakeDevice):
    """A device that remembers the most that it held since the last look."""

    floor = used_most = host_most = 0

    def look(self) -> None:
        """Begin anew."""
        self.floor = self.held()
        self.used_most, self.host_most = self.used, self.host_bytes

    def alloc(self, size: int) -> "Block":
        """As a FakeDevice."""
        block = super().alloc(size)
        self._note()
        return block

    def add_outside(self, size: int) -> None:
        """As a FakeDevice."""
        super().add_outside(size)
        self._note()

    def make_host(self, storage: "torch.UntypedStorage") -> None:
        """As a FakeDevice."""
        super().make_host(storage)
        self.host_most = max(self.host_most, self.host_bytes)

    def _note(self) -> None:
        self.floor = max(self.floor, self.held())
        self.used_most = max(self.used_most, self.used)

    def held(self) -> int:
        """Tensors, and what is outside the allocator."""
        return self.allocator.allocated + self.outside

    def end_ns(self) -> int:
        """When all that is queued is done."""
        self.synchronize()
        return self.now_ns


def probe(plan: Probe) -> Measured:
    """Run a stage in this process. Raises what wan raises for options that cannot work."""
    from ray_memprof.predictor.fake_rank import environment_of, rules_of
    from ray_memprof.predictor.gpu_profile import gpu_profile

    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # it is not read
    config = plan.config
    environment = environment_of(config, config.num_ranks)
    # How much is needed is asked, also where it is more than there is.
    endless = replace(gpu_profile(plan.gpu), total_bytes=2**50)
    device = _Gauge(endless, rules_of(environment))
    task = TASKS[config.model.task]
    short = _shortened(task, plan.stage)
    with _faked(device, config, environment, short) as pipeline:
        device.look()
        return _STAGES[plan.stage](pipeline, config, device, task)


@contextmanager
def _faked(
    device: FakeDevice, config: RunConfig, environment: dict[str, str], task: Task
) -> Iterator["Pipeline"]:
    """The pipeline of the first rank for a task, on a device and beside ranks that are not there."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ray_memprof.config.wan_keys import KEYS, wan_options
    from ray_memprof.predictor.fake_rank import FakeRank, faked
    from ray_memprof.predictor.operations import Operations
    from ray_memprof.workload.wan import start_device, warm_up
    from wan.generate import make_pipeline
    from wan.parallel.environment import Place
    from wan.parallel.group import joined

    num_ranks = config.num_ranks
    # Files hold all blocks, and the bound leaves out how weights are read.
    options = replace(wan_options(config), device=DEVICE, weights="random", ckpt_dir=None)
    with ExitStack() as stack:
        # The first rank writes what the others need to know: there are none.
        folder = Path(stack.enter_context(TemporaryDirectory()))
        plan = FakeRank(
            config=config, num_ranks=num_ranks, run_dir=folder, gpu="", begun_ns=0, environment=environment,
            shapes=folder / "shapes",
        )  # fmt: skip
        stack.enter_context(faked(device, plan))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Operations(device, mode))
        stack.enter_context(patch.dict(TASKS, {options.task: task}))
        stack.enter_context(torch.no_grad())
        start_device(DEVICE)
        stack.enter_context(joined(Place(rank=0, local_rank=0, num_ranks=num_ranks), torch.device(DEVICE)))
        warm_up(options)
        yield make_pipeline(options, num_ranks, names=KEYS)


def _shortened(task: Task, stage: Stage) -> Task:
    """The task with no more blocks than a stage needs: networks of other stages are built, and never loaded."""
    num_layers = _num_blocks(task) if stage == "denoise" else 1
    layers = tuple(layer for layer in task.dit.vace_layers if layer < num_layers)
    dit = replace(task.dit, num_layers=num_layers, vace_layers=layers)
    text = task.text if stage == "text" else replace(task.text, num_layers=1)
    return replace(task, dit=dit, text=text)


# ---- Stages ----------------------------------------------------------------------------------------------------------


def _text(pipeline: "Pipeline", config: RunConfig, device: _Gauge, task: Task) -> Measured:
    from wan.spans import listening

    heard = _Heard(device)
    began, before = device.end_ns(), device.allocator.allocated
    with listening(heard), patch.object(pipeline.text, "offload", False):
        states = pipeline.encode_prompts(_request(config))
    resident = device.allocator.allocated - before - sum(one.nbytes for one in states if one is not None)
    return Measured(
        floor_bytes=device.floor,
        weights_bytes=device.held(),
        used_bytes=max(heard.loaded_used, device.used_most),
        resident_bytes=max(0, resident),
        host_bytes=device.host_most,
        kept_host_bytes=device.host_bytes,
        seconds=(device.end_ns() - began) / 1e9,
    )


def _denoise(pipeline: "Pipeline", config: RunConfig, device: _Gauge, task: Task) -> Measured:
    """One pass of one step. The bound leaves out what the solver and the other pass keep: three or four latents."""
    import torch

    from wan.spans import listening

    dit = pipeline.task.dit
    is_guided = config.generation.sample_guide_scale != 1.0
    num_passes = 2 if is_guided and config.parallel.cfg == 1 else 1
    left, period = task.dit.num_layers - dit.num_layers, _period(task)
    heard = _Heard(device)
    text = pipeline.task.text
    states = torch.zeros(1, text.text_len, text.d_model, dtype=torch.bfloat16, device=DEVICE)
    began, before = device.end_ns(), device.allocator.allocated
    with listening(heard), patch.object(pipeline.dit, "offload", False):
        latents = pipeline.denoise(_request(config), {"cond": states}, _conditions(config, task))
    step_ns = device.end_ns() - heard.loaded_ns
    del latents
    # Not offloaded, the network is still there, and is entered without being loaded again.
    with patch.object(pipeline.dit, "offload", False), pipeline.dit.on_device() as network:
        block_bytes, block_host_bytes = _block_bytes(network, device, period)
    added, host_added = int(left * block_bytes), int(left * block_host_bytes)
    block_ns = (heard.ends_ns[-1] - heard.ends_ns[-1 - period]) / period
    return Measured(
        floor_bytes=device.floor + added,
        weights_bytes=device.held() + added,
        used_bytes=max(heard.loaded_used, device.used_most) + added,
        resident_bytes=device.allocator.allocated - before + added,
        host_bytes=device.host_most + host_added,
        kept_host_bytes=device.host_bytes + host_added,
        seconds=num_passes * (step_ns + left * block_ns) / 1e9,
        load_seconds=(heard.loaded_ns - began) * (1 + left / dit.num_layers) / 1e9,
    )


def _decode(pipeline: "Pipeline", config: RunConfig, device: _Gauge, task: Task) -> Measured:
    import torch

    from wan.spans import listening

    channels, num, height, width = latent_shape(config)
    cut = min(num, _NUM_LATENTS)
    latents = torch.zeros(channels, cut, height, width, device=DEVICE)
    heard = _Heard(device)
    began = device.end_ns()
    with listening(heard), _few_slabs() as num_slabs:
        video = pipeline.decode(latents)
    frame_bytes = 0 if video is None else video.nbytes // video.shape[1]
    more_ns = heard.mean_slab_ns(num - cut) * sum(num_slabs)
    added, frames_added = (num - cut) * _feature_bytes(config), 4 * (num - cut) * frame_bytes
    return Measured(
        floor_bytes=device.floor + added,
        weights_bytes=device.held(),
        used_bytes=max(heard.loaded_used, device.used_most) + added,
        resident_bytes=0,
        host_bytes=device.host_most + frames_added,
        kept_host_bytes=device.host_bytes + frames_added,
        seconds=(device.end_ns() - began + (num - cut) * heard.latent_ns + more_ns) / 1e9,
    )


@contextmanager
def _few_slabs() -> Iterator[list[int]]:
    """Run no more than _NUM_SLABS slabs; yields how many are left out, once it is known."""
    from wan.networks.vae import network, slabs
    from wan.parallel import vae

    left_out: list[int] = []

    def first(made: list[Any]) -> list[Any]:
        left_out.append(max(0, len(made) - _NUM_SLABS))
        return made[:_NUM_SLABS]

    split, rounds = slabs.split, vae.rounds
    with (
        patch.object(network, "split", lambda *given: first(split(*given))),
        patch.object(vae, "rounds", lambda *given: first(rounds(*given))),
    ):
        yield left_out


_STAGES = {"text": _text, "denoise": _denoise, "decode": _decode}


def _period(task: Task) -> int:
    """Blocks from one that reads the control branch to the next; 1: there is no such branch."""
    layers = task.dit.vace_layers
    return layers[1] - layers[0] if len(layers) > 1 else 1


def _num_blocks(task: Task) -> int:
    """Blocks that are run: whole periods, two at least."""
    period = _period(task)
    return min(task.dit.num_layers, period * max(2, -(-_NUM_BLOCKS // period)))


def _block_bytes(dit: "WanDit", device: FakeDevice, period: int) -> tuple[float, float]:
    """What a block more would hold for good, on the device and on the host: the weights of the last ones."""
    from torch.distributed.tensor import DTensor

    last = [*dit.blocks[-period:], *(dit.vace_blocks[-1:] if dit.config.vace_layers else ())]
    on_device: dict[int, int] = {}
    on_host = 0
    for parameter in (one for block in last for one in block.parameters()):
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        block = device.block_of(local.untyped_storage()) if local.is_cuda else None
        if block is not None:
            on_device[block.address] = block.size
        elif not local.is_cuda:
            on_host += local.nbytes
    return sum(on_device.values()) / period, on_host / period


def _feature_bytes(config: RunConfig) -> int:
    """What a latent frame more holds while the first rank makes its last slab: the features that it reads."""
    from wan.parallel.vae import rounds

    vae = TASKS[config.model.task].vae
    _, _, height, width = latent_shape(config)
    pixel_bytes = vae_number_bytes(config) * vae.base_dim * vae.dim_mult[-1]
    if config.num_ranks == 1 or config.parallel.vae == "rank0":
        return pixel_bytes * height * width
    last = rounds(max(height, width), num_slabs(config), config.num_ranks)[-1][0]
    return 0 if last is None else pixel_bytes * min(height, width) * (last.stop - last.start)


class _Heard:
    """Hears when the network is there, when blocks end, and how long the last latent frame of each slab takes."""

    def __init__(self, device: _Gauge) -> None:
        self._device, self._chunk_ns = device, 0
        self.loaded_ns = self.loaded_used = 0
        """When the network was loaded, and the most of the device that was used until then."""
        self.ends_ns: list[int] = []
        self.latent_ns = 0
        """Of a latent frame more, in all slabs that are run."""
        self._slab_ns = self._num_slabs = 0

    def enter(self, name: str, attributes: dict[str, int | str]) -> None:
        """A span begins."""
        if name == "vae.chunk":
            self._chunk_ns = -self._device.stream.free_ns
        elif name == "vae.slab":
            self._slab_ns -= self._device.stream.free_ns

    def exit(self, name: str, failed: bool) -> None:
        """A span ends."""
        now_ns = self._device.stream.free_ns
        if name == "residency.onload":
            self.loaded_ns, self.loaded_used = self._device.end_ns(), self._device.used_most
            self._device.look()
        elif name == "dit.block":
            self.ends_ns.append(now_ns)
        elif name == "dit.vace_block":  # it belongs to the block before
            self.ends_ns[-1] = now_ns
        elif name == "vae.chunk":
            self._chunk_ns += now_ns
        elif name == "vae.slab":
            self.latent_ns += self._chunk_ns
            self._slab_ns += now_ns
            self._num_slabs += 1

    def mean_slab_ns(self, num_latents: int) -> int:
        """Of a slab with so many latent frames more."""
        return (self._slab_ns + num_latents * self.latent_ns) // max(1, self._num_slabs)


def _request(config: RunConfig) -> "Request":
    from wan.pipeline import Request

    generation = config.generation
    assert generation.size is not None
    return Request(
        prompt=generation.prompt or "",
        negative_prompt=generation.negative_prompt,
        size=sides_of(generation.size),
        frame_num=generation.frame_num,
        solver=generation.sample_solver,
        steps=1,
        shift=generation.sample_shift,
        guide_scale=generation.sample_guide_scale,
    )


def _conditions(config: RunConfig, task: Task) -> "Conditions":
    """What the DiT is told of pictures and videos, as zeros."""
    import torch

    from wan.pipeline import Conditions

    shape = latent_shape(config)
    dit = task.dit
    if dit.has_image_context:
        latents = torch.zeros(dit.in_dim - dit.out_dim, *shape[1:], device=DEVICE)
        states = torch.zeros(dit.image_len, dit.image_dim, dtype=torch.float16, device=DEVICE)
        return Conditions(shape=shape, image_latents=latents, image_states=states)
    if dit.model_type == "vace":
        return Conditions(shape=shape, control=torch.zeros(dit.vace_in_dim, *shape[1:], device=DEVICE))
    return Conditions(shape=shape)
