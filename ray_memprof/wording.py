r"""How sizes, ranks, spans and changes are written in messages, tables and pages, and how a size is read.

size_text(18_628_102_656)        # "17.3 GiB"; GiB, MiB and KiB are 1024^3, 1024^2 and 1024 bytes, as in nvidia-smi
parse_size("30 GiB")             # 32_212_254_720
rank_text([0, 2, 5])             # "ranks 0, 2 and 5"
span_text("denoise/step", 3)     # "denoise/step of step 3"
error_line(KeyError("a"))        # "KeyError: 'a'"
visible("\x1b[2Jname")          # the escape sequence is written out, so that a terminal does not obey it
"""

import difflib
import re
from collections.abc import Iterable
from fractions import Fraction

from ray_memprof.errors import ConfigError

MIB = 2**20
GIB = 2**30
SIZE_UNITS = {"KiB": 2**10, "MiB": MIB, "GiB": GIB}
"""The units in which sizes are written, with their bytes; smaller sizes are written in bytes (B)."""
_UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": MIB, "gib": GIB, "tib": 2**40},
}
MOST_NAMED = 16
"""How many ranks a sentence may name one by one."""
_TIMES = 10
"""A change of at least this many times the base is written as a factor, since such percentages are hard to read."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters other than tab and newline, and characters that change the direction of writing."""


def size_text(num_bytes: int) -> str:
    """`num_bytes` in three digits, in the unit that suits it: "512 B", "12.0 KiB", "958 MiB", "17.4 GiB".

    Halves are rounded away from zero, as report.js does, so that a table and a figure agree.
    """
    size, sign = abs(num_bytes), "-" if num_bytes < 0 else ""
    if size < SIZE_UNITS["KiB"]:
        return f"{sign}{size} B"
    for unit, unit_bytes in SIZE_UNITS.items():
        for digits in (3, 2, 1, 0):
            rounded = (2 * size * 10**digits + unit_bytes) // (2 * unit_bytes)
            if rounded < 1000:
                return f"{sign}{rounded / 10**digits:.{digits}f} {unit}"
    return f"{sign}{rounded:,} GiB"


def unit_of(num_bytes: int) -> tuple[str, int]:
    """The unit for an axis that reaches to `num_bytes`, and its bytes: ("MiB", 1048576)."""
    fits = [(unit, size) for unit, size in SIZE_UNITS.items() if num_bytes >= size]
    return fits[-1] if fits else ("B", 1)


def age_text(seconds: float) -> str:
    """A time in one unit: "45 s", "3 min", "50 h", "12 d"; each unit from two of it on."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def at_least(text: str, is_at_least: bool) -> str:
    """`text`, with "at least" before it if it is a lower bound."""
    return f"at least {text}" if is_at_least else text


def parse_size(text: str) -> int:
    """The bytes that a number with its unit means, rounded down; KiB is 1024 B, kB is 1000 B.

    Raises:
        ConfigError: no number, no unit, or another unit than B, kB, KiB, MB, MiB, GB, GiB, TB and TiB.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(
            f"{text!r} is no size",
            hint="a number and its unit: 30 GiB, 500 MB or 4096 B; GiB are 1024^3 bytes, GB are 1000^3",
        )
    return int(Fraction(found[1]) * unit)


def rank_text(ranks: Iterable[int]) -> str:
    """Ranks in few words: "rank 3", "ranks 0 to 7", "ranks 0, 2 and 5", "86 ranks (19, 27, 36, 37 ...)"."""
    ranks = sorted(ranks)
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    if len(ranks) > MOST_NAMED:
        return f"{len(ranks)} ranks ({', '.join(map(str, ranks[:4]))} ...)"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def frame_name(function: str, node: str | None) -> str:
    """The function of a frame, with the node of the FX graph that its line runs, if any: "forward [linear_1]"."""
    return f"{function} [{node}]" if node else function


def visible(text: str) -> str:
    """`text` with its control characters written as Python escapes, so that a terminal does not obey them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped(text: str) -> str:
    """`text` in one line for Markdown, with the characters that it would take for marks behind a backslash."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(visible(text).split()))


def span_text(path: str | None, step: int | None) -> str:
    """A span and its step, in words; `path` is None outside of all spans."""
    if path is None:
        return "no span"
    return path if step is None else f"{path} of step {step}"


def number_text(value: float | None, unit: str) -> str:
    """A number as people read it; the unit is bytes, s, or empty for a count or a ratio."""
    if value is None:
        return "-"
    if unit == "bytes":
        return size_text(round(value))
    if unit == "s":
        return f"{value:,.3f} s"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"


def share_text(fraction: float) -> str:
    """A share in percent; one that would read 0.00% although something is there is "<0.01%"."""
    if not fraction:
        return "0%"
    return f"{fraction:.2%}" if abs(fraction) >= 0.00005 else f"{'<' if fraction > 0 else '>-'}0.01%"


def change_text(change: float | None, base: float | None, unit: str) -> str:
    """A change, with its share of the base unless the base is 0 or None: "+1.02 GiB, +7.5%"."""
    if change is None:
        return "-"
    if not change:
        return "="
    sign = "+" if change > 0 else "-"
    text = number_text(abs(change), unit)
    if not base:
        return f"{sign}{text}"
    share = change / abs(base)
    # With a negative base the factor would be negative.
    is_share = share < _TIMES or base < 0
    return f"{sign}{text}, {share:+.1%}" if is_share else f"{sign}{text}, x {share + 1:,.0f}"


def first_line(error: BaseException) -> str:
    """The first line of the text of an error; "" if it has none."""
    return str(error).strip().partition("\n")[0].rstrip()


def error_line(error: BaseException, text: str | None = None) -> str:
    """The kind of an error and what happened, in one line: "KeyError: 'a'".

    Args:
        error: any.
        text: what happened; None: the first line of the text of the error.
    """
    text = first_line(error) if text is None else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def profiler_text(*, wait: int, warmup: int, active: int) -> str:
    """How many steps the schedule of torch.profiler asks for, for messages."""
    return f"logging.profiler asks for {wait + warmup + active} steps (wait {wait}, warmup {warmup}, active {active})"


def shortened(text: str, most: int) -> str:
    """`text`, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word that was probably meant; None: none is similar enough."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint for a word that is not known: the nearest known one, else `otherwise`."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else otherwise
