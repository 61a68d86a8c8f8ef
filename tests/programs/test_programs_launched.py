"""Scripts in the process that a rank starts for them, without Ray: each runs as it would alone, and is recorded."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from programs import CHILDREN, MODEL, PRINTED_BY_CHILDREN, Done, Start

from ray_memprof.store.gather import gather

RANK = (sys.executable, str(Path(__file__).with_name("rank.py")))
Launch = Callable[..., tuple[dict[str, Any], Done]]


@pytest.fixture
def launch(start: Start) -> Launch:
    """Run files as the script of a rank; returns its outcome, and what the process wrote."""

    def run(
        main: str, *flags: str, files: dict[str, str] | None = None, **orders: Any
    ) -> tuple[dict[str, Any], Done]:
        asked = {"path": "main.py", **orders}
        if "module" in asked:
            del asked["path"]
        done = start(*RANK, json.dumps(asked), *flags, files={"main.py": main, **(files or {})})
        found = done.folder / "outcome.json"
        return json.loads(found.read_text()) if found.exists() else {}, done

    return run


def spans(done: Done) -> set[str]:
    """Paths of all spans that were recorded; of a killed process as the driver reads them."""
    gather(done.folder / "run", range(1), [])
    parts = (done.folder / "run" / "tables" / "spans").glob("rank=0/part-*.parquet")
    return {path for part in parts for path in pq.ParquetFile(part).read(["path"])["path"].to_pylist()}


def ended(outcome: dict[str, Any]) -> tuple[str, int, str]:
    """How a script has ended, in short."""
    return outcome["status"], outcome["exit_code"], outcome["reason"]


def test_a_script_sees_itself_as_python_would_start_it(launch: Launch, start: Start) -> None:
    told = """
import json, os, signal, sys, threading
print(json.dumps([__name__, __file__, sys.argv, sys.path, __spec__ is None, sorted(globals()), os.getcwd()]))
print(threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
      signal.getsignal(signal.SIGINT) == signal.default_int_handler, signal.pthread_sigmask(signal.SIG_BLOCK, []))
ours = {name for name in sys.modules if name.startswith(("ray_memprof.config", "ray_memprof.driver"))}
print(sorted(ours | {name.partition(".")[0] for name in sys.modules} & {"ray", "wan", "duckdb", "pydantic", "rich"}))
"""
    outcome, done = launch(
        "print('torch' in __import__('sys').modules)\n" + MODEL + "train()\n" + told, args=["-x", "1"]
    )
    first, itself, usual, ours = done.out.splitlines()
    alone = start(sys.executable, "main.py", "-x", "1", files={})
    assert (first, itself) == ("False", alone.out.splitlines()[1])
    assert (usual, ours) == ("True True True set()", "[]")
    assert ended(outcome) == ("ok", 0, "")
    assert outcome["check"]["num_events"] > 0 and outcome["check"]["max_error_bytes"] == 0
    assert {"script", "script/Sequential"} <= spans(done)
    assert outcome["problems"] == []


def test_packages_of_the_script_may_have_names_of_ours(launch: Launch) -> None:
    names = ("wan", "config", "store", "utils", "log", "network", "settings")
    text = "".join(f"from {name}.spans import value as {name}_value\n" for name in names)
    files = {f"{name}/{part}": f"value = '{name}'" for name in names for part in ("__init__.py", "spans.py")}
    files |= {f"{name}/errors.py": "class WanError(Exception): pass" for name in names}
    text += MODEL + "import wan.errors\ntrain()\nprint(wan.value, wan.spans.value)\n"
    outcome, done = launch(text + "raise wan.errors.WanError('theirs')", files=files)
    assert done.out == "wan wan\n"
    assert ended(outcome) == ("failed", 16, "WanError: theirs")


@pytest.mark.parametrize("name", ["pkg.train", "pkg"])
def test_a_module_runs_as_with_python_m(launch: Launch, name: str) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/part.py": MODEL,
        "pkg/train.py": "from .part import train\nimport sys\ntrain()\nprint(__spec__.name, sys.argv[1:], __name__)",
        "pkg/__main__.py": "from .train import train\n",
    }
    outcome, done = launch("", files=files, module=name, args=["-x"])
    expected = "pkg.train ['-x'] " + ("__main__" if name == "pkg.train" else "pkg.train")
    assert (ended(outcome), done.out) == (("ok", 0, ""), expected + "\n")
    assert "script/Sequential" in spans(done)


def test_a_module_that_is_not_there(launch: Launch) -> None:
    outcome, _ = launch("", module="absent.part")
    assert outcome["status"] == "failed"
    assert outcome["reason"].startswith("absent.part ended with exit code 1: ")
    assert "No module named 'absent'" in outcome["reason"]


@pytest.mark.parametrize(
    ("end", "status", "code", "reason"),
    [
        ("sys.exit()", "ok", 0, ""),
        ("os._exit(0)", "ok", 0, ""),
        ("sys.exit(3)", "failed", 16, "main.py ended with exit code 3"),
        ("sys.exit('no luck')", "failed", 16, "main.py ended with exit code 1: no luck"),
        ("os._exit(4)", "died", 10, "exit code 4"),
        ("raise ValueError('no luck')", "failed", 16, "ValueError: no luck"),
        ("os.kill(os.getpid(), 2)", "failed", 16, "KeyboardInterrupt"),
        ("os.kill(os.getpid(), 9)", "died", 10, "killed by SIGKILL"),
        ("os.kill(os.getpid(), 15)", "died", 10, "killed by SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", "died", 10, "killed by SIGSEGV"),
        (
            "import threading; threading.Thread(target=os._exit, args=[0]).start(); time.sleep(60)",
            *("ok", 0, ""),
        ),
    ],
)
def test_how_a_script_ends(launch: Launch, end: str, status: str, code: int, reason: str) -> None:
    """GIVEN any end THEN what was recorded more than two flushes before is there; of an end in Python, all."""
    rest = "time.sleep(5)\nmodel(torch.ones(1, 256))\n" if status == "died" and "_exit" not in end else ""
    outcome, done = launch(MODEL + f"import os, sys, time\ntrain()\n{rest}{end}\n")
    assert ended(outcome) == (status, code, reason)
    assert "script/Sequential" in spans(done)
    assert ("Traceback" in done.err) == (end.startswith(("raise", "os.kill(os.getpid(), 2)")))
    if "Traceback" in done.err:
        lines = done.err.splitlines()
        assert lines.index("-- in the log only --") < lines.index("Traceback (most recent call last):")
        assert not [line for line in lines if "ray_memprof" in line]


def test_a_failure_is_reported_while_threads_of_the_script_still_wait(launch: Launch) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()\n"
    began = time.monotonic()
    outcome, _ = launch(MODEL + text + "raise ValueError('no luck')")
    assert ended(outcome) == ("failed", 16, "ValueError: no luck")
    assert time.monotonic() - began < 40


def test_children_of_every_kind_are_not_recorded_and_end(launch: Launch) -> None:
    outcome, done = launch(CHILDREN)
    assert done.out == PRINTED_BY_CHILDREN, done.err
    assert (ended(outcome), outcome["problems"]) == (("ok", 0, ""), [])


def test_what_the_script_registers_for_its_end_still_runs_recorded(launch: Launch) -> None:
    text = f"""{MODEL}
import atexit, ray_memprof
def late():
    with ray_memprof.span("late"):
        print("late")
atexit.register(late)
train()
"""
    outcome, done = launch(text)
    assert (ended(outcome), done.out) == (("ok", 0, ""), "late\n")
    assert "script/late" in spans(done)


def test_a_script_is_traced_where_that_is_asked_for(launch: Launch) -> None:
    schedule = {"wait": 0, "warmup": 1, "active": 1}
    text = MODEL + "import ray_memprof\nfor _ in range(3):\n    ray_memprof.step()\n    train()\n"
    outcome, done = launch(
        text, trace=schedule, trace_file="traces/rank0.pt.trace.json", level="torch_profiler"
    )
    assert (ended(outcome), outcome["problems"]) == (("ok", 0, ""), [])
    assert "ProfilerStep" in (done.folder / "traces" / "rank0.pt.trace.json").read_text()


def test_a_script_without_torch_runs_and_this_is_told(launch: Launch) -> None:
    outcome, done = launch("print('hello')")
    assert (ended(outcome), done.out) == (("ok", 0, ""), "hello\n")
    assert outcome["problems"] == ["nothing is recorded: the script did not import torch"]


def test_recording_of_the_scripts_own_is_refused_and_the_script_goes_on(launch: Launch) -> None:
    text = MODEL + "import ray_memprof\nwith ray_memprof.recording('mine'):\n    train()\n"
    outcome, done = launch(text)
    assert ended(outcome) == ("ok", 0, "")
    assert "ray-memprof: nothing is recorded: this process is recorded already" in done.err
    assert "script/Sequential" in spans(done)


def test_a_script_that_closes_every_file_is_waited_for(launch: Launch) -> None:
    outcome, done = launch(
        "import os, time\nos.closerange(3, 1000)\ntime.sleep(1)\nopen('made', 'w').close()\n"
    )
    assert outcome["status"] == "ok"
    assert (done.folder / "made").exists()


def test_a_script_that_runs_is_asked_where_it_is(launch: Launch) -> None:
    text = MODEL + "import time, ray_memprof\ntrain()\nwith ray_memprof.span('rest'):\n    time.sleep(60)\n"
    _, done = launch(text, "--look", "20")
    looks = json.loads((done.folder / "looks.json").read_text())
    assert (looks["beat"]["path"], looks["beat"]["sequence"] > 4) == ("script/rest", True)
    assert 'main.py", line' in looks["where"]["stack"] and "time.sleep(60)" in looks["where"]["stack"]
    # Stopped then: sealed, with the span that was open.
    assert "script/rest" in spans(done)


@pytest.mark.parametrize("fault", ["os.kill(os.getpid(), 19)", "ctypes.PyDLL(None).sleep(60)"])
def test_a_script_that_does_not_answer_is_waited_for_no_longer_than_the_driver_waits(
    launch: Launch, fault: str
) -> None:
    outcome, done = launch(f"import ctypes, os\n{fault}\n", "--look", "3")
    looks = json.loads((done.folder / "looks.json").read_text())
    assert (looks["beat"], looks["where"]) == (None, None)
    assert looks["seconds"] < 2.0
    assert ended(outcome) == ("died", 10, "killed by " + ("SIGKILL" if "kill" in fault else "SIGTERM"))


def test_a_stopped_script_hears_sigterm_and_what_it_started_ends_with_it(launch: Launch) -> None:
    text = """
import signal, subprocess, sys, time
def heard(number, frame):
    open("heard", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, heard)
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
open("child", "w").write(str(child.pid))
time.sleep(60)
"""
    _, done = launch(text, "--stop", "4")
    assert (done.folder / "heard").exists()
    assert not is_running(int((done.folder / "child").read_text()))


def test_a_script_dies_with_its_rank(launch: Launch) -> None:
    _, done = launch("import time\ntime.sleep(60)\n", "--leave", "2")
    pid, until = int((done.folder / "pid").read_text()), time.monotonic() + 5
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
