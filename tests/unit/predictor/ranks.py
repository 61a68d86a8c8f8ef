"""A rank that is predicted, as a test sends it to another process."""

from dataclasses import replace
from unittest.mock import patch

from ray_memprof.predictor import fake_rank
from ray_memprof.predictor.fake_rank import FakeRank, PredictedRank, predict_rank
from ray_memprof.predictor.gpu_profile import gpu_profile


def predicted_on(plan: FakeRank, total_bytes: int | None) -> PredictedRank:
    """Predict a rank, on a device of this size if one is given."""
    if total_bytes is None:
        return predict_rank(plan)
    small = replace(gpu_profile(plan.gpu), total_bytes=total_bytes)
    with patch.object(fake_rank, "gpu_profile", lambda name: small):
        return predict_rank(plan)
