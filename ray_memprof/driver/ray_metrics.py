"""What each rank holds, as gauges of Ray's own metrics, which Prometheus reads on each node of a cluster.

    metrics = RankGauges(name="test", run_id="20260102-030405-ab12")
    metrics.show(beats)                       # as often as beats come

Set by the driver from the beats that it gets anyway: the ranks do nothing for it. Ray puts `ray_` before each name.
Without ray[default] nobody reads them, and setting them has no effect. docs/grafana.json draws them.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from ray_memprof.recorder.status import Beat

GAUGES: Mapping[str, str] = {
    "memprof_allocated_bytes": "bytes in live tensors of a rank",
    "memprof_reserved_bytes": "bytes that torch's allocator holds of the device of a rank",
    "memprof_device_used_bytes": "bytes in use on the device of a rank, by anybody",
    "memprof_step": "the step that a rank works on, from 0; -1 outside the loop",
}
"""Every gauge, with its description."""
LABELS = ("name", "run_id", "rank")
_READERS = ("aiohttp_cors", "prometheus_client")
"""Packages of ray[default] without which Ray starts no agent that hands its metrics out."""


def missing_readers() -> str:
    """A line if nobody can read the gauges here; "": they can be read."""
    missing = [name for name in _READERS if find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"logging.ray_metrics has no effect: Ray hands out no metrics without {', '.join(missing)} "
        "(pip install 'ray[default]')"
    )


class RankGauges:
    """The gauges of one run; Ray must be there.

    Args:
        name: of the run.
        run_id: of the run.
    """

    def __init__(self, name: str, run_id: str) -> None:
        from ray.util.metrics import Gauge

        self._run = {"name": name, "run_id": run_id}
        self._gauges = {one: Gauge(one, text, tag_keys=LABELS) for one, text in GAUGES.items()}

    def show(self, beats: Iterable[Beat]) -> None:
        """Set the gauges of every rank that sent a beat."""
        for beat in beats:
            tags = {**self._run, "rank": str(beat.rank)}
            for one, gauge in self._gauges.items():
                gauge.set(getattr(beat, one.removeprefix("memprof_")), tags=tags)
