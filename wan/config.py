"""What a task is: the networks it needs, the sizes it takes and the values it defaults to. Data only.

    from wan.config import TASKS
    TASKS["t2v-14B"].dit.num_layers      # 40

The seven public tasks carry the published shapes; every model type also has a `-tiny` task of the same
structure, small enough for a test on a CPU. Source of the numbers: the config.json files and state dicts
of the public Wan2.1 checkpoints.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ModelType = Literal["t2v", "i2v", "flf2v", "vace"]
Solver = Literal["unipc", "dpm++"]
Method = Literal["local_qwen", "dashscope"]
"""Who extends a prompt."""
Language = Literal["zh", "en"]
"""The language of an extended prompt."""

MIN_SHIFT, MAX_SHIFT = 0.01, 1000.0
"""Beyond these limits, noise levels become equal to one another or to 0 in fp32; 3 to 16 are usual."""
MAX_GUIDE_SCALE = float.fromhex("0x1.fffffep+127")
"""The largest number of fp32, the type in which guidance is computed."""
LARGEST_SEED = 2**64 - 1
"""The largest seed that a torch.Generator takes."""
MAX_STEPS = 1000
"""The number of noise levels that the model was trained on: more steps would repeat some of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DitConfig:
    """Shapes of the diffusion transformer."""

    model_type: ModelType = "t2v"
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_len: int = 512
    text_dim: int = 4096
    freq_dim: int = 256
    image_dim: int = 1280
    """Width of the CLIP states that i2v and flf2v read."""
    image_len: int = 257
    """CLIP tokens in front of the text tokens (two images: 514)."""
    vace_layers: tuple[int, ...] = ()
    """Layers of the base model that receive the hint of a vace block."""
    vace_in_dim: int = 96
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def has_image_context(self) -> bool:
        """Whether cross-attention also reads CLIP states (i2v, flf2v)."""
        return self.model_type in ("i2v", "flf2v")


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """Shapes of the causal video VAE, and the statistics that normalise its latents."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    stride: tuple[int, int, int] = (4, 8, 8)
    """Pixels per latent in time, height and width; the first frame is a latent frame of its own."""
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Shapes of the UMT5 encoder."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    text_len: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Shapes of the CLIP image tower; the text tower in the official file is never loaded."""

    hidden_dim: int = 1280
    mlp_dim: int = 5120
    num_layers: int = 32
    num_heads: int = 16
    patch_size: int = 14
    image_size: int = 224
    embed_dim: int = 1024
    """Width of the joint space: the `head` in the file, which video generation does not use."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One value of --task: its networks and the defaults of its generation."""

    name: str
    repo: str
    """Folder name of the official checkpoint(s), for messages."""
    dit: DitConfig
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    clip: ClipConfig | None = None
    sizes: tuple[str, ...]
    """Accepted --size values, width*height, the default first. Tiny tasks also take multiples of 16."""
    frame_num: int = 81
    fps: int = 16
    sample_steps: int = 50
    sample_guide_scale: float = 5.0
    sample_shift: float = 5.0
    sample_shift_480p: float | None = None
    """Shift at 480P where it differs."""
    negative_prefix: str = ""
    """What the task puts in front of the common negative prompt."""

    @property
    def is_tiny(self) -> bool:
        """Whether this is a task for tests, without an official checkpoint."""
        return self.name.endswith("-tiny")

    def default_shift(self, size: str) -> float:
        """The timestep shift for `size` (width*height)."""
        if self.sample_shift_480p is not None and size in SIZES_480P:
            return self.sample_shift_480p
        return self.sample_shift

    def latent_shape(self, width: int, height: int, frame_num: int) -> tuple[int, int, int, int]:
        """[z_dim, T', H', W'] of a video in pixels; `frame_num` is 4n+1."""
        stride_t, stride_h, stride_w = self.vae.stride
        return (self.vae.z_dim, (frame_num - 1) // stride_t + 1, height // stride_h, width // stride_w)


def sides_of(size: str) -> tuple[int, int]:
    """Width and height in pixels of a size: "1280*720"."""
    width, height = size.split("*")
    return int(width), int(height)


SIZES_480P = ("832*480", "480*832")
SIZES_720P = ("1280*720", "720*1280")

# The list of keywords that the model was tuned to avoid: a constant of the release, kept in a file because it is not
# ASCII.
NEGATIVE_PROMPT = (Path(__file__).parent / "negative_prompt.txt").read_text(encoding="utf-8").strip()

_DIT_1_3B = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_DIT_14B = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_DIT_TINY = DitConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=4, text_dim=32, text_len=32, freq_dim=32)
_VAE_TINY = VaeConfig(base_dim=8)
_TEXT_TINY = TextConfig(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, text_len=32)
_CLIP_TINY = ClipConfig(
    hidden_dim=32, mlp_dim=64, num_layers=3, num_heads=4, patch_size=14, image_size=56, embed_dim=16
)
_CLIP = ClipConfig()


def _as_i2v(dit: DitConfig, clip: ClipConfig) -> DitConfig:
    return replace(dit, model_type="i2v", in_dim=36, image_dim=clip.hidden_dim, image_len=clip.num_tokens)


def _as_flf2v(dit: DitConfig, clip: ClipConfig) -> DitConfig:
    return replace(_as_i2v(dit, clip), model_type="flf2v", image_len=2 * clip.num_tokens)


def _as_vace(dit: DitConfig, every: int) -> DitConfig:
    return replace(dit, model_type="vace", vace_layers=tuple(range(0, dit.num_layers, every)))


def _tiny(name: str, dit: DitConfig, *, clip: ClipConfig | None = None, sizes: str = "64*48") -> Task:
    return Task(
        name=name, repo="(none: a task for tests)", dit=dit, vae=_VAE_TINY, text=_TEXT_TINY, clip=clip,
        sizes=(sizes,), frame_num=1 if name == "t2i-tiny" else 9, sample_steps=4,
    )  # fmt: skip


_ALL = (
    Task(name="t2v-1.3B", repo="Wan2.1-T2V-1.3B", dit=_DIT_1_3B, sizes=SIZES_480P),
    Task(name="t2v-14B", repo="Wan2.1-T2V-14B", dit=_DIT_14B, sizes=SIZES_720P + SIZES_480P),
    Task(
        name="t2i-14B", repo="Wan2.1-T2V-14B", dit=_DIT_14B, frame_num=1,
        sizes=(*SIZES_720P, *SIZES_480P, "1024*1024"),
    ),
    Task(
        name="i2v-14B", repo="Wan2.1-I2V-14B-480P or -720P", dit=_as_i2v(_DIT_14B, _CLIP), clip=_CLIP,
        sizes=SIZES_720P + SIZES_480P, sample_steps=40, sample_shift_480p=3.0,
        negative_prefix="\u955c\u5934\u6643\u52a8\uff0c",
    ),
    Task(
        name="flf2v-14B", repo="Wan2.1-FLF2V-14B-720P", dit=_as_flf2v(_DIT_14B, _CLIP), clip=_CLIP,
        sizes=SIZES_720P + SIZES_480P, sample_shift=16.0,
        negative_prefix="\u955c\u5934\u5207\u6362\uff0c\u955c\u5934\u6643\u52a8\uff0c",
    ),
    Task(
        name="vace-1.3B", repo="Wan2.1-VACE-1.3B", dit=_as_vace(_DIT_1_3B, every=2), sizes=SIZES_480P,
        sample_shift=16.0,
    ),
    Task(
        name="vace-14B", repo="Wan2.1-VACE-14B", dit=_as_vace(_DIT_14B, every=5),
        sizes=SIZES_720P + SIZES_480P, sample_shift=16.0,
    ),
    _tiny("t2v-tiny", _DIT_TINY),
    _tiny("t2i-tiny", _DIT_TINY),
    _tiny("i2v-tiny", _as_i2v(_DIT_TINY, _CLIP_TINY), clip=_CLIP_TINY),
    _tiny("flf2v-tiny", _as_flf2v(_DIT_TINY, _CLIP_TINY), clip=_CLIP_TINY),
    _tiny("vace-tiny", _as_vace(_DIT_TINY, every=2)),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
