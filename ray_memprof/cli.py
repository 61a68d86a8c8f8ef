"""The command line: launch, and commands that work with recorded runs, each in a file of commands/.

    $ ray-memprof launch configs/baseline.yaml
    $ ray-memprof audit latest
    $ ray-memprof plan --task t2v-14B --gpu "RTX 4090"
    $ ray-memprof ls
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

from ray_memprof import launch, plan, predict
from ray_memprof.commands import (
    audit,
    calibrate,
    compare,
    diagnose,
    doctor,
    export,
    finish,
    flame,
    gc,
    import_,
    ls,
    mcp,
    open_,
    query,
    report,
    rm,
    run,
    show,
    version,
    watch,
    what_if,
)

_HELP = """Where every byte of every GPU goes: runs programs, records their memory, and answers questions about it."""

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, help=_HELP)
app.callback()(version.options)
app.command("launch")(launch.main)
app.command("run", cls=run.RunCommand)(run.run)
app.command("predict")(predict.main)
app.command("audit")(audit.audit)
app.command("calibrate")(calibrate.calibrate)
app.command("plan")(plan.main)
app.command("ls")(ls.ls)
app.command("watch")(watch.watch)
app.command("show")(show.show)
app.command("open")(open_.open_)
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
app.command("rm")(rm.rm)
app.command("gc")(gc.gc)
app.command("doctor")(doctor.doctor)


if __name__ == "__main__":
    app()
