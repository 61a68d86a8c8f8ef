"""Flame graphs as data for plotly.js: what was alive at the peak of a rank, by the calls that allocated it.

    flame_by_stack(0, rows, frames)      # rows of alive_at_peak_by_stack, frames of their stacks
    flame_by_span(0, rows)               # rows of alive_at_peak, for a rank without Python stacks
    flame_by_span(0, rows, base=span_tree(0, base_rows))      # against the same rank of a base run

Writes no file. A graph has at most `most` frames and MOST_LEVELS levels, however many a run has: the largest frames are
drawn, what is too small is counted in the frame that called it, and the middle of a very deep stack is one frame.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import PurePath
from zlib import crc32

from ray_memprof.report.changes import changed, gone_text
from ray_memprof.report.plots import Figure, Row
from ray_memprof.wording import size_text

MOST_FRAMES = 2000
"""The most frames of a graph: with more of them a browser zooms slowly."""
MOST_STACKS = 20_000
"""The most stacks that are followed, the largest of a rank."""
OUTER_LEVELS, INNER_LEVELS = 60, 100
"""Frames of a deep stack that are kept at its beginning and at its end, where the allocation is."""
MOST_LEVELS = OUTER_LEVELS + 1 + INNER_LEVELS
LEVELS_IN_VIEW = 40
"""The most levels that are drawn at once; a click on a frame shows the levels below it."""
MOST_LETTERS = 200
"""The most letters of a name: those of an imported file may be of any length."""
NO_STACK = "no Python stack"
_NUM_COLOURS = 4
_LEVEL_HEIGHT, _REST_HEIGHT = 22, 50


@dataclass(frozen=True, slots=True)
class Step:
    """A frame of a stack, or a name that stands for one."""

    name: str
    where: str
    """File and line, or what kind of name it is."""
    colour: str


_Path = tuple[Sequence[Step], int]
"""The frames from the outermost inwards, and the bytes that were allocated there."""


@dataclass(slots=True)
class Node:
    """A frame in the graph, and the frames that it calls."""

    step: Step
    bytes: int = 0
    calls: dict[Step, "Node"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flame:
    """The flame graph of a rank."""

    rank: int
    figure: Figure
    has_stacks: bool
    num_folded: int
    """Frames and stacks that are not drawn, because they are too small."""
    folded_bytes: int
    """Their bytes: they count in the frames that call them."""
    num_left_out: int
    """Frames in the middle of deep stacks that are not drawn."""
    is_compared: bool = False
    """Whether it shows changes against a base run."""
    base_line: str = ""
    """What the page says of the base run below the graph."""


def flame_by_stack(
    rank: int,
    rows: Sequence[Row],
    frames: Mapping[int, Sequence[Step]],
    most: int = MOST_FRAMES,
    *,
    base: Node | None = None,
) -> Flame:
    """The graph of a rank with Python stacks.

    Args:
        rank: the rank.
        rows: of alive_at_peak_by_stack, those of the rank; the first MOST_STACKS are followed.
        frames: the frames of each of these stacks, the outermost frame first.
        most: the most frames that are drawn.
        base: the stack_tree of the base run.
    """
    root, num_left_out = _grown(rank, _stack_paths(rows, frames), rows)
    return _flame(rank, root, rows, most, base, num_left_out, has_stacks=True)


def stack_tree(rank: int, rows: Sequence[Row], frames: Mapping[int, Sequence[Step]]) -> Node:
    """All frames of a rank with Python stacks; see flame_by_stack."""
    return _grown(rank, _stack_paths(rows, frames), rows)[0]


def _stack_paths(rows: Sequence[Row], frames: Mapping[int, Sequence[Step]]) -> Iterator[_Path]:
    for row in rows[:MOST_STACKS]:
        known = frames.get(row["stack_id"]) if row["stack_id"] is not None else None
        yield known or [Step(NO_STACK, "", "shade2"), *_spans(row["path"])], row["bytes"]


def flame_by_span(
    rank: int, rows: Sequence[Row], most: int = MOST_FRAMES, *, base: Node | None = None
) -> Flame:
    """The graph of a rank without Python stacks: spans, then the component, then the category.

    Args:
        rank: the rank.
        rows: of alive_at_peak, those of the rank.
        most: the most frames that are drawn.
        base: the span_tree of the base run.
    """
    root, num_left_out = _grown(rank, _span_paths(rows), rows)
    return _flame(rank, root, rows, most, base, num_left_out, has_stacks=False)


def span_tree(rank: int, rows: Sequence[Row]) -> Node:
    """All spans of a rank without Python stacks; see flame_by_span."""
    return _grown(rank, _span_paths(rows), rows)[0]


def _span_paths(rows: Sequence[Row]) -> Iterator[_Path]:
    for row in rows[:MOST_STACKS]:
        category = row["category"] or "uncategorised"
        steps = [*_spans(row["path"]), Step(category, "category", category)]
        if row["component"]:
            steps.insert(-1, Step(row["component"], "component", "shade2"))
        yield steps, row["bytes"]


def frame_step(function: str, file: str, line: int, frame_order: int) -> Step:
    """A frame of a Python stack; frame_order is that of the macro of this name."""
    # The files of the program differ in colour; what is inside torch is grey.
    colour = f"flame{crc32(file.encode(errors='replace')) % _NUM_COLOURS}" if frame_order == 0 else "shade2"
    return Step(function, f"{file}:{line}", colour)


def _spans(path: str | None) -> list[Step]:
    if path is None:
        return [Step("no span", "", "shade2")]
    return [Step(name, "span", _span_colour(name)) for name in path.split("/")]


def _span_colour(name: str) -> str:
    return f"flame{crc32(name.encode(errors='replace')) % _NUM_COLOURS}"


def _grown(rank: int, paths: Iterable[_Path], rows: Sequence[Row]) -> tuple[Node, int]:
    """The tree of these paths, and how many frames of deep stacks it has left out."""
    root = Node(Step(f"rank {rank}", "alive at the peak", "shade2"), sum(row["bytes"] for row in rows))
    num_left_out = 0
    for steps, num_bytes in paths:
        drawn, left_out = _shortened(steps)
        num_left_out += left_out
        node = root
        for step in drawn:
            node = node.calls.setdefault(step, Node(step))
            node.bytes += num_bytes
    return root, num_left_out


def _flame(
    rank: int,
    root: Node,
    rows: Sequence[Row],
    most: int,
    base: Node | None,
    num_left_out: int,
    *,
    has_stacks: bool,
) -> Flame:
    nodes, parents, num_folded, folded_bytes = _largest(root, most)
    missed = rows[MOST_STACKS:]
    figure, base_line = _figure(nodes, parents), ""
    if base is not None:
        sizes, gone = _beside(nodes, parents, base)
        figure["data"][0] |= changed(figure["data"][0], sizes)
        base_line = gone_text(gone)
    return Flame(
        rank=rank,
        figure=figure,
        has_stacks=has_stacks,
        num_folded=num_folded + len(missed),
        folded_bytes=folded_bytes + sum(row["bytes"] for row in missed),
        num_left_out=num_left_out,
        is_compared=base is not None,
        base_line=base_line,
    )


def _beside(
    nodes: Sequence[Node], parents: Sequence[int], base: Node
) -> tuple[list[int], list[tuple[str, int]]]:
    """Bytes of each node in the base run, 0: it has none; and what only the base run has, each byte once."""
    sizes: list[int] = []
    found: list[Mapping[Step, Node]] = []
    gone: list[tuple[str, int]] = []
    for node, parent in zip(nodes, parents, strict=True):
        partner = base if parent < 0 else found[parent].get(node.step)
        sizes.append(partner.bytes if partner else 0)
        found.append(_partners(node, partner) if partner else {})
        if partner:
            kept = set(map(id, found[-1].values()))
            gone += [
                (_place(call.step), call.bytes) for call in partner.calls.values() if id(call) not in kept
            ]
    return sizes, gone


def _partners(here: Node, there: Node) -> dict[Step, Node]:
    """By the step of a call of `here`: the same call of `there`.

    A call may be on another line, and its file in another folder, if there is no doubt which one it is: the base run
    may be of another version of the program.
    """
    found = {step: there.calls[step] for step in here.calls if step in there.calls}
    left = [_alone(step for step in node.calls if step not in found) for node in (here, there)]
    found.update({step: there.calls[left[1][key]] for key, step in left[0].items() if key in left[1]})
    return found


def _alone(steps: Iterable[Step]) -> dict[tuple[str, str], Step]:
    """Steps by name and file, without those that share these."""
    listed: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        listed.setdefault((step.name, _file(step)), []).append(step)
    return {key: same[0] for key, same in listed.items() if len(same) == 1}


def _file(step: Step) -> str:
    return PurePath(step.where.rpartition(":")[0] or step.where).name


def _place(step: Step) -> str:
    return clipped(f"in {step.name} ({PurePath(step.where).name})")


def _shortened(steps: Sequence[Step]) -> tuple[Sequence[Step], int]:
    """A stack without the middle, if it is very deep; and how many frames that leaves out."""
    left_out = len(steps) - OUTER_LEVELS - INNER_LEVELS
    if left_out <= 1:
        return steps, 0
    gap = Step(f"{left_out:,} frames", "left out: the middle of a deep stack", "line")
    return [*steps[:OUTER_LEVELS], gap, *steps[-INNER_LEVELS:]], left_out


def _largest(root: Node, most: int) -> tuple[list[Node], list[int], int, int]:
    """The largest nodes, each after the one that calls it.

    Returns:
        The nodes; for each the index of the one that calls it, -1 for the root; how many nodes are not among them; and
        the bytes of these, each byte once.
    """
    nodes: list[Node] = []
    parents: list[int] = []
    waiting = [(-root.bytes, 0, root, -1)]
    num_seen = 1
    while waiting and len(nodes) < most:
        _, _, node, parent = heappop(waiting)
        nodes.append(node)
        parents.append(parent)
        for call in node.calls.values():
            # The second number keeps the order of equals, and nodes from being compared.
            heappush(waiting, (-call.bytes, num_seen, call, len(nodes) - 1))
            num_seen += 1
    num_folded = sum(_count(node) for _, _, node, _ in waiting)
    return nodes, parents, num_folded, -sum(size for size, _, _, _ in waiting)


def _count(node: Node) -> int:
    """The number of nodes from this one on inwards."""
    num, waiting = 0, [node]
    while waiting:
        num += 1
        waiting += waiting.pop().calls.values()
    return num


def _figure(nodes: Sequence[Node], parents: Sequence[int]) -> Figure:
    """The nodes as an icicle: the root is at the top, the width of a frame is its bytes."""
    levels: list[int] = []
    for parent in parents:
        levels.append(1 + levels[parent] if parent >= 0 else 1)
    trace = {
        "type": "icicle",
        "branchvalues": "total",
        "ids": [str(number) for number in range(len(nodes))],
        "labels": [clipped(_name(number, node)) for number, node in enumerate(nodes)],
        "parents": [str(parent) if parent >= 0 else "" for parent in parents],
        "values": [node.bytes for node in nodes],
        "text": [clipped(node.step.where) for node in nodes],
        "marker": {
            "colors": [f"var:{node.step.colour}" for node in nodes],
            "line": {"color": "var:paper", "width": 1},
        },
        "texttemplate": "%{label}",
        "textposition": "middle left",
        "hovertemplate": "<b>%{label}</b><br>%{text}<br>%{percentRoot:.1%} of all<br>%{value:,d} bytes<extra></extra>",
        "tiling": {"orientation": "v", "pad": 0},
        "leaf": {"opacity": 1},
        "pathbar": {"thickness": 24, "textfont": {"size": 12}},
        "maxdepth": LEVELS_IN_VIEW,
    }
    layout = {
        "margin": {"l": 0, "r": 0, "t": 30, "b": 0},
        "uniformtext": {"minsize": 12, "mode": "hide"},
        # Keeps the frame that was zoomed in when the figure is drawn again.
        "uirevision": "zoom",
    }
    height = _REST_HEIGHT + _LEVEL_HEIGHT * max(6, min(max(levels), LEVELS_IN_VIEW))
    return {"data": [trace], "layout": layout, "height": height}


def _name(number: int, node: Node) -> str:
    return node.step.name if number else f"{node.step.name}, {size_text(node.bytes)}"


def clipped(text: str) -> str:
    """A text with its middle left out if it is long: the end of a path tells more than its beginning."""
    if len(text) <= MOST_LETTERS:
        return text
    half = (MOST_LETTERS - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
