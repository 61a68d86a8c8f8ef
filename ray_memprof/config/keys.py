"""The sections of a configuration: what each key means, its unit, its bounds and its default. Data only.

    from ray_memprof.config.keys import Parallel
    Parallel(ulysses=2, cfg=2).group_size      # 4

run_config.py joins the sections; rules about several keys are in rules.py. Values must have the right type in YAML and
are never converted: "4" is no number, and 1 is not true; only the arguments of a script may be any scalar. Paths are
relative to the working folder; script.path also to the file.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ray_memprof.store.level import Level
from ray_memprof.store.run_files import trouble_with_name
from wan.config import Language, Method, Solver
from wan.levers import AttentionKernel, LoadStrategy, Matmul, Precision, VaeDtype, WeightsDtype
from wan.parallel.layout import NUM_PASSES, Backend, VaeRanks

Weights = Literal["random", "checkpoint"]
Device = Literal["cuda", "cpu"]
Placement = Literal["pack", "strict_pack", "spread"]
Export = Literal["wandb", "mlflow", "tensorboard"]


def _usable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("must not hold a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("the home folder of this user is not known") from error


# In YAML a path is a string, and a tuple is a list. So these two are converted; the entries of a list are not.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_usable)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


def _usable_argument(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _as_yaml(value: object) -> object:
    """A scalar as YAML writes it; from a file it comes as the text that stands there (yaml_file.py)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Arguments = Annotated[
    tuple[Annotated[str, BeforeValidator(_as_yaml), AfterValidator(_usable_argument)], ...],
    Field(strict=False),
]
FilePaths = Annotated[tuple[FilePath, ...], Field(strict=False)]


def _name(text: str, *, is_part: bool = False) -> str:
    if trouble := trouble_with_name(text, is_part=is_part):
        raise ValueError(trouble)
    return text


def _module(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("must be the name of a module, such as pkg.train")
    return text


# The name becomes the name of a folder, and a column by which people filter.
Name = Annotated[str, AfterValidator(_name)]
ModuleName = Annotated[str, AfterValidator(_module)]
NamePart = Annotated[str, AfterValidator(partial(_name, is_part=True))]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# At most a year, since torch and Python's threads do not accept arbitrarily long timeouts.
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Script(Section):
    """A torch.distributed program, run as torchrun would run it: path or module, one of them."""

    path: FilePath | None = None
    """The Python file, or a folder that has a main program. A relative path starts at the working folder, or, if there
    is none of that name, at the folder of the YAML file."""
    module: ModuleName | None = None
    """The module, or package, as `python -m` runs it: the working folder is on sys.path."""
    args: Arguments = ()
    """Its arguments, sys.argv[1:]: text, numbers, true and false, each as it stands in the YAML; null is refused."""
    module_spans: Texts = ()
    """Patterns (fnmatch) over qualified module names, e.g. "blocks.*": each match is a span of its own."""
    components: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Names of components, by the class of a module, e.g. {MyTransformer: dit}. Without one a component has the name of
    the class of the outermost module; those of Wan2.1 are known."""
    ranges: Annotated[tuple[Literal["nvtx", "record_function"], ...], Field(strict=False)] = ()
    """Kinds of ranges in the program whose names become spans: nvtx, record_function."""

    @property
    def command(self) -> tuple[str, ...]:
        """The program and its arguments, as they stand behind `python`."""
        program = ("-m", self.module or "") if self.path is None else (str(self.path),)
        return (*program, *self.args)


def _weights(known: dict[str, Any]) -> Weights:
    return "random" if known.get("ckpt_dir") is None else "checkpoint"


class Model(Section):
    """What is loaded, and how."""

    task: str = "t2v-1.3B"
    """A key of wan.config.TASKS."""
    ckpt_dir: FilePath | None = None
    """Folder of the official checkpoint."""
    weights: Weights = Field(default_factory=_weights)
    """random: the same names, shapes and dtypes, but no files are read and the video shows nothing. Default: checkpoint
    if ckpt_dir is given, else random."""
    # Not wan.generate's default: with full, every rank of a node would hold a whole network in host memory.
    load_strategy: LoadStrategy = "block"
    """full: through host memory; block: straight to the device; stream: each block is on the device only in turn."""
    precision: Precision = "bf16"
    """dtype of the diffusion transformer."""
    weights_dtype: WeightsDtype = "precision"
    """dtype of the linear layers in its blocks. fp8: e4m3 with a scale per output, half the memory of bf16; inexact."""
    device: Device = "cuda"
    """Also for a script: it decides whether the ranks hold GPUs, and which allocator is recorded."""
    offload: bool = True
    """Free a network's device memory after its stage."""
    t5_cpu: bool = False
    """Run the text encoder on the CPU."""


class Generation(Section):
    """What is made. Where None is allowed, it means the task's default, which is filled in when the file is loaded."""

    size: str | None = None
    """width*height in pixels."""
    frame_num: int | None = None
    """Frames, 4n+1."""
    prompt: str | None = None
    negative_prompt: str | None = None
    """None: the published negative prompt."""
    image: FilePath | None = None
    """The picture to start from (i2v)."""
    first_frame: FilePath | None = None
    last_frame: FilePath | None = None
    """With first_frame, the ends of the video (flf2v)."""
    src_video: FilePath | None = None
    """The control video (vace)."""
    src_mask: FilePath | None = None
    """Mask: src_video changes where it is white (vace)."""
    src_ref_images: FilePaths = ()
    """Reference pictures (vace)."""
    sample_solver: Solver = "unipc"
    sample_steps: int | None = None
    """Denoise steps."""
    sample_shift: float | None = None
    """Shift of the noise schedule."""
    sample_guide_scale: float | None = None
    """Classifier-free guidance; 1 halves the work."""
    base_seed: int = -1
    """Seed of the first video. Below 0: a random seed is drawn when the file is loaded, so that all ranks share it."""
    use_prompt_extend: bool = False
    """Let a language model extend the prompt."""
    prompt_extend_method: Method = "local_qwen"
    prompt_extend_model: str | None = None
    """Folder, name on the hub, or model of the service; None: chosen by method and task."""
    prompt_extend_target_lang: Language = "zh"
    save_file: FilePath | None = None
    """Where rank 0 writes the video or image; None: nothing is saved."""


class Parallel(Section):
    """How the ranks share one video."""

    ulysses: Count = 1
    """Ranks that split the attention heads."""
    ring: Count = 1
    """Ranks that pass keys and values around."""
    cfg: Annotated[int, Field(ge=1, le=NUM_PASSES)] = 1
    """2: the conditional and the unconditional pass of guidance at the same time, each on half of the ranks. 1: one
    after the other on all ranks."""
    dit_fsdp: bool = False
    """Shard the diffusion transformer over all ranks."""
    t5_fsdp: bool = False
    """Shard the text encoder over all ranks."""
    vae: VaeRanks | None = None
    """rank0: rank 0 decodes; split: each rank decodes its columns. None: split with several ranks, else rank0."""
    backend: Backend = "native"
    """Which attention runs: native is this package's, xfuser that of xfuser."""

    @property
    def group_size(self) -> int:
        """Ranks that share one video: its tokens, and the passes of guidance."""
        return self.ulysses * self.ring * self.cfg


class Optimization(Section):
    """The memory levers (see wan/levers.py), and how many videos are made."""

    attention_slicing: bool = False
    """Compute attention for one group of heads after the other."""
    ffn_chunks: int = 0
    """Number of token chunks of the feed-forward; 0: chosen by size, 1: off."""
    rope_chunks: int = 16
    """Number of token chunks of the rotary embedding if no fused kernel runs; 1: off."""
    vae_slabs: int = 0
    """Number of slabs of columns or rows in which the VAE works; 0: chosen by size, 1: off."""
    vae_dtype: VaeDtype = "fp32"
    """dtype in which the VAE encodes and decodes. bf16: half of its memory, and less time; inexact."""
    fused_kernels: bool = True
    """Compute norms and rotary embedding in one kernel each (CUDA)."""
    matmul: Matmul = "precision"
    """fp8: multiply on the fp8 units of the GPU; for model_config.weights_dtype fp8. Saves time; inexact."""
    attention_kernel: AttentionKernel = "auto"
    """Who computes self-attention; auto: the fastest exact kernel that is installed and fits. fa3_fp8 is inexact."""
    gradient_checkpointing: bool = False
    """Has an effect only if autograd records, which it never does in this package's own runs."""
    batch_size: Count = 1
    """Number of videos, made one after the other with seeds base_seed, base_seed + 1, ..."""
    micro_batch_size: int = 1
    """Number of videos made at the same time; only 1 is supported."""
    parallel_degree: Count | None = None
    """Another name for ranks."""
    expandable_segments: bool = True
    """Let the CUDA allocator grow its segments, against fragmentation."""


class Profiler(Section):
    """torch.profiler's own schedule and switches, for logging.level torch_profiler."""

    wait: Annotated[int, Field(ge=0)] = 1
    """Denoise steps before the profiler starts."""
    warmup: Annotated[int, Field(ge=0)] = 1
    """Denoise steps that are traced but not kept."""
    active: Count = 3
    """Denoise steps whose trace is kept."""
    record_shapes: bool = False
    profile_memory: bool = True
    with_stack: bool = False


class Logging(Section):
    """What is recorded, how closely, and where it goes."""

    profile_memory: bool = True
    """False: nothing is recorded; the ranks are still watched."""
    level: Level = "event"
    """stage: peaks per span; event: every allocation; stack: every allocation with its Python stack; torch_profiler: as
    event, and torch.profiler's traces."""
    log_interval: Count = 10
    """Denoise steps between two lines, if the output is no terminal."""
    trace_path: FilePath | None = None
    """Folder of torch_profiler's traces; None: the run folder."""
    output_dir: FilePath = Path("profiler_logs")
    """Run folders are made below it: <output_dir>/<name>/<run_id>. Not given: that of RAY_MEMPROF_DIR, if set."""
    sample_interval_s: Annotated[Seconds, Field(ge=0.01)] = 0.1
    """Time between two samples of the device and the host; the model's thread waits 0.1 ms or less for each sample."""
    predict: bool | None = None
    """After the run, predict it and set both side by side (ray-memprof audit). None: if that takes less than 10 s."""
    profiler: Profiler = Field(default_factory=Profiler)
    export: Annotated[tuple[Export, ...], Field(strict=False)] = ()
    """Where the run is sent once it is complete: wandb, mlflow, tensorboard. The first two go where their own variables
    of the environment say, the last into the run folder. What fails is a warning."""
    ray_metrics: bool = False
    """Tell Ray's own metrics what each rank holds, for Prometheus and Grafana. Needs ray[default]."""


class Timeouts(Section):
    """The time limit of each wait, in seconds."""

    start_s: Seconds = 120.0
    """How long the run waits for GPUs that others hold."""
    init_s: Seconds = 300.0
    """How long each rank may take to answer and to join the others."""
    process_group_s: Seconds = 1800.0
    """How long one collective may take; torch.distributed's own limit."""
    stall_s: Seconds = 300.0
    """How long no rank may make progress before the run counts as hung."""
    grace_s: Seconds = 1.0
    """How long to wait for reports of the other ranks after the first failure, since they may show its cause."""
    node_grace_s: Seconds = 3.0
    """The same if a whole node may be gone, which Ray reports later."""
    stop_s: Seconds = 10.0
    """How long the processes of the ranks may take to end before they are killed."""
    collect_s: Seconds = 120.0
    """How long the ranks' files may take to arrive from another node."""
    export_s: Seconds = 120.0
    """How long one of logging.export may take; the run waits for it."""


class Ray(Section):
    """Where the ranks run."""

    address: str | None = None
    """None: a Ray of our own, which ends with the run; "auto" or "host:port": a Ray that runs already."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """How many GPUs our own Ray is told that it has; None: Ray counts them."""
    gpus_per_rank: Annotated[int, Field(ge=0)] = 1
    """Default: 0 if the device is the CPU and num_gpus is not given, else 1."""
    cpus_per_rank: Annotated[int, Field(ge=0)] = 1
    placement: Placement = "pack"
    """Ray's strategy for placing the ranks on nodes."""
    scratch_dir: FilePath | None = None
    """Where ranks write until their files have been collected. None: the run folder if the node has it, else a folder
    that the rank makes on its node."""
    timeouts: Timeouts = Field(default_factory=Timeouts)


class MatrixRun(Section):
    """One row of a matrix: what it changes, by full key."""

    name: NamePart
    """Appended to the configuration's own name."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Full key -> value, e.g. {optimization.attention_slicing: true}."""
