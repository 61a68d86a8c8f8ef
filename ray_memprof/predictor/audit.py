"""A measured run predicts itself: the prediction's peaks beside the measured ones, by rank, stage and account.

    for line in audited(run_dir): print(line)          # any recorded run of wan
    audit_after(config, run_dir, print)                # at the end of a launch: only where it is quick

Takes what the run has left: config.yaml, the environment of its ranks, the name of its GPU. Leaves the table predicted
in the run folder, and writes anew what is derived from its tables (run.duckdb, report.html, summary.json).
"""

import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_memprof.config.load import effective_yaml, load_config
from ray_memprof.config.rules import check_files
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError, RunError
from ray_memprof.predictor.effort import estimated_s
from ray_memprof.predictor.fake_rank import environment_of, rules_of
from ray_memprof.predictor.gpu_profile import gpu_profile, profile_of
from ray_memprof.predictor.run import Say, check, predict_tables
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.rank.versions import ATTENTION_PACKAGES
from ray_memprof.report.derive import derive
from ray_memprof.store.run_files import CONFIG_FILE
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import write_predicted
from ray_memprof.wording import first_line, rank_text

MOST_S = 10.0
"""A launch predicts its run by itself where that takes no longer than this."""
_ACCOUNTS = {"allocated": "allocated", "reserved": "reserved", "device_used": "device used"}

Row = dict[str, Any]


def audit_after(config: RunConfig, run_dir: Path, say: Say) -> None:
    """Predict a run that has just ended well, as logging.predict has it. Raises no error: the run is complete.

    Args:
        config: of the run.
        run_dir: the run.
        say: is told what was found, or in one line why nothing was predicted.
    """
    if not config.logging.profile_memory or config.logging.predict is False:
        return
    if config.workload != "wan" or config.model.device == "cpu":
        return  # nothing can be predicted, and nobody asked for it: rules.check refuses that
    try:
        estimate_s = estimated_s(config)
        if config.logging.predict is None and estimate_s > MOST_S:
            command = f"ray-memprof audit {shlex.quote(str(run_dir))}"
            say(f"not predicted afterwards, for it takes about {estimate_s:.0f} s: {command}")
            return
        for line in audited(run_dir):
            say(line)
    except RunError as error:
        say(f"not predicted afterwards: {error}")
    except KeyboardInterrupt:
        say("not predicted afterwards: interrupted; the run itself is complete")
    except Exception as error:
        say(f"not predicted afterwards: {type(error).__name__}: {first_line(error)}")


def audited(run_dir: Path, gpu: str = "") -> Iterator[str]:
    """Predict a recorded run; yields lines for people.

    Args:
        run_dir: the run.
        gpu: a GPU model that has a profile, or the path of one; "": that of the run.

    Raises:
        ConfigError: it is no measured run of wan, or it cannot be predicted.
        StartFailed: a process that predicts a rank was killed.
    """
    began = time.monotonic()
    folder, ranks = _recorded(run_dir)
    config = load_config(run_dir / CONFIG_FILE)
    check(config)
    check_files(config)
    gpu = gpu or _profile_for(ranks)
    profile = gpu_profile(gpu)
    environment = environment_of(config, config.num_ranks, folder.facts.get("environment", {}))
    rules_of(environment)
    yield f"predicting {folder.facts['name']}: {config.num_ranks} x {profile.name} ({profile.source})"
    packages = attention_packages(folder.facts)
    rows, ended = _peaks(config, gpu, environment, packages)
    write_predicted(run_dir, rows)
    took_s = time.monotonic() - began
    versions = {"measured": folder.facts.get("versions", {}).get("torch", ""), "predicted": _torch()}
    folder.note(
        prediction={
            "gpu": profile.name,
            "source": profile.source,
            "torch": versions["predicted"],
            "took_s": round(took_s, 3),
            "reason": ended,
        }
    )
    derive(run_dir, list(folder.facts.get("problems", ())))
    if ended:
        yield f"the prediction ended early: {ended}"
    if versions["measured"].split("+")[0] != versions["predicted"].split("+")[0]:
        yield f"measured with torch {versions['measured']}, predicted with torch {versions['predicted']}"
    with open_run(run_dir) as connection:
        yield from _told(rows_of(connection, "predicted_vs_measured"), took_s)


def _recorded(run_dir: Path) -> tuple[RunFolder, list[Row]]:
    """The folder of a measured run of wan, and the rows of its ranks. Raises ConfigError."""
    folder = RunFolder.open(run_dir)
    with open_run(run_dir) as connection:
        runs, ranks = fetched(connection, "FROM runs"), fetched(connection, "FROM ranks ORDER BY rank")
        ((has_spans,),) = connection.execute("SELECT EXISTS (SELECT 1 FROM spans)").fetchall()
    source = runs[0]["source"] if runs else ""
    if source != "cuda":
        raise ConfigError(
            f"{run_dir} is a run of source {source or 'unknown'}: only what a GPU has measured is held against a "
            "prediction",
            hint="ray-memprof compare sets any two runs side by side",
        )
    if not (run_dir / CONFIG_FILE).exists() or runs[0]["workload"] != "wan":
        raise ConfigError(
            f"{run_dir} is no run of wan: only those are predicted",
            hint="a program of your own must run to be measured",
        )
    if not has_spans:
        raise ConfigError(f"{run_dir} recorded nothing that a prediction could be held against")
    return folder, ranks


def _profile_for(ranks: Sequence[Row]) -> str:
    """The profile of the GPU that all ranks had. Raises ConfigError."""
    names = sorted({row["gpu_name"] for row in ranks})
    found = {profile_of(row["gpu_name"], row["device_total_bytes"]) for row in ranks}
    if len(found) != 1 or not (gpu := found.pop()):
        raise ConfigError(
            f"there is no profile of the GPU of this run: {', '.join(names) or 'not known'}",
            hint="on a machine with one: ray-memprof calibrate --out gpu.yaml, then --gpu gpu.yaml here",
        )
    return gpu


def attention_packages(facts: Mapping[str, Any]) -> list[str]:
    """The packages of attention kernels that were installed where a run ran, from its facts."""
    return [name for name in ATTENTION_PACKAGES if name in facts.get("versions", {})]


def _peaks(
    config: RunConfig, gpu: str, environment: dict[str, str], packages: Sequence[str]
) -> tuple[dict[int, list[Row]], str]:
    """The predicted peaks of each rank, and why the prediction ended early; "": it did not."""
    logging = config.logging.model_copy(update={"level": "event", "profile_memory": True})
    config = config.model_copy(update={"logging": logging})
    if gpu.endswith((".yaml", ".yml")):
        gpu = str(Path(gpu).resolve())
    # A folder of its own, which no list of runs has.
    with tempfile.TemporaryDirectory(prefix="ray-memprof-audit-") as scratch:
        text = effective_yaml(config)
        folder = RunFolder.create(Path(scratch), config.name, config_text=text, num_ranks=config.num_ranks)
        ended = predict_tables(config, folder, gpu, environment, packages, lambda _: None)
        rows: dict[int, list[Row]] = {}
        with open_run(folder.path) as connection:
            for row in rows_of(connection, "account_peaks"):
                rows.setdefault(row["rank"], []).append(row)
    return rows, ended.reason


def _told(rows: Sequence[Row], took_s: float) -> Iterator[str]:
    """The largest error of each account over the ranks, and in which stages it is beyond what is stated."""
    texts = []
    for account, name in _ACCOUNTS.items():
        whole = [row for row in rows if row["stage"] is None and row["account"] == account]
        known = [row for row in whole if row["error_fraction"] is not None]
        if known:
            worst = max(known, key=lambda row: abs(row["error_fraction"]))
            texts.append(f"{name} {worst['error_fraction']:+.2%} (stated: {worst['stated_fraction']:.1%})")
    yield f"predicted against measured, the worst rank: {', '.join(texts)}; {took_s:.0f} s"
    places: dict[str, set[int]] = {}
    for row in rows:
        if row["is_beyond"]:
            name = _ACCOUNTS[row["account"]]
            places.setdefault(f"{name} in {row['stage'] or 'the whole run'}", set()).add(row["rank"])
    listed = [f"{place} on {rank_text(sorted(ranks))}" for place, ranks in places.items()]
    if listed:
        yield f"beyond the stated error: {'; '.join(listed)}: ray-memprof diagnose says what it means"


def _torch() -> str:
    from importlib.metadata import version

    return version("torch")
