"""Ranges of addresses, of which parts are given back to the device."""


def parts_outside(start: int, end: int, first: int, last: int) -> list[tuple[int, int]]:
    """The parts of [start, end) that are outside [first, last), in order; at most two."""
    parts = (start, min(end, first)), (max(start, last), end)
    return [(begin, until) for begin, until in parts if begin < until]
