"""What a kernel reads and writes, from its source; the kernels here are never run."""

from typing import Any

from ray_memprof.predictor.kernel_source import passes

tl: Any = None


def add_in_place(x, y, out, scales, num, block):  # type: ignore[no-untyped-def] # as Triton's are
    at = x + tl.program_id(0) * block
    further = at + num
    value = tl.load(further, mask=num) + tl.load(y + num)
    tl.store(further, value)
    if out:
        tl.store(out + num, helper(value, scales))


def helper(value, scales):  # type: ignore[no-untyped-def]
    return value


def test_a_pointer_is_followed_through_names() -> None:
    x, y, out, scales, *_ = passes(add_in_place)
    assert (x, y, out, scales) == ({"load", "store"}, {"load"}, {"store"}, set())


def test_there_is_an_entry_for_each_parameter() -> None:
    assert len(passes(add_in_place)) == 6
    assert passes(helper) == [set(), set()]
