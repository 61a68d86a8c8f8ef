"""What the frames of a thread show from outside: whether the thread moves on, and whether it waits for other ranks.

    moves = Moves()
    moves.look(sys._current_frames().get(thread))       # how often it was found at another place than before

Pure, and cheap enough for every beat: some microseconds for a deep stack.
"""

from types import FrameType

_JOINING_FRAME = ("init_process_group", "distributed_c10d.py")
"""Function and file in which torch waits for all ranks."""
MEETING = "comm.init"
"""The span in which ranks wait for each other."""


class Moves:
    """Counts how often the thread was found at another place: this shows progress of scripts without spans too."""

    def __init__(self) -> None:
        self._place: tuple[object, ...] = ()
        self._num_moves = 0

    def look(self, frame: FrameType | None) -> int:
        """Look at the thread once more; returns the moves seen so far."""
        place: list[object] = []
        while frame is not None:
            place += [id(frame.f_code), frame.f_lasti]
            frame = frame.f_back
        if tuple(place) != self._place:
            self._place = tuple(place)
            self._num_moves += 1
        return self._num_moves


def is_meeting(frame: FrameType | None) -> bool:
    """Whether the thread waits for others in torch's init_process_group."""
    name, file = _JOINING_FRAME
    while frame is not None:
        if frame.f_code.co_name == name and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False
