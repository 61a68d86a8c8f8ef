"""A run as the textfile collector of Prometheus's node_exporter reads it: one file of gauges.

    write_textfile(account, Path("/var/lib/node_exporter/ray-memprof-test.prom"))

Every gauge has the labels `name` and `run_id`; GAUGES lists them. What a run holds while it goes on, Ray's own metrics
tell (driver/ray_metrics.py).
"""

from collections.abc import Mapping
from pathlib import Path

from ray_memprof.formats.trackers.account import Account
from ray_memprof.store.whole_file import check_target, whole_file

GAUGES: Mapping[str, str] = {
    "ray_memprof_run_info": "1; how the run ended and what it was is in its labels",
    "ray_memprof_run_end_timestamp_seconds": "when the run ended, since 1970",
    "ray_memprof_peak_bytes": "the most that a rank held, by measure: allocated, reserved, device_used",
    "ray_memprof_stage_peak_bytes": "the same within a stage",
    "ray_memprof_peak_at_least": "1: ray_memprof_peak_bytes may have been more; 0: it is what was held",
    "ray_memprof_device_total_bytes": "memory of the fullest device",
    "ray_memprof_unexplained_fraction": "of device used at the peak, on the rank with the largest share",
    "ray_memprof_findings": "how many findings the diagnosis has, by severity",
}
"""Every gauge that is written, with its help text."""
_RUN = ("name", "run_id")
_LABELS = {
    "ray_memprof_run_info": (*_RUN, "status", "source", "workload"),
    "ray_memprof_peak_bytes": (*_RUN, "rank", "measure"),
    "ray_memprof_stage_peak_bytes": (*_RUN, "rank", "stage", "measure"),
    "ray_memprof_peak_at_least": (*_RUN, "rank", "measure"),
    "ray_memprof_findings": (*_RUN, "severity"),
}


def write_textfile(account: Account, path: Path) -> Path:
    """Write a run's gauges to `path`, whole or not at all: the collector may read it at any time.

    Args:
        account: of the run.
        path: the collector takes files that end in .prom.

    Raises:
        ConfigError: `path` cannot be written.
        DiskFull: no room for the file.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    check_target(path)
    registry = CollectorRegistry()
    gauges = {
        name: Gauge(name, text, _LABELS.get(name, _RUN), registry=registry) for name, text in GAUGES.items()
    }
    run = {"name": account.name, "run_id": account.run_id}
    facts = {name: account.facts.get(name, "") for name in ("status", "source", "workload")}
    gauges["ray_memprof_run_info"].labels(**run, **facts).set(1)
    if account.end_ns is not None:
        gauges["ray_memprof_run_end_timestamp_seconds"].labels(**run).set(account.end_ns / 1e9)
    for name in ("device_total_bytes", "unexplained_fraction"):
        if name in account.headlines:
            gauges[f"ray_memprof_{name}"].labels(**run).set(account.headlines[name])
    for peak in account.peaks:
        labels = {**run, "rank": str(peak.rank), "measure": peak.measure}
        if peak.stage:
            gauges["ray_memprof_stage_peak_bytes"].labels(**labels, stage=peak.stage).set(peak.peak_bytes)
        else:
            gauges["ray_memprof_peak_bytes"].labels(**labels).set(peak.peak_bytes)
            gauges["ray_memprof_peak_at_least"].labels(**labels).set(int(peak.is_at_least))
    for severity, count in account.num_severities.items():
        gauges["ray_memprof_findings"].labels(**run, severity=severity).set(count)
    with whole_file(path) as temporary:
        temporary.write_bytes(generate_latest(registry))
    return path
