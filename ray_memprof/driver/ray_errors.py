"""What Ray writes about the end of a process, in one line: its texts run over pages and tell little.

    exit_detail(str(error))       # "Worker exits with an exit code 17", or "" where Ray knows no cause

Pure. The texts are those of Ray 2.60; where another release writes something else, less is told, and nothing fails.
"""

import re

# Ray 2.60 on a host that is full: "... was 14.10GB used / 15.00GB limit (0.94) ...", later a table of who has most.
_HOST_MEMORY = re.compile(r"([\d.]+ ?[KMGT]?i?B)(?: used)? / ([\d.]+ ?[KMGT]?i?B)")
_LARGEST = re.compile(r"PID\s+MEM\(GB\)\s+COMMAND\n(\d+)\s+([\d.]+)\s+([^\n]+)")
_LINE = 300
"""Characters of an error of Ray's that still make a line."""
_EXIT_DETAIL = re.compile(r"exit detail: (.+?)(?: Some common causes|\. |$)", re.IGNORECASE | re.DOTALL)
# What Ray says of every process that is suddenly gone; it tells nothing.
_NO_CAUSE = "connection error code 2"
_NODE_DIED = re.compile(r"\bnode\b.{0,80}\b(died|dead|terminated|failed)\b", re.IGNORECASE)


def host_memory(text: str) -> str:
    """What Ray says of a host that is full, in one line: how much is in use, and who has most of it."""
    held, largest = _HOST_MEMORY.search(text), _LARGEST.search(text)
    detail = f"{held.group(1)} of {held.group(2)} in use" if held else text.strip().partition("\n")[0]
    if largest is None:
        return detail
    pid, size, command = largest.groups()
    return f"{detail}, most by {command.strip()} (pid {pid}): {size}GB"


def exit_detail(text: str) -> str:
    """What Ray knows of the end of a process, in one line; "" where it only knows that it ended."""
    found = _EXIT_DETAIL.search(text)
    detail = " ".join(found.group(1).split()) if found else ""
    return "" if _NO_CAUSE in detail else detail


def tells_of_node(text: str) -> bool:
    """Whether Ray puts the end of a process down to its node."""
    return _NODE_DIED.search(text) is not None


def first_line(error: BaseException) -> str:
    """Of the text of an error."""
    return str(error).strip().partition("\n")[0]


def in_one_line(error: BaseException) -> str:
    """All of the text of an error, as far as a line may be long: Ray spreads one sentence over several lines.

    Where it quotes the error of another part, that one's last line, which says what happened.
    """
    text, quoted, trace = str(error).strip().partition("Traceback (most recent call last):")
    lines = " ".join(text.split()) or type(error).__name__
    last = trace.strip().rpartition("\n")[2].strip() if quoted else ""
    return f"{_cut(lines, _LINE)} {_cut(last, _LINE)}".strip()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip()} ..."
