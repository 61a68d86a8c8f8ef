"""What is left of a range of addresses of which a part is given back."""

import pytest

from ray_memprof.allocator.ranges import parts_outside


@pytest.mark.parametrize(
    ("first", "last", "parts"),
    [
        (0, 10, [(10, 20)]),
        (0, 12, [(12, 20)]),
        (13, 15, [(10, 13), (15, 20)]),
        (15, 30, [(10, 15)]),
        (20, 30, [(10, 20)]),
        (10, 20, []),
        (0, 30, []),
    ],
)
def test_parts_outside(first: int, last: int, parts: list[tuple[int, int]]) -> None:
    assert parts_outside(10, 20, first, last) == parts
