"""What an allocation is for, found from the span that made it.

| category | what is allocated in |
|---|---|
| weight | load.* and residency.onload: parameters on their way in |
| communication | comm.*: buffers of collectives and gathered shards |
| workspace | warmup and device.init: what libraries keep for themselves (cuBLAS) |
| output | save, and what the decode stage itself makes |
| activation | anywhere else |

`cache`, what the VAE carries from one chunk to the next, depends on how long a tensor lives and not on the span that
allocates it: such tensors are recorded as activations of vae.chunk, and the question tensors/vae_cache.sql finds
those that outlive it.
"""

SCRIPT = "script"
"""The span around a whole script."""
_BY_NAME = {
    "residency.onload": "weight",
    "warmup": "workspace",
    "device.init": "workspace",
    "decode": "output",
    "save": "output",
}
_BY_PREFIX = {"load.": "weight", "comm.": "communication"}
_COMPONENTS = ("t5", "clip", "vae", "dit")
_BY_STAGE = {
    "encode.text": "t5",
    "encode.image": "clip",
    "encode.video": "vae",
    "denoise": "dit",
    "decode": "vae",
}


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


def stage_of(name: str, around: str | None, component: str | None) -> str:
    """The stage that a span called `name` belongs to: the outermost span, or in a script its outermost module.

    Args:
        name: of the span.
        around: stage of the span around it, where there is one.
        component: attribute of the span, where it has one.
    """
    if around is None:
        return name
    return (component or name) if around == SCRIPT else around
