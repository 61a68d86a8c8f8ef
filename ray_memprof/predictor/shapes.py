"""Shapes of tensors that only the first rank makes: it writes them into a file, where the other ranks wait for them.

    shapes = Shapes(folder / "shapes")
    shapes.append(torch.float32, (1, 512, 4096))       # in the process of the first rank
    shapes.take()                                      # in another one: waits for the next, or raises FirstRankEnded
    shapes.end()                                       # the first rank has ended

So all ranks of a run are predicted at the same time. A line for each tensor: its dtype and its sides.
"""

import time
from pathlib import Path

import torch

_END = "end\n"
_WAIT_S, _POLL_S = 600.0, 0.02
"""How long a rank waits for the first one, and how often it looks."""


class FirstRankEnded(Exception):
    """The first rank has sent all that it could: it has ended before this rank."""


class Shapes:
    """Those of one run.

    Args:
        path: of the file; the first rank makes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_taken = 0

    def append(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The first rank sends such a tensor."""
        self._write(" ".join((str(dtype).removeprefix("torch."), *map(str, shape))) + "\n")

    def end(self) -> None:
        """The first rank has ended."""
        self._write(_END)

    def _write(self, line: str) -> None:
        with self._path.open("a", encoding="ascii") as file:
            file.write(line)

    def take(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """The next one.

        Raises:
            FirstRankEnded: there is none, and none will come.
            TimeoutError: none has come for 10 minutes.
        """
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until:
            line = self._line()
            if line == _END:
                raise FirstRankEnded
            if line.endswith("\n"):
                self._num_taken += 1
                dtype, *sides = line.split()
                return getattr(torch, dtype), tuple(map(int, sides))
            time.sleep(_POLL_S)
        raise TimeoutError(
            f"rank 0 has not told the shape of what it sends for {_WAIT_S:.0f} s: {self._path}"
        )

    def _line(self) -> str:
        """The line of the next one; "" or part of a line: it is not written yet."""
        if not self._path.exists():
            return ""
        lines = self._path.read_text(encoding="ascii").splitlines(keepends=True)
        return lines[self._num_taken] if self._num_taken < len(lines) else ""
