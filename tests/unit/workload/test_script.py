"""A script in this process: it sees what torchrun would show it, and leaves nothing behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ray_memprof.errors import EXIT_WORKLOAD
from ray_memprof.workload.script import ScriptFailed, run_script

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Puts a script into a folder of its own."""

    def put(text: str) -> Path:
        path = tmp_path / "folder" / "job.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return put


def state() -> tuple[object, ...]:
    """What a script may not leave changed."""
    return sys.argv, list(sys.path), os.getcwd(), signal.signal, sys.modules["__main__"]


def test_an_empty_script_changes_nothing(write: Write) -> None:
    before = state()
    run_script(write(""), ())
    assert state() == before


def test_a_script_sees_what_torchrun_would_show_it(write: Write, tmp_path: Path) -> None:
    path = write(
        "import os, sys, json, sibling\n"
        "seen = [__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sibling.VALUE]\n"
        "seen.append(sys.modules['__main__'].__dict__['seen'] is seen)\n"
        "open(sys.argv[2], 'w').write(json.dumps(seen))\n"
    )
    (path.parent / "sibling.py").write_text("VALUE = 7\n")
    out = tmp_path / "seen.json"
    run_script(path, ("--out", str(out)))
    sys.modules.pop("sibling")
    assert __import__("json").loads(out.read_text()) == [
        "__main__", str(path), [str(path), "--out", str(out)], str(path.parent), os.getcwd(), 7, True,
    ]  # fmt: skip


def test_a_relative_path_starts_at_the_working_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("import sys; open('here', 'w').write(sys.argv[0])")
    monkeypatch.chdir(tmp_path)
    run_script(Path("folder/job.py"), ())
    assert (tmp_path / "here").read_text() == str(tmp_path / "folder" / "job.py")


@pytest.mark.parametrize("code", ["", "None", "0", "False"])
def test_an_exit_that_means_success_is_success(write: Write, code: str) -> None:
    run_script(write(f"import sys; sys.exit({code})"), ())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("3", "job.py ended with exit code 3"),
        ("True", "job.py ended with exit code 1"),
        ("'no prompt given'", "job.py ended with exit code 1: no prompt given"),
        ("''", "job.py ended with exit code 1"),
    ],
)
def test_any_other_exit_is_a_failure_that_tells_the_code(write: Write, code: str, told: str) -> None:
    before = state()
    with pytest.raises(ScriptFailed) as raised:
        run_script(write(f"import sys; sys.exit({code})"), ())
    assert (str(raised.value), raised.value.hint, raised.value.exit_code) == (
        told, "its output is in the rank's log", EXIT_WORKLOAD,
    )  # fmt: skip
    assert state() == before


def test_an_exception_passes_through_as_it_is(write: Write) -> None:
    before = state()
    with pytest.raises(ZeroDivisionError) as raised:
        run_script(write("1 / 0"), ())
    assert raised.traceback[-1].path.name == "job.py"
    assert state() == before


def test_a_script_that_is_not_there_is_refused_by_its_full_path(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed) as raised:
        run_script(tmp_path / "absent.py", ())
    assert (str(raised.value), raised.value.hint) == (
        f"script.path {tmp_path / 'absent.py'}: there is no such file on {os.uname().nodename}",
        "every node must see the script under the same path",
    )


SIGNALS = """
import signal
from signal import signal as install
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
    assert install(number, lambda *_: None) == signal.getsignal(number)
"""


def off_the_main_thread(work: Callable[[], None]) -> list[BaseException]:
    """Run `work` as an actor does; returns what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    return raised


def test_off_the_main_thread_handlers_are_ignored_with_one_warning_a_signal(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    before, handlers = state(), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    path = write(SIGNALS)
    assert off_the_main_thread(lambda: run_script(path, ())) == []
    assert capsys.readouterr().err == (
        "warning: a handler of SIGTERM is ignored: a rank runs off the main thread\n"
        "warning: a handler of SIGINT is ignored: a rank runs off the main thread\n"
    )
    assert state() == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_main_thread_may_install_handlers_while_a_script_runs_on_another(write: Write) -> None:
    inside, go_on = threading.Event(), threading.Event()
    sys.modules["test_script_gates"] = type(sys)("test_script_gates")
    sys.modules["test_script_gates"].gates = inside, go_on  # type: ignore[attr-defined]
    path = write("from test_script_gates import gates\ngates[0].set()\nassert gates[1].wait(60)\n")
    raised: list[BaseException] = []
    thread = threading.Thread(target=lambda: raised.extend(off_the_main_thread(lambda: run_script(path, ()))))
    before = signal.getsignal(signal.SIGUSR1)

    def handler(number: int, frame: FrameType | None) -> None:
        pass

    try:
        thread.start()
        assert inside.wait(60)
        assert signal.signal(signal.SIGUSR1, handler) == before
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        go_on.set()
        thread.join(timeout=60)
        signal.signal(signal.SIGUSR1, before)
        del sys.modules["test_script_gates"]
    assert raised == []


def test_on_the_main_thread_a_script_installs_its_handlers(write: Write) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        run_script(write("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)"), ())
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
