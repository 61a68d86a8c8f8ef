"""Whether the program of a rank gets on, and where it is, as seen from another thread of its process.

    pulse = Pulse(rank=0, num_ranks=4, thread=threading.get_ident())
    pulse.beat(recorder)               # Beat: `sequence` grows while the program makes progress
    pulse.where()                      # Whereabouts: the stack, and the collectives that it has joined

Cheap enough to be asked several times a second; the program's thread notices nothing of it.
"""

import dataclasses
import sys
import time
import traceback
from types import FrameType
from typing import TYPE_CHECKING

from ray_memprof.rank.messages import Whereabouts
from ray_memprof.rank.work import Work
from ray_memprof.recorder.collectives import joined
from ray_memprof.recorder.status import Beat
from ray_memprof.recorder.thread_watch import MEETING, Moves, is_meeting

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder


class Pulse:
    """Looks at one thread of this process; its methods are called from others.

    Args:
        rank: of this process.
        num_ranks: of the run.
        thread: ident of the thread that runs the program; 0: none does.
    """

    def __init__(self, rank: int, num_ranks: int, thread: int) -> None:
        self.thread = thread
        self._rank, self._num_ranks = rank, num_ranks
        self._moves = Moves()
        self._children, self._own = Work(), Work(cpu_s=time.process_time)

    def beat(self, recorder: "Recorder | None") -> Beat:
        """Where the program is.

        Args:
            recorder: of this process; None: it does not record yet.
        """
        frame = self._frame()
        moves = self._moves.look(frame)
        moves += self._children.look(moves)
        moves += self._own.look(moves) if self._is_alone() else self._own.num_found
        beat = first_beat(self._rank) if recorder is None else recorder.beat()
        meeting = is_meeting(frame) and MEETING not in beat.path
        path = f"{beat.path}/{MEETING}".lstrip("/") if meeting else beat.path
        return dataclasses.replace(beat, path=path, sequence=beat.sequence + moves)

    def where(self) -> Whereabouts:
        """The stack of the program's thread, and how many collectives of each group it has called."""
        frame = self._frame()
        if frame is None:
            return Whereabouts(stack="not running\n")
        return Whereabouts(stack="".join(traceback.format_stack(frame)), joined=joined())

    def _is_alone(self) -> bool:
        """Whether this rank has not joined the other ranks yet: there are others, but no process group."""
        torch_distributed = sys.modules.get("torch.distributed")
        is_one_of_many = self.thread != 0 and self._num_ranks > 1
        return is_one_of_many and not getattr(torch_distributed, "is_initialized", bool)()

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self.thread)


def first_beat(rank: int) -> Beat:
    """The beat of a rank of which nothing is known yet."""
    return Beat(
        rank=rank,
        sequence=0,
        path="",
        stage="",
        step=-1,
        num_steps=-1,
        allocated_bytes=0,
        reserved_bytes=0,
        device_used_bytes=0,
    )
