"""A connection between a rank and the process of its script, over a pair of sockets: messages are mappings, as JSON.

    mine, theirs = pair()
    mine.send({"ask": "beat"})
    theirs.receive(wait_s=0.8)          # {"ask": "beat"}; None: nothing came in time

JSON, because a program may give any class to an error or a name: pickle would need that class at the other end, too.
"""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

_PIECE_BYTES = 65_536


class Channel:
    """One end; to be used by one thread at a time.

    Args:
        end: a connected socket, which the channel owns from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._read = b""

    @classmethod
    def of(cls, descriptor: int) -> "Channel":
        """The end that this process has inherited under a file descriptor; its own children do not inherit it."""
        end = socket.socket(fileno=descriptor)
        end.set_inheritable(False)
        return cls(end)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; raises OSError if nobody is there to read it."""
        self._socket.settimeout(None)
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, wait_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None: it did not come in time.

        Args:
            wait_s: how long to wait; None: until one comes.

        Raises:
            EOFError: the other end is closed, or this one was shut.
        """
        until = None if wait_s is None else time.monotonic() + wait_s
        while b"\n" not in self._read:
            left_s = None if until is None else until - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                piece = self._socket.recv(_PIECE_BYTES)
            except TimeoutError:
                return None
            except OSError as error:
                raise EOFError(str(error)) from error
            if not piece:
                raise EOFError("the other end is closed")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def shut(self) -> None:
        """End a receive() that waits on another thread; messages that have come can still be received."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:  # it is closed already
            return

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """Both ends of a new connection."""
    one, other = socket.socketpair()
    return Channel(one), Channel(other)
