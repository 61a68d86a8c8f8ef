"""How the ranks of one start come to one run folder without a launcher: rank 0 makes it, and announces it in a file.

    folder = make_joint(output_dir, "nanogpt", key, config_text=text, num_ranks=8)      # rank 0
    folder = await_joint(output_dir, "nanogpt", key)                                    # the other ranks

On a disk that rank 0 does not share, the first rank of the host makes a folder for the ranks of that host, in the same
way, once it has waited patience_s(output_dir) for rank 0's; driver/joining.py takes the folders together.

The file lies beside the runs of that name, and goes when rank 0 ends. One that an earlier start left behind, because
its rank 0 was killed, is told by its process, or on another host by its age.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray_memprof.errors import NeverArrived
from ray_memprof.store.processes import has_ended, process_facts
from ray_memprof.store.run_files import announcement_name
from ray_memprof.store.run_folder import RunFolder, is_run
from ray_memprof.store.whole_file import replacing


class NoFolderYet(NeverArrived):
    """Rank 0 has not announced a folder on this disk."""


WAIT_S = 60.0
"""Seconds that a rank waits for the folder: all ranks start together, but import torch at different speeds."""
_WAIT_HERE_S = 10.0
"""The same for the first rank of a host, on a disk of that host: rank 0 may be another node of the same machine."""
_WAIT_AFAR_S = 45.0
"""The same on a disk of the network: less than WAIT_S, for the other ranks of the host wait for this one."""
_HOST_DISKS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})
"""Kinds of file systems that no other host writes to."""
_MOUNTS = Path("/proc/self/mounts")
_FRESH_S = 120.0
"""So long an announcement of another host counts: whether its process still runs cannot be seen from here."""
_LOOK_S = 0.05


def make_joint(output_dir: Path, name: str, key: str, *, config_text: str, num_ranks: int) -> RunFolder:
    """Make the folder of a run and announce it; for rank 0.

    Args:
        output_dir: where runs lie.
        name: of the run.
        key: of the start; "": there is only this rank, and nothing is announced.
        config_text: for config.yaml.
        num_ranks: how many ranks the run has.

    Raises:
        PreflightFailed: it cannot be made.
    """
    folder = RunFolder.create(output_dir, name, config_text=config_text, num_ranks=num_ranks)
    if key:
        _announce(output_dir, name, key, run_id=folder.run_id)
    return folder


def announce_failure(output_dir: Path, name: str, key: str, why: str) -> None:
    """Let the other ranks know that rank 0 makes no folder, so that none of them waits for it; raises OSError."""
    (output_dir / name).mkdir(parents=True, exist_ok=True)
    _announce(output_dir, name, key, failed=why)


def await_joint(
    output_dir: Path,
    name: str,
    key: str,
    *,
    wait_s: float = WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> RunFolder:
    """The folder that rank 0 of the same start has made, as soon as it is there.

    Raises:
        NoFolderYet: it is not there after `wait_s`.
        NeverArrived: rank 0 has said that there will be none.
    """
    path = _announcement(output_dir, name, key)
    until = clock() + wait_s
    while True:
        facts = _read(path)
        if facts is not None and _is_of_now(facts):
            if "failed" in facts:
                raise NeverArrived(f"rank 0 is not recorded: {facts['failed']}")
            folder = path.parent / facts["run_id"]
            if is_run(folder, facts["run_id"]):
                return RunFolder.open(folder)
        if clock() >= until:
            raise NoFolderYet(
                f"rank 0 made no run folder in {path.parent} within {wait_s:.0f} s",
                hint="set --output-dir to a folder that all ranks share",
            )
        sleep(_LOOK_S)


def patience_s(output_dir: Path) -> float:
    """Seconds that the first rank of a host waits for rank 0's folder before it makes one for its host."""
    return _WAIT_HERE_S if _disk_kind(output_dir.resolve()) in _HOST_DISKS else _WAIT_AFAR_S


def _disk_kind(folder: Path) -> str:
    """The kind of the file system that holds `folder`, which may not be there yet; "": it is not known."""
    found, kind = Path(""), ""
    with suppress(OSError):
        for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, point, this, *_ = line.split(" ")
            place = Path(point.replace("\\040", " "))
            # Of several mounts at one place, the last one is seen.
            if folder.is_relative_to(place) and len(place.parts) >= len(found.parts):
                found, kind = place, this
    return kind


def withdraw(output_dir: Path, name: str, key: str) -> None:
    """Remove the announcement: no rank of this start can come any more. Does nothing where there is none."""
    if key:
        with suppress(OSError):
            _announcement(output_dir, name, key).unlink()


def _announce(output_dir: Path, name: str, key: str, **what: str) -> None:
    with replacing(_announcement(output_dir, name, key)) as temporary:
        facts = {**what, "t_s": time.time(), **process_facts()}
        temporary.write_text(json.dumps(facts), encoding="utf-8")


def _announcement(output_dir: Path, name: str, key: str) -> Path:
    return output_dir / name / announcement_name(key)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_of_now(facts: dict[str, Any]) -> bool:
    """Whether the rank 0 that wrote this is of this start, and not one of an earlier start that was killed."""
    ended = has_ended(facts)
    return abs(time.time() - facts["t_s"]) <= _FRESH_S if ended is None else not ended
