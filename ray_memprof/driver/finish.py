"""Complete a run afterwards: its launcher was killed, or a host could not be reached at its end.

    $ ray-memprof finish ulysses8                             # the host is back: its files come through Ray
    $ ray-memprof finish ulysses8 --from 20260102-030405-ab12 # or from a copy of that host's scratch folder

Takes a run folder whose run.json says which records are on other hosts. Leaves the run as a normal end would have left
it: sealed tables, run.duckdb, memory_events.json, report.html. The recorded status and reason of the run stay. A second
call changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ray_memprof.config.load import load_config
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.elsewhere import Elsewhere
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import EXIT_KILLED, ConfigError, StartFailed
from ray_memprof.installed import need
from ray_memprof.rank.messages import RankFacts
from ray_memprof.report import derive
from ray_memprof.store.gather import Gathered, gather, not_all_came, recorded_nothing, still_written
from ray_memprof.store.live_file import LiveFile
from ray_memprof.store.run_files import CONFIG_FILE, REPORT_FILE, TABLES_DIR, manifest_path, table_dir
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import write_driver_tables
from ray_memprof.store.standing import RUNNING, standing
from ray_memprof.store.transfer import Remote, send
from ray_memprof.supervision.verdict import Verdict

_NO_VERDICT = "the launcher ended without a verdict: it was killed, or its host was"


def finish(run_dir: Path, copies: Sequence[Path] = (), *, address: str | None = None) -> list[str]:
    """Bring in the records from other hosts and write the files derived from them; returns the run's last lines.

    Args:
        run_dir: the folder of the run.
        copies: scratch folders of the run's hosts, copied to this host or mounted.
        address: of the Ray that reaches the hosts; None: the Ray that the run had joined.

    Raises:
        ConfigError: the run still goes on, or a folder in `copies` does not come from one of its hosts, or no address
            of a Ray is known.
        StartFailed: Ray cannot be reached, or none of the hosts.
        DiskFull: no room in the run folder.
    """
    state = _state(run_dir)
    if copies:
        gathered = _gather(state, [_copied(state, copy) for copy in copies])
    elif state.elsewhere:
        with _connected(state.config, address):
            gathered = _from_hosts(state)
    else:
        gathered = _gather(state, [])
    _note(state, gathered)
    LiveFile(run_dir).remove()  # of a launcher that was killed
    if not table_dir(run_dir, "runs").is_dir():
        write_driver_tables(run_dir, state.run_row(), state.rank_rows())
    lines = derive.derive(run_dir, state.problems)
    state.note_problems()
    return [*lines, f"report: {run_dir / REPORT_FILE}"]


def _state(run_dir: Path) -> RunState:
    """What the launcher knew of the run, read from run.json."""
    folder = RunFolder.open(run_dir)
    facts = folder.facts
    now = standing(run_dir)
    if now is not None and now.status == RUNNING:
        driver = facts.get("driver", {})
        raise ConfigError(
            f"{run_dir.parent.name}/{run_dir.name} is {now.text}: its launcher is process {driver.get('pid', '?')} "
            f"on {driver.get('host', 'a host that is not known')}",
            hint="it writes the report itself when it ends; only on that host can you see whether it still runs",
        )
    state = RunState(
        load_config(run_dir / CONFIG_FILE),
        folder,
        facts=[RankFacts(**one) for one in facts.get("ranks", ())],
        environment=facts.get("environment", {}),
        checks=facts.get("versions", {}),
        problems=list(facts.get("problems", ())),
        stages_s=facts.get("stages_s", {}),
        elsewhere=[Elsewhere.of(one) for one in facts.get("elsewhere", ())],
    )
    verdict = Verdict(
        status=facts["status"],
        exit_code=facts.get("exit_code", 0),
        reason=facts.get("reason", ""),
        hint=facts.get("hint", ""),
        ranks=tuple(facts.get("culprits", ())),
    )
    if facts["status"] == RUNNING:
        state.settle(Verdict(status="interrupted", exit_code=EXIT_KILLED, reason=_NO_VERDICT))
    else:
        state.verdict = verdict
    return state


def _gather(state: RunState, remotes: Sequence[Remote]) -> Gathered:
    return gather(state.folder.path, state.config.recorded_ranks, remotes)


def _copied(state: RunState, folder: Path) -> Remote:
    """The records in a scratch folder that was copied to this host."""
    ranks = tuple(rank for rank in range(state.config.num_ranks) if manifest_path(folder, rank).is_file())
    if folder.resolve().name != state.folder.run_id or not ranks:
        raise ConfigError(
            f"--from {folder} holds nothing of the run {state.folder.run_id}",
            hint=f"it is the folder {state.folder.run_id} of the host, with {TABLES_DIR}/ in it, under that name",
        )
    if folder.resolve() == state.folder.path.resolve():
        raise ConfigError(f"--from {folder} is the run folder itself", hint="leave it out")
    return Remote(where=str(folder), ranks=ranks, chunks=send(folder, ranks))


@contextmanager
def _connected(config: RunConfig, address: str | None) -> Iterator[None]:
    address = address or config.ray.address
    if address is None:
        raise ConfigError(
            "the run had a Ray of its own, which is gone",
            hint="name the Ray that reaches its hosts (--address HOST:PORT), or copies of their folders (--from)",
        )
    need(("ray",), "a Ray that reaches the hosts")
    from ray_memprof.driver.cluster import joined_ray  # imports Ray

    with joined_ray(address):
        yield


def _from_hosts(state: RunState) -> Gathered:
    """Collect the records on hosts that Ray reaches; what has been collected is removed from the host."""
    from ray_memprof.driver import node_tasks

    limit_s = state.config.ray.timeouts.collect_s
    nodes = node_tasks.nodes_by_address()
    missing = [one for one in state.elsewhere if one.node_ip not in nodes]
    if len(missing) == len(state.elsewhere):
        raise StartFailed(
            f"no host that holds records of the run is in this Ray: {', '.join(map(str, missing))}",
            hint="start Ray there again (ray start --address ...), or copy that folder here and name it with --from",
        )
    there = [one for one in state.elsewhere if one not in missing]
    gathered = _gather(state, [one.remote(nodes[one.node_ip], limit_s=limit_s) for one in there])
    stay = [one.clear(nodes[one.node_ip], gathered.received, limit_s=limit_s) for one in there]
    return replace(gathered, problems=(*gathered.problems, *filter(None, stay)))


def _note(state: RunState, gathered: Gathered) -> None:
    """Replace the notes on what is missing: only what is still missing stays."""
    received = gathered.received
    came = [not_all_came(one.ranks) for one in state.elsewhere if received.issuperset(one.ranks)]
    settled = (*came, *map(recorded_nothing, received), *map(still_written, gathered.ranks))
    state.elsewhere = [one for one in state.elsewhere if not received.issuperset(one.ranks)]
    kept = [line for line in state.problems if not line.startswith(settled)]
    state.problems = list(dict.fromkeys([*kept, *gathered.problems]))
    state.note_problems()
