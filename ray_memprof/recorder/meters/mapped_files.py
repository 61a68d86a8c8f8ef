"""Which tensors lie in mapped files: those that torch.load(mmap=True) and safetensors read from where they are.

    files = MappedFiles()
    replaced.put(torch.UntypedStorage, "from_file", files.hearing(torch.UntypedStorage.from_file))
    files.holds(storage)

Storages are cut out of a mapping, and the mapping ends with the last of them, which nobody is told of. So where a
storage lies in what once was one, the kernel's list of mappings is asked, and a mapping that is gone is forgotten.
"""

from collections.abc import Callable
from typing import Any

import torch


class MappedFiles:
    """Ranges of addresses at which torch has mapped files."""

    def __init__(self) -> None:
        self._ranges: list[range] = []

    def hearing(self, from_file: Callable[..., Any]) -> Any:
        """Return an UntypedStorage.from_file that notes where the file is."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            storage = from_file(*args, **kwargs)
            start = storage.data_ptr()
            self._ranges.append(range(start, start + storage.nbytes()))
            return storage

        return staticmethod(noted)

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage lies in a mapped file; 0.1 us as long as the program has mapped none."""
        if not self._ranges:
            return False
        start = storage.data_ptr()
        found = [one for one in self._ranges if start in one]
        if not found:
            return False
        if _is_file(start):
            return True
        self._ranges = [one for one in self._ranges if start not in one]
        return False


def _is_file(address: int) -> bool:
    """Whether a file is mapped at an address, as far as the kernel tells."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                fields = line.split(None, 5)
                start, _, end = fields[0].partition(b"-")
                if int(start, 16) <= address < int(end, 16):
                    return int(fields[4]) != 0  # the inode; anonymous memory has none
    except OSError:  # the program has no file descriptor left, say, and must not hear of it from here
        return True
    return False
