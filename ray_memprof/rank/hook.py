"""Records processes that nobody starts through us, where the environment asks for it: RAY_MEMPROF=1.

    RAY_MEMPROF=1 torchrun --nproc_per_node 8 train.py
    RAY_MEMPROF=settings.yaml accelerate launch train.py

torch calls record_where_asked() of ray_memprof at the end of `import torch`, in every process: it is an entry point of
the group torch.backends, and calls load() where RAY_MEMPROF is set. A process is recorded if a starter gave it a rank,
or as soon as it starts CUDA. A settings file has the keys of settings.Settings. Nothing here may break the import:
everything is caught.
"""

import os
import sys

VARIABLE = "RAY_MEMPROF"


def load() -> None:
    """Record this process, if it is one that is asked for."""
    asked = os.environ.get(VARIABLE, "")
    if asked in ("", "0"):
        return
    try:
        _load(asked)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"ray-memprof: {VARIABLE}={asked}: nothing is recorded: {text}\n")


def _load(asked: str) -> None:
    from ray_memprof.rank.claim import RECORDED
    from ray_memprof.rank.process_end import ProcessEnd
    from ray_memprof.rank.session import Session, is_claimed
    from ray_memprof.rank.starters import start_of

    # Workers of a DataLoader, and whatever else a rank starts, import torch too, and inherit the variables of the rank.
    # A program under ray_memprof.record is about to be recorded.
    if RECORDED in os.environ or is_claimed():
        return
    settings, start = _settings(asked), start_of(os.environ)
    session = Session(settings, start, _program())
    ProcessEnd(session).listen()
    # The variables of srun and mpirun are also in what they start torchrun with.
    if "RANK" in os.environ:
        session.begin()
    else:
        _when_cuda_starts(session.begin)


def _when_cuda_starts(begin: "Callable[[], None]") -> None:
    """Call `begin` when the process starts CUDA: elastic agents and tools import torch, and never do."""
    import torch

    start: Callable[[], None] = torch.cuda._lazy_init

    def starting() -> None:
        start()
        # Not by torch.cuda._lazy_call: what is called there holds a lock that the recorder's threads would wait for.
        if torch.cuda.is_initialized():
            torch.cuda._lazy_init = start
            begin()

    if torch.version.cuda is not None:
        torch.cuda._lazy_init = starting


def _settings(asked: str) -> "Settings":
    from pathlib import Path

    from ray_memprof.errors import ConfigError
    from ray_memprof.rank.settings import Settings

    if asked == "1":
        return Settings()
    import yaml

    try:
        found = yaml.safe_load(Path(asked).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the file of settings cannot be read: {error}") from error
    return Settings.of(found)


def _program() -> "Program":
    """What runs in this process, as far as Python knows."""
    from pathlib import Path

    from ray_memprof.rank.settings import Program

    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return Program(module=spec.name, args=tuple(sys.argv[1:]))
    first = sys.argv[0] if sys.argv else ""
    is_file = first not in ("", "-c", "-") and Path(first).is_file()
    return Program(path=Path(first) if is_file else None, args=tuple(sys.argv[1:]))


TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes longer to import than all of this
    from collections.abc import Callable

    from ray_memprof.rank.settings import Program, Settings
