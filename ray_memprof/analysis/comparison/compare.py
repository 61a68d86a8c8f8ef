"""Compares runs with the first of them, the base: what changed, where, on which rank, and what was set differently.

    compared = compare([Path("profiler_logs/a/latest"), Path("profiler_logs/b/latest")], ["peak_device_used > +2%"])
    $ ray-memprof compare a b --fail-if 'peak_device_used > +2%'

The numbers are the measures of query/sql/peaks/measures.sql, for the whole run, for every rank, and for every span path
over all its visits. For several ranks there are two values: the worst and the mean. Runs need not have the same
ranks, spans or source. Writes no file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ray_memprof.analysis.comparison.certainty import certainty_of
from ray_memprof.analysis.comparison.limits import Check, check, parse
from ray_memprof.errors import ConfigError
from ray_memprof.query.bounds import caveats
from ray_memprof.query.database import open_runs
from ray_memprof.store.standing import DRIVER_GONE, LEFT, ending_text
from ray_memprof.store.wholeness import lacking
from ray_memprof.wording import rank_text

Row = dict[str, Any]

SQL_DIR = Path(__file__).parent / "sql"
_OTHERWISE_NAMED = ("name", "description", "logging.output_dir")
"""Keys of the configuration that do not change what a run does."""
_SEED = "generation.base_seed"
_OF_TORCHRUN = ("GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_SIZE")
"""How the names of variables begin that say which rank of how many a process is."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the runs."""

    label: str
    """The run's name, or its run id, or its path: the first of these that differs between all runs, else numbered."""
    name: str
    run_id: str
    folder: str
    status: str
    """How it ended; unknown: its driver was killed before it could write that."""
    reason: str
    source: str
    num_ranks: int
    """Ranks that recorded a span."""
    gpu_name: str
    lacking: tuple[str, ...] = ()
    """Lines that say which of its rows are missing."""
    bounds: tuple[str, ...] = ()
    """Lines that say which of its peaks are lower bounds and why, and how far the replay of a rank may be wrong."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that the runs do not agree on, with its value in each; None: the run has no such key."""

    key: str
    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is known of runs side by side."""

    sides: tuple[Side, ...]
    """The base first."""
    differences: tuple[Difference, ...]
    moves: pa.Table
    """Rows of sql/moves.sql."""
    checks: tuple[Check, ...]
    rank: int | None
    """The only rank that was looked at; None: all of them."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A rank or a span of a run, compared with the same rank or span of the base."""

    run: int
    path: str | None
    rank: int | None
    only_in: str | None
    """The only one of the two that has it, base or other; None: both have it."""
    share: float
    """The largest share_fraction of its measures: a change as a share of the value of the whole base run."""
    measures: dict[str, Row]
    """Rows of sql/moves.sql by measure, in their order."""


def moved_of(rows: Iterable[Row], level: str) -> list[Moved]:
    """The ranks or the spans (`level`) in the rows of moves, in their order: the largest change comes first."""
    listed = (row for row in rows if row["level"] == level)
    return [_moved(list(group)) for _, group in groupby(listed, key=itemgetter("run", "path", "rank"))]


def _moved(rows: Sequence[Row]) -> Moved:
    first = rows[0]
    sides = {row["only_in"] for row in rows}
    return Moved(
        run=first["run"],
        path=first["path"],
        rank=first["rank"],
        only_in=sides.pop() if len(sides) == 1 else None,
        share=max(row["share_fraction"] or 0.0 for row in rows),
        measures={row["measure"]: row for row in rows},
    )


def compare(
    run_dirs: Sequence[Path],
    limits: Sequence[str] = (),
    *,
    rank: int | None = None,
    allow_failed: bool = False,
) -> Comparison:
    """Compare runs with the first of them.

    Args:
        run_dirs: two run folders or more; a run that is given twice is compared with itself, and nothing moves.
        limits: texts that limits.parse reads; each limit is checked against each run except the base.
        rank: look only at this rank.
        allow_failed: check limits against a run that failed or is not whole, too.

    Raises:
        ConfigError: there are fewer than two runs, one cannot be read, there is no such rank, or a limit cannot
            be checked against them.
    """
    parsed = [parse(text) for text in limits]
    folders = [path.resolve() for path in run_dirs]
    _refuse_alone(folders)
    # Every question here is of each single run.
    with open_runs(folders, only="", shared_by=_text("run_values")) as connection:
        sides = _sides(connection, folders)
        if parsed and not allow_failed:
            _refuse_failed(sides)
            _refuse_partial(sides)
        _gather(connection, sides, rank)
        moves = connection.sql(_text("moves")).to_arrow_table()
        labels = [side.label for side in sides]
        certain = {number: certainty_of(connection, f"run{number}", rank) for number in range(len(sides))}
        checks = [
            check(connection, limit, number, labels, certain)
            for limit in parsed
            for number in range(1, len(sides))
        ]
        differences = tuple(_differences(connection, sides))
        return Comparison(tuple(sides), differences, moves, tuple(checks), rank)


def as_facts(compared: Comparison) -> Row:
    """The whole comparison for JSON; bytes and counts are whole numbers if they can be."""
    return {
        "runs": [asdict(side) for side in compared.sides],
        "differences": [asdict(one) for one in compared.differences],
        "moves": [_whole_numbers(row) for row in compared.moves.to_pylist()],
        "limits": [_whole_numbers(asdict(one)) for one in compared.checks],
    }


def _whole_numbers(row: Row) -> Row:
    if row["unit"] == "s":
        return row
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in row.items()
    }


def _text(name: str) -> str:
    return (SQL_DIR / f"{name}.sql").read_text(encoding="utf-8")


def _refuse_alone(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise ConfigError("a comparison needs two runs", hint="ray-memprof compare BASE OTHER [OTHER ...]")


def _refuse_failed(sides: Sequence[Side]) -> None:
    """Refuse a run that failed: its peaks may be low because it ended early, so a limit that holds says nothing."""
    for side in sides:
        if side.status != "ok":
            raise ConfigError(
                f"{side.label} {ending_text(side.status)} ({side.status}): its figures cannot be checked against a "
                "limit",
                hint="--allow-failed checks them anyway",
            )


def _refuse_partial(sides: Sequence[Side]) -> None:
    """Refuse a run that is not whole: the worst rank may be the one that is missing."""
    for side in sides:
        if side.lacking:
            more = f", and {len(side.lacking) - 1} more" if len(side.lacking) > 1 else ""
            raise ConfigError(
                f"{side.label} is not whole: {side.lacking[0]}{more}: its figures cannot be checked against a limit",
                hint="record it again; --allow-failed checks limits against what is left",
            )


def _gather(connection: duckdb.DuckDBPyConnection, sides: Sequence[Side], rank: int | None) -> None:
    """Make the temporary tables that the questions of sql/ read: sides, run_values and compared."""
    names, run_ids = [side.name for side in sides], [side.run_id for side in sides]
    connection.register("sides", pa.table({"run": range(len(sides)), "name": names, "run_id": run_ids}))
    of_rank = "" if rank is None else f" WHERE rank = {rank:d}"
    for number, side in enumerate(sides):
        begin = "INSERT INTO run_values" if number else "CREATE TEMP TABLE run_values AS"
        # The views of each single run are in a database of its own.
        connection.execute(f"USE run{number}")
        connection.execute(f"{begin} SELECT {number} AS run, * FROM (\n{_text('run_values')}\n){of_rank}")
        if rank is not None:
            _refuse_unknown(connection, number, side, rank)
    connection.execute("USE memory")
    connection.execute(f"CREATE TEMP TABLE compared AS\n{_text('compared')}")


def _refuse_unknown(connection: duckdb.DuckDBPyConnection, number: int, side: Side, rank: int) -> None:
    rows = connection.execute(f"SELECT DISTINCT rank FROM run{number}.spans ORDER BY rank").fetchall()
    ranks = [row[0] for row in rows]
    if rank not in ranks:
        listed = rank_text(ranks) if ranks else "none"
        raise ConfigError(f"{side.label} has no rank {rank}", hint=f"it has {listed}")


def _sides(connection: duckdb.DuckDBPyConnection, folders: Sequence[Path]) -> list[Side]:
    labels = _labels(folders)
    return [_side(connection, number, folder, labels[number]) for number, folder in enumerate(folders)]


def _labels(folders: Sequence[Path]) -> list[str]:
    forms = (
        [folder.parent.name for folder in folders],
        [folder.name for folder in folders],
        list(map(str, folders)),
        # A run that is given twice has nothing that differs.
        [f"{folder.parent.name} ({number})" for number, folder in enumerate(folders, 1)],
    )
    return next(labels for labels in forms if len(set(labels)) == len(labels))


def _side(connection: duckdb.DuckDBPyConnection, number: int, folder: Path, label: str) -> Side:
    rows = connection.sql(f"FROM run{number}.run_overview").to_arrow_table().to_pylist()
    ranks = [row[0] for row in connection.execute(f"SELECT DISTINCT rank FROM run{number}.spans").fetchall()]
    wanted = connection.execute(f"SELECT num_ranks FROM run{number}.runs").fetchall()
    # A driver that was killed wrote no row.
    row: Row = rows[0] if rows else {"status": LEFT, "reason": DRIVER_GONE}
    return Side(
        label=label,
        name=folder.parent.name,
        run_id=folder.name,
        folder=str(folder),
        status=row["status"],
        reason=row["reason"],
        source=row.get("source", ""),
        num_ranks=len(ranks),
        gpu_name=row.get("gpu_name") or "",
        lacking=tuple(lacking(folder, wanted[0][0] if wanted else 0, ranks)) if row["status"] == "ok" else (),
        bounds=tuple(_bounds(connection, number)),
    )


def _bounds(connection: duckdb.DuckDBPyConnection, number: int) -> list[str]:
    """The caveats of the whole run; a span has columns of its own for them."""
    connection.execute(f"USE run{number}")
    lines = caveats(connection)
    connection.execute("USE memory")
    return lines


def _differences(connection: duckdb.DuckDBPyConnection, sides: Sequence[Side]) -> Iterator[Difference]:
    """Keys of configuration, environment and versions that differ between the runs, in the order of the base."""
    settings = [_settings(connection, number, side) for number, side in enumerate(sides)]
    for key in dict.fromkeys(key for one in settings for key in one):
        values = tuple(one.get(key) for one in settings)
        if key == _SEED and any(one.get("source") == "predicted" for one in settings):
            continue  # it is drawn for each run, and a prediction draws no noise
        if len(set(values)) > 1:
            yield Difference(key, values)


def _settings(connection: duckdb.DuckDBPyConnection, number: int, side: Side) -> dict[str, str]:
    rows = connection.execute(
        f"SELECT config, environment, versions, git_commit, source FROM run{number}.runs"
    ).fetchall()
    if not rows:
        return {}
    *texts, git_commit, source = rows[0]
    config, environment, versions = (json.loads(text or "{}") for text in texts)
    found = {key: value for key, value in _flat(config) if key not in _OTHERWISE_NAMED}
    for key, value in environment.items():
        # A value with the run's id in it differs in any case.
        if not key.startswith(_OF_TORCHRUN) and side.run_id not in value:
            found[f"environment.{key}"] = value
    found |= {f"versions.{key}": value for key, value in _flat(versions)}
    return found | {"gpu": side.gpu_name, "git_commit": git_commit, "source": source}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested dictionaries with their dotted keys; a text as it is, all else as JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)
