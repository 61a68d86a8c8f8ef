"""How many steps are done and how many are left, and from these the time left."""

from collections.abc import Callable

from ray_memprof.recorder.status import Beat


class Pace:
    """How many steps are done and how many are left, and from these the time left.

    Args:
        num_videos: number of videos, which are made one after the other with the same number of steps each.
        clock: seconds, from any start.
    """

    def __init__(self, num_videos: int, clock: Callable[[], float]) -> None:
        self._num_videos, self._clock = num_videos, clock
        self._num_steps = self._video = 0
        self._step, self._between = -1, False
        self._began = (0.0, 0)
        self._seconds_per_step = 0.0

    def see(self, beat: Beat) -> None:
        """Take in where a rank is now; steps count only once their number is known, which is after the first step."""
        if beat.step < 0:
            self._between = self._step >= 0
            return
        if beat.num_steps <= 0 or (beat.step == self._step and not self._between):
            return
        now = self._clock()
        if beat.step <= self._step or self._step < 0:
            self._video += self._step >= 0
            # A step is seen late, by at most the time between two beats; in the mean of many steps that is little.
            self._began = (now, beat.step)
        else:
            since, first = self._began
            self._seconds_per_step = (now - since) / (beat.step - first)
        self._step, self._num_steps, self._between = beat.step, beat.num_steps, False

    @property
    def num_total(self) -> int:
        """All steps of the run; 0: not known."""
        return self._num_steps * self._num_videos

    @property
    def num_done(self) -> int:
        """Steps that are over."""
        return self._num_steps * self._video + max(self._step, 0) + self._between

    def text(self) -> str:
        """The pace and the time left, in words; empty until two steps were seen."""
        if not self._seconds_per_step:
            return ""
        left = _duration((self.num_total - self.num_done) * self._seconds_per_step)
        return f"{self._seconds_per_step:.1f} s a step, {left} left in the steps"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
