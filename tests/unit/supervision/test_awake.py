"""A clock that does not run while this process is stopped."""

from ray_memprof.supervision.awake import GAP_S, AwakeClock


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def test_never_read() -> None:
    assert AwakeClock(Clock()).woke_s() == float("inf")


def test_what_was_slept_is_left_out() -> None:
    clock = Clock()
    awake = AwakeClock(clock)
    read = []
    for passed in (0.0, 3.0, GAP_S, GAP_S + 1, 2.0, 400.0, 1.0):
        clock.now += passed
        read.append((awake() - 500.0, awake.woke_s()))

    never, awake_s = float("inf"), 3.0 + GAP_S
    assert read == [
        (0.0, never),
        (3.0, never),
        (awake_s, never),
        (awake_s, 0.0),
        (awake_s + 2.0, 2.0),
        (awake_s + 2.0, 0.0),
        (awake_s + 3.0, 1.0),
    ]
