"""A run as MLflow shows it: parameters, metrics over time, tags, what was found, and report.html as an artifact.

    send_to_mlflow(account)

Where it goes is what the library says: MLFLOW_TRACKING_URI, and MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ray_memprof.formats.trackers.account import Account, flat
from ray_memprof.formats.trackers.reach import check_answers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "ray-memprof"
"""Where the variables of MLflow name none."""
FINDINGS_FILE = "findings.md"
_MOST_METRICS = 1000
_MOST_PARAMS = 100
"""The most of each that MLflow takes in one request."""
_MOST_LETTERS = 500
"""Of a parameter; servers refuse longer ones."""
_One = TypeVar("_One")


def send_to_mlflow(account: Account) -> str:
    """Make one run of MLflow and end it; returns where its artifacts are.

    Raises:
        ConnectionError: no server answers.
        Exception: MLflow's own: its server refuses the run, or its local store lacks packages.
    """
    from mlflow import MlflowClient, get_tracking_uri
    from mlflow.entities import Param, RunTag
    from mlflow.entities.run_status import RunStatus

    check_answers(get_tracking_uri())
    client = MlflowClient()
    start_ms = None if account.start_ns is None else account.start_ns // 1_000_000
    run = client.create_run(_experiment_id(client), run_name=account.title, start_time=start_ms)
    run_id = run.info.run_id
    params = [Param(key, value[:_MOST_LETTERS]) for key, value in flat(account.config).items()]
    facts = {**account.facts, **flat(account.versions, "versions.")}
    tags = [RunTag(key, value[:_MOST_LETTERS]) for key, value in facts.items()]
    client.log_batch(run_id, tags=tags)
    for few in _parts(params, _MOST_PARAMS):
        client.log_batch(run_id, params=few)
    for some in _parts(list(_metrics(account)), _MOST_METRICS):
        client.log_batch(run_id, metrics=some)
    client.log_text(run_id, account.findings, FINDINGS_FILE)
    if account.report is not None:
        client.log_artifact(run_id, str(account.report))
    status = RunStatus.to_string(RunStatus.FINISHED if account.is_ok else RunStatus.FAILED)
    ended_ms = None if account.end_ns is None else account.end_ns // 1_000_000
    client.set_terminated(run_id, status, end_time=ended_ms)
    return f"run {run_id} in {get_tracking_uri()}"


def _experiment_id(client: "MlflowClient") -> str:
    """The experiment that MLflow's variables name, or ours, which is made where it is not there."""
    from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME

    if (given := MLFLOW_EXPERIMENT_ID.get()) is not None:
        return str(given)
    name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
    known = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if known is None else known.experiment_id)


def _metrics(account: Account) -> "Iterator[Metric]":
    """Curves, with a step for each millisecond since the run began to be recorded, and peaks at step 0."""
    from mlflow.entities import Metric

    end_ms = (account.end_ns or 0) // 1_000_000
    for name, number in account.numbers.items():
        yield Metric(name, float(number), end_ms, 0)
    for moment in account.moments:
        for name, number in moment.numbers.items():
            yield Metric(name, float(number), moment.t_ns // 1_000_000, moment.since_ns // 1_000_000)


def _parts(all_of: Sequence[_One], most: int) -> Iterator[Sequence[_One]]:
    for start in range(0, len(all_of), most):
        yield all_of[start : start + most]
