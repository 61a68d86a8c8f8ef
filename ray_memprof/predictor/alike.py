"""Ranks of a layout that do the same work on tensors of the same sizes: only one of them has to be predicted.

alike(config)             # [[0], [1, 2], [3]]
"""

from ray_memprof.config.run_config import RunConfig
from ray_memprof.predictor.sizes import latent_shape, num_slabs
from wan.config import TASKS


def alike(config: RunConfig) -> list[list[int]]:
    """The ranks of `config`, those that are alike together, in the order of their first ranks.

    The first rank does what no other does, and the last one may have the smaller part of what cannot be split evenly.
    Between them, ranks are alike whose parts of the tokens and of the image are.
    """
    num_ranks = config.num_ranks
    if TASKS[config.model.task].dit.model_type != "t2v":
        # A picture or a video decides the shape of the latents, and with it who has the larger part.
        return [[rank] for rank in range(num_ranks)]
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank in range(num_ranks):
        key = (rank == 0, rank == num_ranks - 1, _num_tokens(config, rank), _width(config, rank))
        groups.setdefault(key, []).append(rank)
    return list(groups.values())


def _num_tokens(config: RunConfig, rank: int) -> int:
    """Tokens of a rank, as SplitTokens gives them."""
    _, frames, height, width = latent_shape(config)
    sizes = zip((frames, height, width), TASKS[config.model.task].dit.patch_size, strict=True)
    num_tokens = 1
    for length, patch in sizes:
        num_tokens *= length // patch
    num_ranks = config.parallel.ulysses * config.parallel.ring
    place = rank % num_ranks
    return (place + 1) * num_tokens // num_ranks - place * num_tokens // num_ranks


def _width(config: RunConfig, rank: int) -> tuple[int, ...]:
    """Columns of the latent image that a rank makes, in each round of the VAE; () where the first rank makes all."""
    if config.parallel.vae == "rank0":
        return ()
    from wan.parallel.vae import rounds

    _, _, height, width = latent_shape(config)
    shares = rounds(max(height, width), num_slabs(config), config.num_ranks)
    windows = (share[rank] for share in shares)
    return tuple(0 if window is None else window.stop - window.start for window in windows)
