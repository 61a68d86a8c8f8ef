"""What an allocation is for, found from the span that made it.

| category | what is allocated in |
|---|---|
| weight | load.*, residency.onload and residency.shard: parameters on their way in |
| communication | comm.*: buffers of collectives and gathered shards |
| temporary | backward and optimizer: what has no owner there |
| workspace | warmup and device.init: what libraries keep for themselves (cuBLAS) |
| output | save, vae.decode, and what the decode stage itself makes |
| activation | anywhere else |

`cache`, what the VAE carries from one chunk to the next, depends on how long a tensor lives and not on the span that
allocates it: such tensors are recorded as activations of vae.chunk, and the question tensors/vae_cache.sql finds
those that outlive it.
"""

SCRIPT = "script"
"""The span around a whole script."""
STEP = "step"
"""The span of a step that a program names."""
_BY_NAME = {
    "residency.onload": "weight",
    "residency.shard": "weight",
    "warmup": "workspace",
    "device.init": "workspace",
    "decode": "output",
    "save": "output",
    "vae.decode": "output",
    "backward": "temporary",
    "optimizer": "temporary",
}
_BY_PREFIX = {"load.": "weight", "comm.": "communication"}
_OWN_STAGES = ("load.", "residency.")
_COMPONENTS = ("t5", "clip", "vae", "dit")
_BY_STAGE = {
    "encode.text": "t5",
    "encode.image": "clip",
    "encode.video": "vae",
    "denoise": "dit",
    "decode": "vae",
}

_STAGES = {component: stage for stage, component in _BY_STAGE.items() if component != "vae"}
_VAE_STAGES = {"encoder": "encode.video", "encode": "encode.video", "decoder": "decode", "decode": "decode"}


def category_of(name: str) -> str:
    """The category of what a span called `name` allocates itself."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    for prefix, category in _BY_PREFIX.items():
        if name.startswith(prefix):
            return category
    return "activation"


def component_of(name: str, attribute: str | None, inherited: str | None) -> str | None:
    """The network that a span called `name` works for.

    Args:
        name: of the span: load.t5, dit.block, residency.onload ...
        attribute: its `component`, where it has one.
        inherited: of the span around it.
    """
    if attribute is not None:
        return attribute
    head, _, tail = name.partition(".")
    if head == "load":
        return tail
    return head if head in _COMPONENTS else _BY_STAGE.get(name, inherited)


def stage_of(name: str, around: str | None, component: str | None, stage: str | None = None) -> str:
    """The stage that a span called `name` belongs to: the outermost span; in a script, the outermost inside it.

    A span "step" in a script is no stage: the outermost spans in it are. The macro is_stage says the same in SQL.

    Args:
        name: of the span.
        around: stage of the span around it, where there is one.
        component: attribute of the span, where it has one.
        stage: attribute of the span, where it has one.
    """
    if around is None:
        return stage or name
    if around != SCRIPT:
        return around
    # A step of a program has stages in it, and is none: the stage of the step is that of the script.
    if name == STEP:
        return SCRIPT
    # Loading a network, or moving it, is no part of what the network is for.
    return stage or (name if name.startswith(_OWN_STAGES) else component or name)


def stage_of_call(component: str, title: str) -> str:
    """The stage of an outermost call of a module in a program: for a network of Wan2.1 what that network is for.

    Args:
        component: of the module.
        title: its path from the component on: "vae.decoder".
    """
    if component == "vae":
        return _VAE_STAGES.get(title.split(".")[1] if "." in title else "", component)
    return _STAGES.get(component, component)
