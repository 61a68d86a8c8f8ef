"""The tiles at the top of a report: the parts of a run's memory in the words of a reader, largest numbers first.

    tiles_of(headlines, parts, words)       # rows of headlines and memory_parts

No number is computed here; this module writes no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ray_memprof.report.page import seconds, sized
from ray_memprof.report.words import Words
from ray_memprof.wording import at_least, share_text, size_text, span_text

MOST_ITEMS = 5
"""The most components or stages of a tile; the smaller ones are in the table of the part."""

Row = dict[str, Any]
Compare = Callable[[str, Row, str], Markup | str]
"""Writes how far a number of a question's row is from that of the base run; "" without one."""


@dataclass(frozen=True, slots=True)
class Item:
    """A component or a stage on a tile."""

    name: str
    value: Markup
    note: str
    change: Markup | str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that every reader wants first, or several of a kind."""

    name: str
    value: str | Markup = ""
    note: str = ""
    change: Markup | str = ""
    items: Sequence[Item] = ()


def tiles_of(headlines: Row, parts: Sequence[Row], words: Words, compare: Compare) -> list[Tile]:
    """The tiles of a run; none if nothing of its memory was recorded."""
    if headlines["allocated_peak_bytes"] is None:
        return []
    found: dict[str, list[Row]] = {}
    for row in parts:
        found.setdefault(row["part"], []).append(row)
    single = {name: rows[0] for name, rows in found.items()}
    tiles = [_total(single["total"], headlines, words, compare), _tensors(single["tensors"], words, compare)]
    if "base" in found:
        tiles.append(_listed("Base memory per component", found["base"], compare, _visits))
    if "activation" in found:
        tiles.append(_listed("Activation peak per stage", found["activation"], compare, _step))
    if "fragmentation" in single and "fragmentation" not in words.left_out:
        row = single["fragmentation"]
        note = f"rank {row['rank']}: reserved beyond the tensors when it grew to its peak"
        tiles.append(Tile("Fragmentation", sized(row["bytes"]), note, compare("memory_parts", row, "bytes")))
    if "switching" in single:
        tiles.append(_switching(single["switching"], words, compare))
    return [*tiles, *_of_ranks(headlines, words), *_recording(headlines)]


def _total(row: Row, headlines: Row, words: Words, compare: Compare) -> Tile:
    total = headlines["device_total_bytes"]
    of_device = f", {row['bytes'] / total:.0%} of {size_text(total)}" if total else ""
    value = Markup(at_least(sized(row["bytes"]), row["is_at_least"]))
    note = f"{words.measures['device_used']}, rank {row['rank']}{of_device}"
    return Tile("Total peak", value, note, compare("memory_parts", row, "bytes"))


def _tensors(row: Row, words: Words, compare: Compare) -> Tile:
    value = Markup(at_least(sized(row["bytes"]), row["is_at_least"]))
    name = "Peak of tensors" if words.measures["allocated"] == "tensors" else "Peak of tensors (allocated)"
    note = f"rank {row['rank']}, in {span_text(row['path'], row['step'])}"
    return Tile(name, value, note, compare("memory_parts", row, "bytes"))


def _listed(name: str, rows: Sequence[Row], compare: Compare, note_of: Callable[[Row], str]) -> Tile:
    items = [
        Item(row["item"], sized(row["bytes"]), note_of(row), compare("memory_parts", row, "bytes"))
        for row in rows[:MOST_ITEMS]
    ]
    more = len(rows) - len(items)
    note = "each on the rank where it is largest"
    return Tile(name, note=f"{note}; {more} smaller" if more else note, items=items)


def _visits(row: Row) -> str:
    times = row["num_times"]
    return f"rank {row['rank']}" + (f", came {times} times" if times > 1 else "")


def _step(row: Row) -> str:
    return f"rank {row['rank']}" + ("" if row["step"] is None else f", step {row['step']}")


def _switching(row: Row, words: Words, compare: Compare) -> Tile:
    place = "to the device" if words.has_device else "into memory"
    note = f"{row['num_times']} loads and moves on rank {row['rank']}, {size_text(row['bytes'])} came {place}"
    value = f"{seconds(row['duration_ns'])} s"
    return Tile("Model switching", value, note, compare("memory_parts", row, "duration_ns"))


def _of_ranks(headlines: Row, words: Words) -> list[Tile]:
    tiles = []
    if headlines["allocated_max_rank"] is not None:
        times = headlines["allocated_max_over_mean"]
        note = f"rank {headlines['allocated_max_rank']} against the mean of {words.measures['allocated']}"
        tiles.append(Tile("Imbalance", "-" if times is None else f"{times:.2f} x", note))
    if (share := headlines["unexplained_fraction"]) is not None:
        note = f"of {words.measures['device_used']} at the peak, rank {headlines['unexplained_rank']}"
        tiles.append(Tile("Unexplained", share_text(share), note))
    return tiles


def _recording(headlines: Row) -> list[Tile]:
    num_ranks, checked = headlines["num_ranks"], headlines["num_checked"]
    if not num_ranks:
        return []
    if not checked:
        note = "no allocator events were recorded, or no rank came to its end"
        return [Tile("Recording", "unchecked", note)]
    notes = ["ranks replay to the byte"]
    if within := headlines["num_within"]:
        notes.append(f"{within} within {headlines['inexact_bytes']:,} bytes")
    if checked < num_ranks:
        notes.append(f"{num_ranks - checked} ended before they could be compared")
    return [Tile("Recording", f"{headlines['num_exact']} of {checked}", ", ".join(notes))]
