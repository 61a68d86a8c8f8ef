"""Hands a run to one of the services, and says where it went in a line; also as a process of its own.

    send(run_dir, Service.WANDB)          # "wandb: https://wandb.ai/..."
    python -m ray_memprof.formats.trackers.send tensorboard profiler_logs/test/latest

The driver of a run starts it as a process, since what a service's library does (threads, questions on the terminal, a
server that does not answer) must not reach the run.
"""

import sys
from pathlib import Path

from ray_memprof.errors import RunError, ServiceFailed
from ray_memprof.formats.trackers.account import Account, account_of
from ray_memprof.formats.trackers.services import Service, check_service
from ray_memprof.wording import error_line, visible

TENSORBOARD_DIR = "tensorboard"
"""In the folder of the run; --out names another one."""
_HINTS = {
    Service.WANDB: "log in with `wandb login`, or set WANDB_MODE=offline and send it later with `wandb sync`",
    Service.MLFLOW: "name a server by MLFLOW_TRACKING_URI, or take MLflow with its local store: pip install mlflow",
}


def send(run_dir: Path, service: Service, out: Path | None = None) -> str:
    """Send a run to a service; returns the line that says where it is now.

    Args:
        run_dir: the run.
        service: where to.
        out: the folder (tensorboard) or the file (prometheus) to write; None: the folder tensorboard/ in the run, or
            <name>-<run_id>.prom.

    Raises:
        ConfigError: it is no run, the library is not installed, or `out` cannot be written.
        ServiceFailed: the library of the service refused it, or could not reach its server.
        DiskFull: no room for what is written.
    """
    check_service(service)
    account = account_of(run_dir)
    try:
        where = _sent(service, account, run_dir, out)
    except RunError:
        raise
    except Exception as error:
        reason = f"{service.value} did not take {account.title}: {error_line(error)}"
        raise ServiceFailed(reason, hint=_HINTS.get(service, "")) from error
    left = f" (without the {account.num_left_out:,} less full ranks)" if account.num_left_out else ""
    return f"{service.value}: {where}{left}"


def _sent(service: Service, account: Account, run_dir: Path, out: Path | None) -> str:
    if service is Service.WANDB:
        from ray_memprof.formats.trackers.to_wandb import send_to_wandb

        return send_to_wandb(account)
    if service is Service.MLFLOW:
        from ray_memprof.formats.trackers.to_mlflow import send_to_mlflow

        return send_to_mlflow(account)
    if service is Service.TENSORBOARD:
        from ray_memprof.formats.trackers.to_tensorboard import write_events

        return str(write_events(account, out or run_dir / TENSORBOARD_DIR))
    from ray_memprof.formats.trackers.to_prometheus import write_textfile

    return str(write_textfile(account, out or Path(f"{account.name}-{account.run_id}.prom")))


def main(service: str, run_dir: str) -> int:
    """Send a run, and print where it went, or an error and a hint; returns the exit code."""
    try:
        sys.stdout.write(visible(send(Path(run_dir), Service(service))) + "\n")
    except RunError as error:
        sys.stderr.write(visible(error.lines()))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
