"""Opcodes of numbers: read back as they were, and as short as those that pickle writes."""

import pickle

import pytest

from ray_memprof.formats.torch_snapshot.pickle_writer import integer

BOUNDS = [0, 2**8, 2**16, 2**31, 2**32, 2**63, 2**64, 2**127, 2**1000]


@pytest.mark.parametrize(
    "value", sorted({sign * one + by for one in BOUNDS for by in (-1, 0, 1) for sign in (1, -1)})
)
def test_a_number_is_as_pickle_writes_it(value: int) -> None:
    protocol, stop = b"\x80\x04", b"."
    assert pickle.loads(protocol + integer(value) + stop) == value
    expected = pickle.dumps(value, 4)
    # Longer pickles stand in a frame, which is not the writer's.
    if expected[2:3] != b"\x95":
        assert protocol + integer(value) + stop == expected
    else:
        assert expected.endswith(integer(value) + stop)
