"""ray-memprof run: launches a configuration, or a program without one.

$ ray-memprof run configs/baseline.yaml --set generation.sample_steps=4
$ ray-memprof run --ranks 4 train.py --lr 1e-3
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ray_memprof.config.flags import OutputDir, Set
from ray_memprof.errors import ConfigError
from ray_memprof.launch import DryRun, ModuleSpans, Plain, launch

if TYPE_CHECKING:
    from ray_memprof.config.matrix import Expanded

_SUFFIXES = (".yaml", ".yml")


class RunCommand(TyperCommand):
    """Leaves the arguments of a program alone: options of this command stand before the program, as torchrun has it.

    Behind a YAML file options may stand, too: it has no arguments of its own.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the command line."""
        takes_value = {name for one in self.params if not getattr(one, "is_flag", True) for name in one.opts}
        at = 0
        while at < len(args) and args[at].startswith("-"):
            if args[at] == "-m":  # all that follows the module is the module's
                args = [*args[: at + 2], "--", *args[at + 2 :]]
                break
            at += 2 if args[at] in takes_value else 1
        ctx.allow_interspersed_args = at < len(args) and args[at].endswith(_SUFFIXES)
        return super().parse_args(ctx, args)


def run(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CONFIG | PROGRAM [ARGUMENTS]...",
            help="A YAML file; or a Python file, and behind it its own arguments.",
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", metavar="MODULE", help="A module in place of a Python file.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes; short for --set ranks=N.")] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    module_spans: ModuleSpans = [],  # noqa: B006
    output_dir: OutputDir = None,
    dry_run: DryRun = False,
    plain: Plain = False,
) -> None:
    """Run a configuration, or a program without one, under Ray and record its memory."""
    words = list(what or [])

    def expanded() -> "Expanded":
        from ray_memprof.config.matrix import expand, expand_mapping
        from ray_memprof.config.yaml_file import short_forms
        from ray_memprof.store.find_run import runs_folder

        given = [*overrides, *([f"ranks={ranks}"] if ranks else []), *short_forms(module_spans, output_dir)]
        if module is None and words and words[0].endswith(_SUFFIXES):
            _refuse_arguments(words)
            return expand(words[0], given, output_dir=runs_folder())
        mapping = _program(module, words)
        return expand_mapping(mapping, given, source="ray-memprof run", output_dir=runs_folder())

    launch(expanded, dry_run=dry_run, plain=plain)


def _refuse_arguments(words: Sequence[str]) -> None:
    if len(words) > 1:
        raise ConfigError(
            f"{words[0]} is a configuration, and takes no arguments: {' '.join(words[1:])}",
            hint="those of a script stand in it, under script.args",
        )


def _program(module: str | None, words: Sequence[str]) -> dict[str, Any]:
    """A configuration that runs a program with its arguments, as they were typed."""
    from ray_memprof.rank.settings import Program, Settings

    if module is None and not words:
        raise ConfigError(
            "there is nothing to run",
            hint="ray-memprof run CONFIG.yaml, or ray-memprof run --ranks 4 train.py [ARGUMENTS]",
        )
    if module is not None:
        program, place = Program(module=module), {"module": module}
    else:
        program, place = Program(path=Path(words[0])), {"path": words[0]}
        words = words[1:]
    name = Settings().run_name(program)
    return {"name": name, "workload": "script", "script": {**place, "args": list(words)}}
