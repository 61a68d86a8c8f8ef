"""ray-memprof mcp, as an assistant uses it: the SDK's own client speaks to a process over stdio."""

import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult, TextContent
from run_tables import make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.assistant.tools import Tools
from ray_memprof.cli import app

ROOT = Path(__file__).resolve().parents[3]
MOST_S = 60
"""Seconds until a test gives the server up."""
NAMES = ["ask", "compare", "diagnose", "list_runs", "plan", "questions", "sql"]
T = TypeVar("T")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name, peak in (("base", 100), ("wide", 120)):
        folder = tmp_path / name / "20260101-000000-aaaa"
        make_run(folder, {0: {"spans": [span(1, "denoise", (0, 9), allocated=(0, 0, peak * 2**20))]}})
        make_ranks(folder, {}, run_id=folder.name, status="ok", source="cpu")
    return tmp_path


def talk(logs: Path, body: Callable[[Client], Awaitable[T]], mode: str = "auto", most_s: float = MOST_S) -> T:
    """What `body` returns of a conversation with a server of its own."""

    async def main() -> T:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "ray_memprof.cli", "mcp", "--output-dir", str(logs)],
            env={"PYTHONPATH": str(ROOT)},
        )
        with anyio.fail_after(most_s):
            async with Client(stdio_client(server), mode=mode) as client:
                return await body(client)

    return anyio.run(main)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_learns_what_it_may_call(logs: Path, mode: str) -> None:
    async def body(client: Client) -> None:
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == (
            "ray-memprof",
            metadata.version("ray-memprof"),
        )
        assert client.instructions is not None and "list_runs" in client.instructions
        tools = (await client.list_tools()).tools
        assert sorted(tool.name for tool in tools) == NAMES
        for tool in tools:
            assert tool.description and tool.annotations is not None and tool.annotations.read_only_hint
            for name, schema in tool.input_schema["properties"].items():
                assert schema.get("description"), f"{tool.name}: {name}"

    talk(logs, body, mode)


def test_every_tool_answers_what_the_tools_return(logs: Path) -> None:
    tools = Tools(logs)
    calls = {
        "list_runs": ({}, tools.list_runs()),
        "questions": ({"name": "imbalance"}, tools.questions("imbalance")),
        "ask": ({"question": "peak_by_rank", "run": "base"}, tools.ask("peak_by_rank", "base")),
        "sql": ({"sql": "FROM imbalance", "run": "wide"}, tools.sql("FROM imbalance", "wide")),
        "diagnose": ({"run": "wide"}, tools.diagnose("wide")),
        "compare": ({"runs": ["base", "wide"]}, tools.compare(["base", "wide"])),
    }
    assert sorted([*calls, "plan"]) == NAMES  # its answer has a test of its own

    async def body(client: Client) -> dict[str, tuple[bool, str]]:
        found = {}
        for name, (arguments, _) in calls.items():
            result = await client.call_tool(name, arguments)
            found[name] = (bool(result.is_error), text_of(result))
        return found

    assert talk(logs, body) == {name: (False, text) for name, (_, text) in calls.items()}


def test_a_mistake_is_told_with_its_hint_and_the_server_goes_on(logs: Path) -> None:
    calls = [
        (
            "ask",
            {"question": "peak_by_ran"},
            "there is no question 'peak_by_ran'\nhint: did you mean peak_by_rank?",
        ),
        ("sql", {"sql": "DROP TABLE runs"}, "DROP is no question\nhint: begin with SELECT, WITH or FROM"),
        ("sql", {"sql": f"FROM glob('{logs}/*')"}, "file system operations are disabled by configuration"),
        ("ask", {"question": "spans", "max_rows": 5_000}, "less than or equal to 200"),
        ("diagnose", {"run": "none"}, "there is no run 'none'"),
    ]

    async def body(client: Client) -> None:
        for name, arguments, told in calls:
            result = await client.call_tool(name, arguments)
            assert result.is_error and told in text_of(result), text_of(result)
        assert not (await client.call_tool("list_runs", {})).is_error

    talk(logs, body)


@pytest.mark.timeout(300)
def test_a_plan_is_that_of_the_command(logs: Path) -> None:
    levers = [
        "optimization.ffn_chunks=0", "optimization.vae_slabs=0", "optimization.attention_slicing=false",
        "optimization.expandable_segments=true", "model_config.t5_cpu=false", "model_config.offload=true",
        "model_config.load_strategy=block",
    ]  # fmt: skip
    asked = {"task": "t2v-tiny", "gpu": "RTX 4090", "limit": "8 GiB", "overrides": levers, "max_rows": 1}
    wrong = [
        ({"task": "t2v-tiny", "gpu": "RTX 9"}, "RTX 9"),
        ({"task": "t2v-tiny", "gpu": "H100", "limit": "many"}, "--limit: "),
        ({"task": "t2v-tiny", "gpu": "H100", "max_rows": 6}, "less than or equal to 5"),
    ]

    async def body(client: Client) -> None:
        for arguments, told in wrong:
            result = await client.call_tool("plan", arguments)
            assert result.is_error and told in text_of(result) and "Traceback" not in text_of(result)
        result = await client.call_tool("plan", asked)
        lines = text_of(result).splitlines()
        assert not result.is_error and lines[0].startswith("row  device used  headroom"), lines
        assert lines[1].startswith("1 ") and lines[-1].startswith("1 legal configurations: ")

    talk(logs, body, most_s=250)


def test_it_ends_when_nobody_speaks_to_it_any_more(logs: Path) -> None:
    command = [sys.executable, "-m", "ray_memprof.cli", "mcp", "--output-dir", str(logs)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)  # type: ignore[arg-type]
    done = CliRunner().invoke(app, ["mcp"])
    assert (done.exit_code, done.stdout, done.stderr.splitlines()) == (
        2,
        "",
        [
            "error: ray-memprof mcp needs mcp, which is not installed here",
            "hint: pip install 'ray-memprof[mcp]'",
        ],
    )
    assert CliRunner().invoke(app, ["mcp", "--help"]).exit_code == 0


def test_an_older_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.28.1")
    done = CliRunner().invoke(app, ["mcp"])
    assert (done.exit_code, done.stderr.splitlines()) == (
        2,
        [
            "error: ray-memprof mcp needs version 2 of the package mcp, 1.28.1 is installed",
            "hint: pip install 'ray-memprof[mcp]'",
        ],
    )
