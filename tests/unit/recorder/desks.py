"""A recorder at work, with a meter to set and rows to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening
from ray_memprof.recorder.writer import Writer


@dataclass
class Desk:
    """A recorder with a meter to set and rows to read."""

    meter: FakeMeter
    store: FakeStore
    recorder: Recorder

    @property
    def spans(self) -> dict[str, dict[str, Any]]:
        """Rows by path; each path once."""
        rows = self.store.rows.get("spans", [])
        assert len({row["path"] for row in rows}) == len(rows)
        return {row["path"]: row for row in rows}

    def ledger(self) -> list[tuple[int, str, int]]:
        return [(row["span_id"], row["account"], row["bytes"]) for row in self.store.rows.get("ledger", [])]


def desk_of(*, events: bool = True, room: int = 1000) -> Desk:
    categories: dict[int, str] = {}
    store, meter = FakeStore(room), FakeMeter(has_events=events)
    replay = Replay(category_of=lambda span_id: categories.get(span_id, "activation"))
    scribe = Scribe(Writer(store, replay, categories=categories))  # type: ignore[arg-type]
    return Desk(meter, store, Recorder(0, meter, scribe))


@contextmanager
def at_work(*, events: bool = True, room: int = 1000) -> Iterator[Desk]:
    desk = desk_of(events=events, room=room)
    desk.recorder.start()
    try:
        with listening(desk.recorder):
            yield desk
    finally:
        desk.recorder.close()
