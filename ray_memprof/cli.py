"""The command line: launch, and commands that work with recorded runs, each in a file of commands/.

    $ ray-memprof launch configs/baseline.yaml
    $ ray-memprof query peak_by_rank
    $ ray-memprof compare baseline memory_opt
    $ ray-memprof flame latest
    $ ray-memprof export latest --format perfetto
    $ ray-memprof import dump/rank*.pickle --name theirs
    $ ray-memprof what-if latest --device-memory '24 GiB'
    $ ray-memprof mcp --output-dir profiler_logs

An error of the user is printed as one line and a hint; the exit code is that of errors.py.
"""

import typer

from ray_memprof import launch
from ray_memprof.commands import (
    compare,
    diagnose,
    export,
    finish,
    flame,
    import_,
    mcp,
    query,
    report,
    what_if,
)

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__.split("\n")[0]
)
app.command("launch")(launch.main)
app.command("query")(query.query)
app.command("diagnose")(diagnose.diagnose)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("flame")(flame.flame)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("what-if")(what_if.what_if)
app.command("mcp")(mcp.mcp)
app.command("finish")(finish.finish)


if __name__ == "__main__":
    app()
