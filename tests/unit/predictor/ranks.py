"""Ranks that are predicted in another process: it changes torch, and counts collectives."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from warm_processes import kept

from ray_memprof.config.load import from_mapping
from ray_memprof.predictor import fake_rank
from ray_memprof.predictor.fake_rank import FakeRank, PredictedRank, environment_of, predict_rank
from ray_memprof.predictor.gpu_profile import gpu_profile

EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def predicted_on(total_bytes: int | None, plan: FakeRank) -> PredictedRank:
    """Predict a rank, on a device of this size if one is given."""
    if total_bytes is None:
        return predict_rank(plan)
    small = replace(gpu_profile(plan.gpu), total_bytes=total_bytes)
    with patch.object(fake_rank, "gpu_profile", lambda name: small):
        return predict_rank(plan)


def predicted(
    folder: Path,
    *,
    rank: int = 0,
    total_bytes: int | None = None,
    replays: bool = True,
    begun_ns: int = 0,
    **sections: Any,
) -> PredictedRank:
    """Predict a rank of a tiny task; of several, the first one first."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    generation = {"size": "64*48", "frame_num": 9, "prompt": "a boat", **sections.pop("generation", {})}
    model = {"task": "t2v-tiny", "weights": "random", **sections.pop("model_config", {})}
    mapping = {"name": "x", "model_config": model, "generation": generation, **sections}
    config = from_mapping(mapping, source="x.yaml", folder=folder)
    plan = FakeRank(
        config=config,
        rank=rank,
        num_ranks=config.num_ranks,
        run_dir=folder,
        gpu="H200",
        begun_ns=begun_ns or time.time_ns(),
        environment=environment_of(config, config.num_ranks, {}),
        shapes=folder / "shapes",
        replays=replays,
    )
    return kept().call(partial(predicted_on, total_bytes), plan).result(timeout=100)
