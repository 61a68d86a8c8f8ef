"""Run a configuration under Ray and record where its memory goes. Read this file first: it is the main path.

    python -m ray_memprof.launch configs/baseline.yaml --set generation.sample_steps=4

Leaves profiler_logs/<name>/<run_id>/ (store/run_files.py lists what is in it), also if the run fails. The exit codes
are in errors.py; a configuration that cannot be used is refused in a second, before Ray and torch are imported.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_memprof.config.flags import OutputDir, Set
from ray_memprof.errors import EXIT_OK, RunError
from ray_memprof.wording import visible

if TYPE_CHECKING:
    from ray_memprof.config.matrix import Expanded
    from ray_memprof.config.run_config import RunConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ModuleSpans = Annotated[
    list[str], typer.Option(metavar="PATTERN", help="Short for --set 'script.module_spans=[PATTERN, ...]'.")
]
DryRun = Annotated[bool, typer.Option(help="Only check and print the configuration with all defaults.")]
Plain = Annotated[bool, typer.Option(help="Print lines instead of a table, also on a terminal.")]


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="YAML file; with a matrix, one run for each row.")],
    overrides: Set = [],  # noqa: B006 - typer copies it
    module_spans: ModuleSpans = [],  # noqa: B006
    output_dir: OutputDir = None,
    dry_run: DryRun = False,
    plain: Plain = False,
) -> None:
    """Run CONFIG under Ray and record its memory."""
    from ray_memprof.config.matrix import expand
    from ray_memprof.config.yaml_file import short_forms
    from ray_memprof.store.find_run import runs_folder

    overrides = [*overrides, *short_forms(module_spans, output_dir)]
    launch(lambda: expand(config, overrides, output_dir=runs_folder()), dry_run=dry_run, plain=plain)


def launch(expand: "Callable[[], Expanded]", *, dry_run: bool, plain: bool) -> None:
    """Do the runs that `expand` gives, one after the other; ends with the exit code of the last that failed."""
    from ray_memprof.config.load import effective_yaml
    from ray_memprof.config.rules import check_files, check_packages

    code = EXIT_OK
    try:
        expanded = expand()
        if dry_run:
            sys.stdout.write("---\n".join(map(effective_yaml, expanded.runs)))
            return
        for one in expanded.runs:
            check_files(one)
            check_packages(one)
        folders: list[Path] = []
        for one in expanded.runs:
            ended, folder = run(one, plain=plain)
            code = ended or code
            folders.append(folder)
            if code >= 128:  # a signal ended this run: the person does not want the other runs either
                break
        else:
            if expanded.page is not None:
                from ray_memprof.report.comparison_page import set_side_by_side

                set_side_by_side(folders, expanded.page)
    except RunError as error:
        sys.stderr.write(visible(error.lines()))
        code = error.exit_code
    raise typer.Exit(code)


def run(config: "RunConfig", *, plain: bool) -> tuple[int, Path]:
    """Do one run, from making its folder to writing its report; returns the exit code and the folder."""
    from ray_memprof.driver import ending, own_ray
    from ray_memprof.driver.interrupts import Interrupts
    from ray_memprof.driver.live import Live
    from ray_memprof.driver.overview import before_ray
    from ray_memprof.driver.run_state import RunState
    from ray_memprof.store.gather import gather

    state = RunState.begin(config)
    screen = Live(config, config.num_ranks, plain, stages_s=state.stages_s)
    with screen as live, Interrupts(live.say) as interrupts:
        with ending.ending(state, live, interrupts):
            for line in before_ray(config, state.folder.path):
                live.say(line)
            own_ray.guard(config.ray.address)
            from ray_memprof.driver.cluster import Cluster  # imports Ray

            with Cluster(state, live, interrupts) as cluster, ending.ending(state, live, interrupts):
                cluster.start()
                verdict = ending.supervise(cluster, state, live, interrupts)
                ending.settle(state, verdict, live)  # now: at a second Ctrl-C Ray's end has 2.5 s
                state.problems += cluster.end(verdict)
                gathered = gather(state.folder.path, config.recorded_ranks, cluster.remotes(verdict))
                state.problems += [*gathered.problems, *cluster.clear(gathered.received)]
                state.elsewhere = cluster.elsewhere(gathered.received)
        if not state.is_abandoned:
            with ending.ending(state, live, interrupts):
                ending.write_results(state, live, interrupts)
        live.summary(ending.summary(state))
    if state.exit_code == EXIT_OK:
        from ray_memprof.predictor.audit import audit_after

        audit_after(config, state.folder.path, live.say)
    return state.exit_code, state.folder.path


if __name__ == "__main__":
    app()
