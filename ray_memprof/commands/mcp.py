"""ray-memprof mcp: lets an assistant ask about runs, over the Model Context Protocol.

$ ray-memprof mcp --output-dir profiler_logs
"""

from ray_memprof.commands.terminal import OutputDir, errors_as_lines
from ray_memprof.errors import ConfigError


def mcp(output_dir: OutputDir = None) -> None:
    """Let an assistant ask about runs: a server of the Model Context Protocol on standard input and output.

    An assistant starts it itself, from its configuration. It needs the optional extra mcp.
    """
    from ray_memprof.installed import need

    with errors_as_lines():
        from importlib import metadata

        need(("mcp",), "ray-memprof mcp", extra="mcp")
        version = metadata.version("mcp")
        if int(version.partition(".")[0]) < 2:
            raise ConfigError(
                f"ray-memprof mcp needs version 2 of the package mcp, {version} is installed",
                hint="pip install 'ray-memprof[mcp]'",
            )
        from ray_memprof.assistant.server import serve
        from ray_memprof.store.find_run import runs_folder

        serve(runs_folder(output_dir))
