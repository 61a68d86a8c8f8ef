"""The tools as a server of the Model Context Protocol, over standard input and output.

    serve(Path("profiler_logs"))              # returns when the assistant closes the standard input

Imports the protocol's SDK: the optional extra `mcp`. An error of the user becomes the tool's answer, in one line with
its hint, so that the assistant can ask again.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from ray_memprof.assistant.tools import Tools
from ray_memprof.errors import RunError

INSTRUCTIONS = (
    "ray-memprof records where the GPU memory of each rank goes. Begin with list_runs, then diagnose a run. "
    "`questions` lists what can be asked by name; `ask` one of them, such as peak_by_rank, imbalance, alive_at_peak "
    "or books_at_peak. Use `sql` for what no question answers: bytes are whole numbers in columns that end in "
    "_bytes, times are in _ns. `compare` says what moved between two runs. `plan` needs no run: it predicts which "
    "configuration of wan fits on a GPU. Take every number from an answer."
)
"""What the assistant is told of the server before it calls a tool."""


def serve(output_dir: Path) -> None:
    """Answer until the standard input is closed.

    Args:
        output_dir: the folder with the runs.
    """
    make_server(output_dir).run("stdio")


def make_server(output_dir: Path) -> MCPServer:
    """The server with every public method of Tools."""
    server: MCPServer = MCPServer(
        "ray-memprof",
        instructions=INSTRUCTIONS,
        version=metadata.version("ray-memprof"),
        log_level="WARNING",  # else the standard error gets a line for each request
    )
    tools = Tools(output_dir)
    annotations = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    for one in (
        tools.list_runs,
        tools.questions,
        tools.ask,
        tools.sql,
        tools.diagnose,
        tools.compare,
        tools.plan,
    ):
        server.add_tool(
            _telling(one), description=inspect.getdoc(one), annotations=annotations, structured_output=False
        )
    return server


def _telling(tool: Callable[..., str]) -> Callable[..., str]:
    """The tool, with an error of the user as an answer that says what to do."""

    @functools.wraps(tool)
    def call(*args: object, **kwargs: object) -> str:
        try:
            return tool(*args, **kwargs)
        except RunError as error:
            raise ToolError(f"{error}\nhint: {error.hint}" if error.hint else str(error)) from error

    return call
