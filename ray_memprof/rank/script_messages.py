"""What a rank and the process of its script tell each other, as mappings that JSON can hold.

    orders = ScriptOrders.of(orders.message())        # from the rank, once: what to run, what to record
    outcome_of_message(message_of(outcome))           # from the script's process, once, at its end

Plain data, without torch, Ray and the configuration: the script's process must not import them before the script does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.status import Beat, Group, ReplayCheck


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptOrders:
    """What runs in the script's process, and what is recorded of it."""

    recording: RecordingOptions
    path: Path | None = None
    """The file; None: `module` says what runs."""
    module: str = ""
    args: tuple[str, ...] = ()
    module_spans: tuple[str, ...] = ()
    components: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[str, ...] = ()
    num_ranks: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that were not known when the process was started: MASTER_ADDR and MASTER_PORT."""
    clock: tuple[int, int] | None = None
    """Clock.marks of the clock whose offset the driver has measured; None: a clock of its own."""
    trace: Mapping[str, Any] | None = None
    """The fields of a recorder.torch_trace.TraceSchedule; None: no trace."""
    trace_file: Path | None = None

    @property
    def name(self) -> str:
        """The program as messages name it."""
        return self.module if self.path is None else self.path.name

    def message(self) -> dict[str, Any]:
        """As JSON can hold it; of() reads it."""
        recording = asdict(self.recording) | {"run_dir": str(self.recording.run_dir)}
        paths = {
            "path": None if self.path is None else str(self.path),
            "trace_file": None if self.trace_file is None else str(self.trace_file),
        }
        return asdict(self) | {"recording": recording} | paths

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "ScriptOrders":
        """What message() gave."""
        recording = message["recording"]
        read: dict[str, Any] = {
            "recording": RecordingOptions(**recording | {"run_dir": Path(recording["run_dir"])}),
            "path": None if message["path"] is None else Path(message["path"]),
            "trace_file": None if message["trace_file"] is None else Path(message["trace_file"]),
            "clock": None if message["clock"] is None else tuple(message["clock"]),
            "args": tuple(message["args"]),
            "module_spans": tuple(message["module_spans"]),
            "ranges": tuple(message["ranges"]),
        }
        return cls(**{**message, **read})


def message_of(answer: Outcome | Beat | Whereabouts | None) -> Any:
    """An answer as JSON can hold it."""
    if answer is None:
        return None
    if isinstance(answer, Whereabouts):
        joined = [[asdict(group), number] for group, number in answer.joined.items()]
        return {"stack": answer.stack, "joined": joined}
    return asdict(answer)


def outcome_of_message(message: Mapping[str, Any]) -> Outcome:
    """The Outcome that message_of() was given."""
    check = None if message["check"] is None else ReplayCheck(**message["check"])
    return Outcome(**{**message, "check": check, "problems": tuple(message["problems"])})


def whereabouts_of_message(message: Mapping[str, Any]) -> Whereabouts:
    """The Whereabouts that message_of() was given."""
    joined = {Group(**group): number for group, number in message["joined"]}
    return Whereabouts(stack=message["stack"], joined=joined)
