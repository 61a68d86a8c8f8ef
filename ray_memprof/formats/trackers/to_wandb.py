"""A run as Weights & Biases shows it: its summary, curves over time, the configuration, and report.html as an artifact.

    send_to_wandb(account)

Where it goes is what the library says: WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, and WANDB_MODE=offline for a folder that
`wandb sync` sends later.
"""

from ray_memprof.errors import ConfigError
from ray_memprof.formats.trackers.account import Account
from ray_memprof.formats.trackers.reach import check_answers

PROJECT = "ray-memprof"
"""Where WANDB_PROJECT names none."""
ARTIFACT = "report"


def send_to_wandb(account: Account) -> str:
    """Make one run of wandb and end it; returns where it is: an address, or a folder if it is offline.

    Raises:
        ConfigError: wandb is switched off.
        ConnectionError: no server answers.
        Exception: wandb's own: it is not logged in, or its server refuses the run.
    """
    import wandb

    given = wandb.setup().settings
    if given.mode == "disabled":
        raise ConfigError(
            f"{account.title} was not sent to wandb, which is switched off (mode: disabled)",
            hint="unset WANDB_MODE, or set WANDB_MODE=offline",
        )
    if given.mode not in ("offline", "dryrun"):
        check_answers(given.base_url)
    run = wandb.init(
        project=given.project or PROJECT,
        name=account.title,
        job_type=account.facts.get("workload"),
        notes=account.findings,
        config={**account.config, "versions": dict(account.versions)},
        # It would otherwise take the lines of this process for those of the run, and measure this process.
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
    )
    # `seconds` is the axis of the curves: wandb counts calls of log, which are no time.
    run.define_metric("seconds", hidden=True)
    run.define_metric("*", step_metric="seconds")
    for moment in account.moments:
        run.log({"seconds": moment.since_ns / 1e9, **moment.numbers})
    run.summary.update({**account.facts, **account.numbers, "findings": account.findings})
    if account.report is not None:
        artifact = wandb.Artifact(ARTIFACT, type=ARTIFACT, description=f"report of {account.title}")
        artifact.add_file(str(account.report))
        run.log_artifact(artifact)
    where = run.settings.sync_dir if run.offline else run.url
    run.finish(exit_code=0 if account.is_ok else 1)
    return str(where)
