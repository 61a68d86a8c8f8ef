"""The sections of a configuration: what each key means, its unit, its bounds and its default. Data only.

    from ray_memprof.config.keys import Parallel
    Parallel(ulysses=2, ring=2).group_size     # 4

run_config.py puts them together; rules that reach across keys are in rules.py. Values are taken as YAML gives
them, never converted: "4" is no number, 1 is no switch. Paths are relative to the working folder, not to the file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ray_memprof.store.run_files import LATEST_LINK, MOST_NAME_LETTERS, NAME_PATTERN
from wan.config import Language, Method, Solver
from wan.levers import LoadStrategy, Precision

Weights = Literal["random", "checkpoint"]
Device = Literal["cuda", "cpu"]
VaePlace = Literal["rank0", "split"]
Backend = Literal["native", "xfuser"]
Level = Literal["stage", "event", "stack", "torch_profiler"]
Placement = Literal["pack", "strict_pack", "spread"]


def _usable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("must not hold a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("whose home folder that is, is not known") from error


# Strings and lists are what YAML has for a path and a tuple; what a list holds is still taken as it is.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_usable)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
FilePaths = Annotated[tuple[FilePath, ...], Field(strict=False)]


def _free(name: str) -> str:
    if name == LATEST_LINK:
        raise ValueError("stands for the newest run wherever a run is asked for; take another name")
    return name


# A name becomes a folder, and a column that people filter by.
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", max_length=MOST_NAME_LETTERS), AfterValidator(_free)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# Up to a year: what torch and the threads of Python take for a wait ends there, too.
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Script(Section):
    """A torch.distributed program, run the way torchrun would."""

    path: FilePath
    """The Python file."""
    args: Texts = ()
    """What it finds in sys.argv[1:]."""
    module_spans: Texts = ()
    """Patterns (fnmatch) over qualified module names, e.g. "blocks.*": each match is a span of its own."""


def _weights(known: dict[str, Any]) -> Weights:
    return "random" if known.get("ckpt_dir") is None else "checkpoint"


class Model(Section):
    """What is loaded, and how."""

    task: str = "t2v-1.3B"
    """A key of wan.config.TASKS."""
    ckpt_dir: FilePath | None = None
    """Folder of the official checkpoint."""
    weights: Weights = Field(default_factory=_weights)
    """random: same names, shapes and dtypes, no files, no picture. Default: checkpoint where ckpt_dir is given."""
    # Not wan.generate's default: with full, every rank of a node would hold a whole network in host memory.
    load_strategy: LoadStrategy = "block"
    """full: through host memory; block: straight to the device; stream: blocks visit the device in turn."""
    precision: Precision = "bf16"
    """dtype of the diffusion transformer."""
    device: Device = "cuda"
    """Also for a script: whether its ranks hold GPUs, and whose allocator is recorded."""
    offload: bool = True
    """Give a network's device memory back after its stage."""
    t5_cpu: bool = False
    """Run the text encoder on the CPU."""


class Generation(Section):
    """What is made. None: the task's default, filled in when the file is loaded."""

    size: str | None = None
    """width*height in pixels."""
    frame_num: int | None = None
    """Frames, 4n+1."""
    prompt: str | None = None
    negative_prompt: str | None = None
    """None: the published one."""
    image: FilePath | None = None
    """The picture to start from (i2v)."""
    first_frame: FilePath | None = None
    last_frame: FilePath | None = None
    """With first_frame, the ends of the video (flf2v)."""
    src_video: FilePath | None = None
    """The control video (vace)."""
    src_mask: FilePath | None = None
    """Where src_video is to change: white (vace)."""
    src_ref_images: FilePaths = ()
    """Reference pictures (vace)."""
    sample_solver: Solver = "unipc"
    sample_steps: int | None = None
    """Denoise steps."""
    sample_shift: float | None = None
    """Of the noise schedule."""
    sample_guide_scale: float | None = None
    """Classifier-free guidance; 1 halves the work."""
    base_seed: int = -1
    """Of the first video. Below 0: drawn when the file is loaded, so that all ranks share it."""
    use_prompt_extend: bool = False
    """Let a language model write out the prompt."""
    prompt_extend_method: Method = "local_qwen"
    prompt_extend_model: str | None = None
    """Folder, hub name or service model; None: by method and task."""
    prompt_extend_target_lang: Language = "zh"
    save_file: FilePath | None = None
    """Where rank 0 writes the video or image; None: nothing is saved."""


class Parallel(Section):
    """How the ranks share one video."""

    ulysses: Count = 1
    """Ranks that split the attention heads."""
    ring: Count = 1
    """Ranks that pass keys and values around."""
    dit_fsdp: bool = False
    """Shard the diffusion transformer over all ranks."""
    t5_fsdp: bool = False
    """Shard the text encoder over all ranks."""
    vae: VaePlace | None = None
    """rank0: one rank decodes; split: each decodes its columns. None: split where there are several ranks."""
    backend: Backend = "native"
    """Whose attention runs: this package's or xfuser's."""

    @property
    def group_size(self) -> int:
        """Ranks that share the tokens of one video."""
        return self.ulysses * self.ring


class Optimization(Section):
    """The memory levers (see wan/levers.py), and how much is asked for at once."""

    attention_slicing: bool = False
    """Attend by groups of heads."""
    ffn_chunks: int = 0
    """Token chunks of the feed-forward; 0: by size, 1: off."""
    rope_chunks: int = 16
    """Token chunks of the rotary embedding where no fused kernel runs; 1: off."""
    vae_slabs: int = 0
    """Slabs of columns or rows in which the VAE works; 0: by size, 1: off."""
    fused_kernels: bool = True
    """Norms and rotary embedding in one pass each (CUDA)."""
    gradient_checkpointing: bool = False
    """Only where autograd records: never in this package's own runs."""
    batch_size: Count = 1
    """Videos, made one after the other with seeds base_seed, base_seed + 1, ..."""
    micro_batch_size: int = 1
    """Videos at once; only 1 exists."""
    parallel_degree: Count | None = None
    """Another name for ranks."""
    expandable_segments: bool = True
    """Let the CUDA allocator grow its segments, against fragmentation."""


class Profiler(Section):
    """torch.profiler's own schedule and switches, for logging.level torch_profiler."""

    wait: Annotated[int, Field(ge=0)] = 1
    """Denoise steps before it wakes."""
    warmup: Annotated[int, Field(ge=0)] = 1
    """Denoise steps traced and thrown away."""
    active: Count = 3
    """Denoise steps that are kept."""
    record_shapes: bool = False
    profile_memory: bool = True
    with_stack: bool = False


class Logging(Section):
    """What is recorded, how closely, and where it goes."""

    profile_memory: bool = True
    """False: nothing is recorded; the ranks are still watched."""
    level: Level = "event"
    """stage: peaks per span; event: every allocation; stack: with its Python stack; torch_profiler: its traces too."""
    log_interval: Count = 10
    """Denoise steps between two lines where the output is no terminal."""
    trace_path: FilePath | None = None
    """Folder of torch_profiler's traces; None: the run folder."""
    output_dir: FilePath = Path("profiler_logs")
    """Run folders are made below it: <output_dir>/<name>/<run_id>."""
    sample_interval_s: Annotated[Seconds, Field(ge=0.01)] = 0.1
    """Between two looks at the device and the host; a look takes 0.1 ms or less, and the model's thread waits."""
    profiler: Profiler = Field(default_factory=Profiler)


class Timeouts(Section):
    """How long each wait may take, in seconds."""

    start_s: Seconds = 120.0
    """For GPUs that others hold."""
    init_s: Seconds = 300.0
    """For every rank to answer and to meet the others."""
    process_group_s: Seconds = 1800.0
    """For one collective: torch.distributed's own limit."""
    stall_s: Seconds = 300.0
    """For a rank to get on, before the run counts as hung."""
    grace_s: Seconds = 1.0
    """After the first failure, for the others to show whose fault it was."""
    node_grace_s: Seconds = 3.0
    """The same where a whole node may be gone, which Ray tells later."""
    stop_s: Seconds = 10.0
    """For ranks to close their files before they are killed."""
    collect_s: Seconds = 120.0
    """For the ranks' files to arrive."""


class Ray(Section):
    """Where the ranks run."""

    address: str | None = None
    """None: a Ray of our own, gone with the run; "auto" or "host:port": one that runs already."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """What our own Ray is told it has; None: what it finds."""
    gpus_per_rank: Annotated[int, Field(ge=0)] = 1
    """1, or 0 where the device is the CPU, unless num_gpus or this key is given."""
    cpus_per_rank: Annotated[int, Field(ge=0)] = 1
    placement: Placement = "pack"
    """Of the ranks over the nodes, in Ray's words."""
    scratch_dir: FilePath | None = None
    """Where ranks write before their files are collected, and removed there; None: the run folder, where it is seen."""
    timeouts: Timeouts = Field(default_factory=Timeouts)


class MatrixRun(Section):
    """One row of a matrix: what it changes, by full key."""

    name: Name
    """Put behind the configuration's own name."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Full key -> value, e.g. {optimization.attention_slicing: true}."""
