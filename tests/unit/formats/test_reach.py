"""A server that does not answer is found out in seconds, before a service's library tries for minutes."""

import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.formats.trackers import to_wandb
from ray_memprof.formats.trackers.reach import check_answers


class Refusing(http.server.BaseHTTPRequestHandler):
    """Knows no page."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    httpd = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("url", ["", "file:/tmp/mlruns", "sqlite:///x.db", "databricks"])
def test_what_is_no_server_is_not_asked(url: str) -> None:
    check_answers(url)


def test_an_answer_is_enough_even_a_refusal(server: str) -> None:
    check_answers(server)


def test_a_closed_port_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, but nobody listens
        with pytest.raises(ConnectionError, match=rf"^no server answers at {url}: .*Connection refused$"):
            check_answers(url)


def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"^no server answers at {url}: it took more than 0.2 s$"):
            check_answers(url, 0.2)
        assert time.monotonic() - began < 5


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ConnectionError, match="^no server answers at http://: no host given$"):
        check_answers("http://")


def test_wandb_that_is_switched_off_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tracked_runs import tracked_run

    from ray_memprof.formats.trackers.account import account_of

    wandb = ModuleType("wandb")
    settings = SimpleNamespace(mode="disabled", project=None, base_url="http://127.0.0.1:9")
    wandb.setup = lambda: SimpleNamespace(settings=settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    account = account_of(tracked_run(tmp_path))
    with pytest.raises(ConfigError, match="^pair/r1 was not sent to wandb, which is switched off") as error:
        to_wandb.send_to_wandb(account)
    assert error.value.hint == "unset WANDB_MODE, or set WANDB_MODE=offline"
    settings.mode = "online"
    with pytest.raises(ConnectionError, match="^no server answers at http://127.0.0.1:9: "):
        to_wandb.send_to_wandb(account)
