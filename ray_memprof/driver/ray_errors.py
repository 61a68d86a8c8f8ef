"""What Ray writes about the end of a process, cut to one line: Ray's own texts are pages long and say little.

    exit_detail(str(error))       # "Worker exits with an exit code 17", or "" where Ray knows no cause

Pure. The patterns match the texts of Ray 2.60; if another release writes other texts, the line says less, but nothing
fails.
"""

import re

# Ray 2.60 when host memory is full: "... was 14.10GB used / 15.00GB limit (0.94) ...", then a table of the largest
# processes.
_HOST_MEMORY = re.compile(r"([\d.]+ ?[KMGT]?i?B)(?: used)? / ([\d.]+ ?[KMGT]?i?B)")
_LARGEST = re.compile(r"PID\s+MEM\(GB\)\s+COMMAND\n(\d+)\s+([\d.]+)\s+([^\n]+)")
_LINE = 300
"""Longest text, in characters, that is kept of an error of Ray."""
_EXIT_DETAIL = re.compile(r"exit detail: (.+?)(?: Some common causes|\. |$)", re.IGNORECASE | re.DOTALL)
# Ray writes this about every process that ends suddenly, whatever the cause.
_NO_CAUSE = "connection error code 2"
_NODE_DIED = re.compile(r"\bnode\b.{0,80}\b(died|dead|terminated|failed)\b", re.IGNORECASE)


def host_memory(text: str) -> str:
    """What Ray says about full host memory, in one line: how much is in use, and which process uses most."""
    held, largest = _HOST_MEMORY.search(text), _LARGEST.search(text)
    detail = f"{held.group(1)} of {held.group(2)} in use" if held else text.strip().partition("\n")[0]
    if largest is None:
        return detail
    pid, size, command = largest.groups()
    return f"{detail}, most by {command.strip()} (pid {pid}): {size}GB"


def exit_detail(text: str) -> str:
    """What Ray knows about the end of a process, in one line; "" if Ray knows no cause."""
    found = _EXIT_DETAIL.search(text)
    detail = " ".join(found.group(1).split()) if found else ""
    return "" if _NO_CAUSE in detail else detail


def tells_of_node(text: str) -> bool:
    """Whether Ray names the loss of the node as the cause of the end of a process."""
    return _NODE_DIED.search(text) is not None


def in_one_line(error: BaseException) -> str:
    """The whole text of an error as one line, cut to _LINE characters: Ray spreads one sentence over several lines.

    If the text quotes a traceback, only its last line is kept of it, which says what happened.
    """
    text, quoted, trace = str(error).strip().partition("Traceback (most recent call last):")
    lines = " ".join(text.split()) or type(error).__name__
    last = trace.strip().rpartition("\n")[2].strip() if quoted else ""
    return f"{_cut(lines, _LINE)} {_cut(last, _LINE)}".strip()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip()} ..."
