"""A run as TensorBoard reads it: curves over time, peaks as scalars, and what was found as text.

    write_events(account, Path("profiler_logs/test/latest/tensorboard"))
    # then: tensorboard --logdir profiler_logs

Writes one file of events with the library of TensorBoard itself, without torch. A step is a millisecond since the run
began to be recorded; the wall time is that of the run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ray_memprof.formats.trackers.account import Account, flat
from ray_memprof.store.whole_file import check_target

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

EVENTS = "events.out.tfevents.*"


def write_events(account: Account, folder: Path) -> Path:
    """Write a run's events into `folder`; files of events that lie there from an earlier export are replaced.

    Args:
        account: of the run.
        folder: a folder for this run alone: TensorBoard takes it for one run.

    Raises:
        ConfigError: `folder` cannot be made or written.
        DiskFull: no room for the file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    check_target(folder / "events")
    earlier = list(folder.glob(EVENTS))
    writer = EventFileWriter(str(folder), filename_suffix=".ray-memprof")
    for moment in account.moments:
        values = [Summary.Value(tag=name, simple_value=number) for name, number in moment.numbers.items()]
        step = moment.since_ns // 1_000_000
        writer.add_event(Event(wall_time=moment.t_ns / 1e9, step=step, summary=Summary(value=values)))
    ended_s = (account.end_ns or 0) / 1e9
    scalars = [Summary.Value(tag=f"peaks/{name}", simple_value=one) for name, one in account.numbers.items()]
    texts = [_text("findings", account.findings), _text("configuration", _configuration(account))]
    writer.add_event(Event(wall_time=ended_s, step=0, summary=Summary(value=[*scalars, *texts])))
    writer.close()
    for path in earlier:
        path.unlink()
    return folder


def _configuration(account: Account) -> str:
    """How the run ended and every key of its configuration, as Markdown."""
    rows = {**account.facts, **flat(account.config), **flat(account.versions, "versions.")}
    return "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {rows[key]} |" for key in rows)])


def _text(tag: str, text: str) -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    return Summary.Value(
        tag=tag,
        metadata=create_summary_metadata(display_name=tag, description=""),
        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    )
