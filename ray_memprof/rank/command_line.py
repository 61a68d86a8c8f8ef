"""The command line of ray_memprof.record: options of the recording, then the program and its own arguments.

    settings, program = parsed(["--name", "run1", "train.py", "--steps", "9"])

Needs only the standard library: what is imported here is in the program's process.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ray_memprof.errors import ConfigError
from ray_memprof.rank.settings import RANGES, Program, Settings
from ray_memprof.store.find_run import OUTPUT_DIR_VARIABLE


def parsed(argv: Sequence[str]) -> tuple[Settings, Program]:
    """What to record, and of which program.

    Raises:
        ConfigError: an option cannot be used, or there is no such program.
        SystemExit: with 2, an option is unknown or lacks its value; argparse has said which.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ray_memprof.record",
        description="Run a program and record its memory.",
        usage="%(prog)s [options] (FILE | -m MODULE) [arguments of the program]",
        allow_abbrev=False,
    )
    parser.add_argument("--name", default="", help="of the run; default: the program's name")
    parser.add_argument("--level", default="event", help="stage, event or stack; default: event")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help=f"folder for runs; default: ${OUTPUT_DIR_VARIABLE}, else profiler_logs",
    )
    parser.add_argument(
        "--module-spans",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a span for each module whose name matches, such as 'blocks.*'; may be repeated",
    )
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="CLASS=NAME",
        help="the name of a component, by the class of its module; may be repeated",
    )
    parser.add_argument(
        "--ranges",
        action="append",
        default=[],
        metavar="KIND",
        help=f"a span for each range of the program: {' or '.join(RANGES)}; may be repeated",
    )
    parser.add_argument("--sample-interval-s", type=float, default=0.1, help="seconds between two samples")
    parser.add_argument("--device", default="", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module, and its arguments")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a Python file, and its arguments")
    found = parser.parse_args(argv)
    settings = Settings(
        name=found.name,
        level=found.level,
        output_dir=found.output_dir,
        module_spans=tuple(found.module_spans),
        components=_components(found.component),
        ranges=tuple(found.ranges),
        sample_interval_s=found.sample_interval_s,
        device=found.device,
    ).checked()
    return settings, _program(found.module, found.program)


def _components(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        kind, is_there, name = text.partition("=")
        if not (kind and is_there and name):
            raise ConfigError(f"--component {text}: it is not CLASS=NAME", hint="--component WanModel=dit")
        found[kind] = name
    return found


def _program(module: list[str] | None, rest: list[str]) -> Program:
    if module:
        return Program(module=module[0], args=tuple(module[1:]))
    if not rest:
        raise ConfigError(
            "no program is named", hint="python -m ray_memprof.record [options] train.py [arguments]"
        )
    path = Path(rest[0])
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder", hint="a module is named with -m")
    return Program(path=path, args=tuple(rest[1:]))
