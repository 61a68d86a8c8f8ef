"""Random runs for questions: rows as a recorder would leave them, and beside them the curves that they are of.

    played = play(random.Random(3))          # by rank; played[0].tables() goes into a run

Sizes are few, so that peaks are reached more than once; ranks differ in streams, in how deep their spans nest, in
whether events, samples or spans are there at all.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from run_tables import Row, blank, event

NAMES = ("denoise", "decode", "encode.text", "load.dit", "dit.block", "comm.x", "residency.onload", "save")
STAGES = ("denoise", "decode", "encode.text", "save")
COMPONENTS = {"dit.block": "dit", "decode": "vae", "encode.text": "t5", "load.dit": "dit"}
CATEGORIES = ("weight", "activation", "communication", "workspace", "output", "before")
SIZES = (1, 1, 2, 3, 8)
ACCOUNTS = ("context", "nccl", "libraries", "others")


@dataclass
class State:
    """What is held after an event."""

    seq: int
    t_ns: int
    span_id: int
    action: str
    allocated: int
    active: int
    reserved: int
    alive: dict[int, tuple[int, str, int]]
    """Tensors by address: size, category and span of birth."""


@dataclass
class Moment:
    """A look at the device."""

    t_ns: int
    kind: str
    span_id: int
    used: int
    active: int
    reserved: int


@dataclass
class Rank:
    """One rank: its rows, and what they are of."""

    chance: random.Random
    has_events: bool
    spans: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    ledger: list[Row] = field(default_factory=list)
    collectives: list[Row] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    t_ns: int = 1000
    allocated: int = 0
    active: int = 0
    reserved: int = 0
    outside: int = 0
    alive: dict[int, tuple[int, str, int]] = field(default_factory=dict)
    waiting: list[tuple[int, int, str]] = field(default_factory=list)
    """Freed, and in use by another stream: address, size and category."""
    stack: list[Row] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)

    @property
    def span_id(self) -> int:
        """Of the innermost open span."""
        return int(self.stack[-1]["span_id"]) if self.stack else 0

    def tables(self) -> dict[str, list[Row]]:
        """As the recorder would leave them."""
        kept = {"spans": self.spans, "samples": self.samples, "ledger": self.ledger}
        return {**kept, "collectives": self.collectives, "allocs": self.events if self.has_events else []}

    def counters(self) -> Row:
        """What the allocator would say of its own."""
        tops = {
            name: max([0, *(getattr(one, name) for one in self.states)]) for name in ("allocated", "reserved")
        }
        told = {f"{name}_peak_bytes": top for name, top in tops.items()}
        replayed = {f"replayed_{name}": top * self.has_events for name, top in told.items()}
        return {**told, **replayed, "status": "ok", "host": "h", "device_total_bytes": 1000}

    def play(self, length: int) -> None:
        """Do `length` random things, then leave what is open."""
        actions = (
            self.enter,
            self.leave,
            self.alloc,
            self.alloc,
            self.free,
            self.complete,
            self.look,
            self.grow,
        )
        for _ in range(length):
            self.t_ns += self.chance.choice((1, 2, 50))
            self.chance.choice((*actions, self.give_back, self.call))()
        while self.stack:
            self.t_ns += 1
            self.leave()
        self.spans.sort(key=lambda row: row["span_id"])

    def enter(self) -> None:
        """Begin a span, four deep at most."""
        if len(self.stack) == 4:
            return
        name = self.chance.choice(NAMES if self.stack else STAGES)
        around = self.stack[-1] if self.stack else None
        path = f"{around['path']}/{name}" if around else name
        row = blank("spans", span_id=len(self.spans) + 1, parent_id=self.span_id, path=path, name=name)
        row |= {"stage": self.stack[0]["name"] if self.stack else name, "depth": len(self.stack)}
        row |= {"component": COMPONENTS.get(name), "start_ns": self.t_ns}
        row["step"] = around["step"] if around else self.chance.choice((None, 0, 1, 2))
        for what in ("allocated", "active", "reserved"):
            row[f"{what}_start_bytes"] = row[f"{what}_peak_bytes"] = getattr(self, what)
        self.spans.append(row)
        self.stack.append(row)
        self._measure("start", row["span_id"])
        row["device_used_start_bytes"] = row["device_used_peak_bytes"] = self.moments[-1].used

    def leave(self) -> None:
        """End the innermost span."""
        if not self.stack:
            return
        row = self.stack[-1]
        row["end_ns"] = self.t_ns
        for what in ("allocated", "active", "reserved"):
            row[f"{what}_end_bytes"] = getattr(self, what)
        self._measure("end", row["span_id"])
        row["device_used_end_bytes"] = self.moments[-1].used
        row["device_used_bound_bytes"] = row["device_used_peak_bytes"] + 5
        self.stack.pop()

    def alloc(self) -> None:
        """A tensor, in a place that is free or new; the device gives what the allocator lacks, and a bit more."""
        size, category = self.chance.choice(SIZES), self.chance.choice(CATEGORIES)
        if self.active + size > self.reserved:
            more = self.active + size - self.reserved + self.chance.choice((0, 4))
            self.reserved += more
            # What was held before the first event has that category in both rows, as replay.prime() makes them.
            self._event("segment_alloc", more, 0, category if category == "before" else None)
        address = (
            self.addresses.pop() if self.addresses and self.chance.random() < 0.7 else len(self.events) + 1
        )
        self.alive[address] = (size, category, self.span_id)
        self.allocated += size
        self.active += size
        for row in self.stack:
            row["num_allocs"] += 1
        self._event("alloc", size, address, category)

    def free(self) -> None:
        """A tensor goes; another stream may need its place for a while."""
        if not self.alive:
            return
        address = self.chance.choice(list(self.alive))
        size, category, _ = self.alive.pop(address)
        self.allocated -= size
        self._event("free_requested", size, address, category)
        self.waiting.append((address, size, category))
        if self.chance.random() < 0.7:
            self.complete()

    def complete(self) -> None:
        """No stream needs that place any longer."""
        if self.waiting:
            address, size, category = self.waiting.pop()
            self.active -= size
            self._event("free_completed", size, address, category)
            if self.chance.random() < 0.5:
                self.addresses.append(address)

    def give_back(self) -> None:
        """The allocator gives to the device what it does not use."""
        unused = self.reserved - self.active
        if unused:
            self.reserved -= unused
            self._event("segment_free", unused, 0, None)

    def grow(self) -> None:
        """Somebody outside the allocator takes memory, or gives it back."""
        size = self.chance.choice((4, 4, 8, -4))
        if self.outside + size >= 0:
            self.outside += size
            account = self.chance.choice(ACCOUNTS)
            if self.chance.random() < 0.8:  # else nobody knows who
                self.ledger.append(
                    blank("ledger", t_ns=self.t_ns, span_id=self.span_id, account=account, bytes=size)
                )

    def look(self) -> None:
        """A sample."""
        self._measure("sample", 0)
        held = {"allocated_bytes": self.allocated, "reserved_bytes": self.reserved}
        self.samples.append(blank("samples", t_ns=self.t_ns, device_used_bytes=self.moments[-1].used, **held))
        for row in self.stack:
            row["num_samples"] += 1

    def call(self) -> None:
        """A collective."""
        about = {"op": self.chance.choice(("all_reduce", "barrier")), "group": self.chance.choice("ab")}
        row = blank("collectives", start_ns=self.t_ns, end_ns=self.t_ns + self.chance.choice((0, 3)), **about)
        self.collectives.append({**row, "bytes": self.chance.choice(SIZES), "group_size": 2})

    def _measure(self, kind: str, span_id: int) -> None:
        used = self.reserved + self.outside
        active = self.allocated if kind == "sample" else self.active
        self.moments.append(Moment(self.t_ns, kind, span_id, used, active, self.reserved))
        for row in self.stack:
            row["device_used_peak_bytes"] = max(row["device_used_peak_bytes"], used)

    def _event(self, action: str, size: int, address: int, category: str | None) -> None:
        self.t_ns += 1
        seq = len(self.events) + 1
        self.events.append(
            event(seq, action, size, category, t_ns=self.t_ns, address=address, span_id=self.span_id)
        )
        # A segment that was taken for a tensor is there before it: no moment of its own for the curve of tensors.
        for row in self.stack:
            for what in ("allocated", "active", "reserved"):
                row[f"{what}_peak_bytes"] = max(row[f"{what}_peak_bytes"], getattr(self, what))
        now = (self.allocated, self.active, self.reserved)
        self.states.append(State(seq, self.t_ns, self.span_id, action, *now, dict(self.alive)))


def play(chance: random.Random) -> dict[int, Rank]:
    """One to four ranks, some of them with nothing at all."""
    ranks = {}
    for number in range(chance.choice((1, 2, 2, 4))):
        ranks[number] = Rank(chance, has_events=chance.random() < 0.75)
        ranks[number].play(chance.choice((0, 5, 60, 200)))
    return ranks


def as_run(ranks: dict[int, Rank]) -> tuple[list[dict[str, Any]], list[Row]]:
    """Tables by rank, and rows of the table ranks."""
    return [one.tables() for one in ranks.values()], [one.counters() for one in ranks.values()]
