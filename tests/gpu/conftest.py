"""What tests on a CUDA device share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def inference() -> Iterator[None]:
    """Nothing is recorded for backward: fused kernels run then, and only then."""
    with torch.no_grad():
        yield
