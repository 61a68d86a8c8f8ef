"""Columns of the table ranks that say what place in the layout a rank of wan has.

layout_columns(config, rank=3)        # {"fsdp": 3, "ulysses": 1, "ring": 1, "cfg": 0}
"""

from ray_memprof.config.run_config import RunConfig
from wan.parallel.layout import Layout


def layout_columns(config: RunConfig, rank: int) -> dict[str, int]:
    """The coordinates of a rank, and the number of its shard where weights are shared."""
    parallel = config.parallel
    layout = Layout(ranks=config.num_ranks, ulysses=parallel.ulysses, ring=parallel.ring, cfg=parallel.cfg)
    is_sharded = parallel.dit_fsdp or parallel.t5_fsdp
    return {"fsdp": rank if is_sharded else 0, **layout.coordinates(rank)._asdict()}
