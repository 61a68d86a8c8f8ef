"""Sizes are read by people: never 0.00 of anything that is there."""

import pytest

from ray_memprof.units import GIB, MIB, size_text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0.0 MiB"),
        (512 * 1024, "0.5 MiB"),
        (GIB // 4 - 1, "256.0 MiB"),
        (GIB // 4, "0.25 GiB"),
        (18_628_102_656, "17.35 GiB"),
        (-205_520_896, "-196.0 MiB"),
        (-2 * GIB, "-2.00 GiB"),
        (33 * MIB, "33.0 MiB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
