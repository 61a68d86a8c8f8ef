"""What was recorded of a rank's allocator: its events, what the program asked for, and the allocator's settings.

    for rank in recorded_ranks(run_dir):
        recorded = RecordedRank(run_dir, rank)
        recorded.requests, recorded.rules, recorded.outside(with_others=True)

Reads a run; what is asked of it is in allocator/what_if.py and allocator/caching.py.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof.allocator.requests import GROWTH, SHRINKAGE, Recorded, Requests
from ray_memprof.allocator.rules import SETTINGS_VARIABLES, Rules
from ray_memprof.allocator.settings import given, settings_of
from ray_memprof.errors import ConfigError
from ray_memprof.query.database import open_run
from ray_memprof.store.run_files import PART_SUFFIX, table_dir

_EVENTS = ("action", "address", "requested_bytes", "stream", "span_id")


def recorded_ranks(run_dir: Path) -> list[int]:
    """The ranks that have allocator events.

    Raises:
        ConfigError: no rank has any.
    """
    parts = table_dir(run_dir, "allocs").glob(f"rank=*/*{PART_SUFFIX}")
    ranks = sorted({int(part.parent.name.removeprefix("rank=")) for part in parts})
    if not ranks:
        raise ConfigError(
            f"{run_dir} has no allocator events", hint="logging.level event or stack records them"
        )
    return ranks


class RecordedRank:
    """One rank of a run that has allocator events.

    Attributes:
        rank: of the run.
        events: by column, in order.
        curve: bytes reserved after each event.
        reserved_peak: the most of them.
        spans: rows of the table, by their number.
        rules: the allocator's.
        requests: what the program asked for.
        device_bytes: of the device; None: not known.
        num_lost: events that were not recorded.

    Raises:
        ConfigError: no such run, or torch would refuse the settings that were recorded.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.rank = rank
        with open_run(run_dir) as connection:
            columns = _columns(connection, "allocs", (*_EVENTS, "size_bytes", "t_ns"), rank, order="seq")
            spans = _columns(
                connection, "spans", ("span_id", "parent_id", "path", "step", "num_retries"), rank
            )
            self._ledger = _columns(connection, "ledger", ("t_ns", "account", "bytes"), rank, order="t_ns")
            told = _columns(
                connection, "ranks", ("device_total_bytes", "num_lost_events", "peak_at_least"), rank
            )
            run = connection.execute("SELECT config, environment FROM runs").fetchone() or ("{}", "{}")
        self._times = columns["t_ns"]
        self.events = Recorded(**{name: columns[name] for name in _EVENTS})
        self.curve = _reserved(columns["action"], columns["size_bytes"])
        self.reserved_peak = max(self.curve, default=0)
        self.spans: dict[int, dict[str, Any]] = {
            row[0]: dict(zip(spans, row, strict=True)) for row in zip(*spans.values(), strict=True)
        }
        self.device_bytes: int | None = next(iter(told["device_total_bytes"]), None) or None
        self.num_lost: int = next(iter(told["num_lost_events"]), None) or 0
        self.is_late: bool = bool(next(iter(told["peak_at_least"]), False))
        rules = recorded_rules(json.loads(run[0]), json.loads(run[1]), rank)
        self.rules = _as_seen(rules, columns["action"])
        self.requests = Requests.of(self.events, self._retried())

    def outside(self, *, with_others: bool) -> list[tuple[int, int]]:
        """Memory outside the allocator, by the number of the event from which on it was held.

        Args:
            with_others: whether that of other processes counts.
        """
        held, found = 0, []
        for t_ns, account, size in zip(*self._ledger.values(), strict=True):
            if with_others or account != "others":
                held += size
                found.append((bisect_left(self._times, t_ns), held))
        return found

    def _retried(self) -> frozenset[int]:
        """The spans in which the allocator found the device full, without those that only have such a span inside."""
        inside = Counter[int]()
        for row in self.spans.values():
            inside[row["parent_id"]] += row["num_retries"]
        return frozenset(number for number, row in self.spans.items() if row["num_retries"] > inside[number])


def recorded_rules(config: Mapping[str, Any], environment: Mapping[str, str], rank: int) -> Rules:
    """Return the rules of a recorded rank: of the snapshot that was imported, or of its environment.

    Args:
        config: of the table runs.
        environment: of the table runs.
        rank: of the run.

    Raises:
        ConfigError: torch would refuse what the environment says.
    """
    for one in config.get("imported", ()):
        if one["rank"] == rank:
            settings = one["allocator_settings"]
            # What a snapshot names, it had at its end; its text has settings that it does not name.
            return Rules().under(settings_of(settings.get(SETTINGS_VARIABLES[0], "")) | settings)
    variable, text = given(environment)
    return Rules().under(settings_of(text, variable))


def _as_seen(rules: Rules, actions: list[str]) -> Rules:
    """The segments know best whether they can grow: a program may change the settings itself."""
    seen = GROWTH.intersection(actions)
    return replace(rules, expandable_segments="segment_map" in seen) if seen else rules


def _columns(
    connection: duckdb.DuckDBPyConnection, table: str, names: tuple[str, ...], rank: int, order: str = "ALL"
) -> dict[str, list[Any]]:
    text = f"SELECT {', '.join(names)} FROM {table} WHERE rank = ? ORDER BY {order}"
    found = connection.sql(text, params=[rank]).to_arrow_table()
    return {name: found.column(name).to_pylist() for name in names}


def _reserved(actions: list[str], sizes: list[int]) -> list[int]:
    curve, now = [], 0
    for action, size in zip(actions, sizes, strict=True):
        now += size if action in GROWTH else -size if action in SHRINKAGE else 0
        curve.append(now)
    return curve
