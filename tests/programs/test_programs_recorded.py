"""python -m ray_memprof.record with programs of every kind: they run as they would alone, and are recorded."""

import sys
import time

import pytest
from programs import CHILDREN, MODEL, PRINTED_BY_CHILDREN, RECORD, TORCHRUN, Start

DDP = """
import os, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(model)
"""


def test_a_script_sees_itself_as_python_would_start_it(start: Start) -> None:
    told = """
import json, sys
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], __spec__ is None, sorted(globals())]))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "wan", "duckdb", "pydantic", "typer", "rich"}))
"""
    done = start(
        *RECORD, "src/train.py", "--steps", "9", "--name", files={"src/train.py": MODEL + "train()" + told}
    )
    first, second = done.out.splitlines()
    alone = start(sys.executable, "src/train.py", "--steps", "9", "--name", files={})
    assert first == alone.out.splitlines()[0]
    assert first.startswith(
        f'["__main__", "{done.folder}/src/train.py", ["src/train.py", "--steps", "9", "--name"]'
    )
    assert second == "[]"
    assert (done.code, done.facts["status"], done.facts["name"]) == (0, "ok", "train")
    (overview,) = done.ask("run_overview")
    assert (overview["num_ranks"], overview["workload"], overview["status"]) == (1, "script", "ok")
    (check,) = done.ask("replay_check")
    assert check["is_exact"]
    assert {"script", "script/Sequential"} <= done.paths()


@pytest.mark.parametrize("name", ["wan", "config", "store", "utils", "errors"])
def test_packages_of_the_program_may_have_names_of_ours(start: Start, name: str) -> None:
    files = {
        "main.py": MODEL
        + f"from {name}.spans import value\nfrom {name} import errors\ntrain()\nprint(value)",
        f"{name}/__init__.py": "",
        f"{name}/spans.py": "value = 17",
        f"{name}/errors.py": "",
    }
    done = start(*RECORD, "main.py", files=files)
    assert (done.code, done.out, done.facts["status"]) == (0, "17\n", "ok")
    assert "did not end as it should" not in done.err
    assert done.ask("replay_check")[0]["is_exact"]


@pytest.mark.parametrize("name", ["pkg.train", "pkg"])
def test_a_module_runs_as_with_python_m(start: Start, name: str) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/part.py": MODEL,
        "pkg/train.py": "from .part import train\nimport sys\ntrain()\nprint(__spec__.name, sys.argv[1:], __name__)",
        "pkg/__main__.py": "from .train import train\n",
    }
    done = start(*RECORD, "--level", "stage", "-m", name, "-x", "--level", files=files)
    assert done.code == 0
    last = name.rpartition(".")[2]
    assert done.facts["name"] == last
    expected = "pkg.train ['-x', '--level'] " + ("__main__" if name == "pkg.train" else "pkg.train")
    assert done.out == expected + "\n"
    assert done.ask("SELECT COUNT(*) AS num FROM allocs") == [{"num": 0}]


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, "rank 0: the program ended with exit code 3"),
        ("sys.exit('no luck')", 1, "rank 0: the program ended with exit code 1"),
        ("os._exit(4)", 4, "rank 0: the program ended with exit code 4"),
        ("raise ValueError('no luck')", 1, "rank 0: ValueError: no luck"),
        ("raise SystemExit(5)", 5, "rank 0: the program ended with exit code 5"),
        ("os.kill(os.getpid(), 2)", -2, "rank 0: KeyboardInterrupt"),
    ],
)
def test_the_exit_code_is_the_programs_own(start: Start, end: str, code: int, reason: str) -> None:
    done = start(*RECORD, "main.py", files={"main.py": MODEL + f"import os, sys\ntrain()\n{end}\n"})
    assert done.code == code
    assert (done.facts["reason"], done.facts["exit_code"]) == (reason, 130 if code == -2 else code)
    assert done.facts["status"] == ("ok" if code == 0 else "interrupted" if code == -2 else "failed")
    assert done.ask("peak_by_rank")[0]["allocated_peak_bytes"] > 2**20
    assert (done.run_dir / "report.html").is_file()


def test_a_traceback_has_the_frames_of_the_program_alone(start: Start) -> None:
    text = MODEL + "def inner():\n    raise ValueError('no luck')\ntrain()\ninner()\n"
    done = start(*RECORD, "main.py", files={"main.py": text})
    files = [line for line in done.err.splitlines() if line.startswith("  File ")]
    assert len(files) == 2
    assert all(f'"{done.folder}/main.py"' in line for line in files)


def test_a_program_that_is_killed_leaves_what_it_recorded(start: Start) -> None:
    text = MODEL + "import os, signal, time\ntrain()\ntime.sleep(6)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.facts["status"]) == (-9, "running")
    command = (RECORD[0], "-m", "ray_memprof.cli", "finish", "main")
    finished = start(*command, files={})
    assert finished.code == 0, finished.err
    assert (done.facts["status"], done.facts["exit_code"]) == ("died", 10)
    assert done.ask("SELECT COUNT(*) > 20 AS many FROM allocs") == [{"many": True}]
    again = start(*command, files={})
    assert again.out == finished.out


def test_children_of_every_kind_are_not_recorded_and_end(start: Start) -> None:
    done = start(*RECORD, "main.py", files={"main.py": CHILDREN})
    assert (done.code, done.out) == (0, PRINTED_BY_CHILDREN), done.err
    assert done.facts["status"] == "ok"
    assert done.ask("replay_check")[0]["is_exact"]


def test_what_the_program_registers_for_its_end_still_runs_recorded(start: Start) -> None:
    text = f"""{MODEL}
import atexit, threading, time
def late():
    keep.append(torch.ones(1000, 1000))
    print("late")
keep = []
atexit.register(late)
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
train()
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.out) == (0, "thread\nlate\n")
    assert done.ask("peak_by_rank")[0]["allocated_peak_bytes"] >= 4_000_000


def test_signal_handlers_are_the_programs_own(start: Start) -> None:
    text = f"""{MODEL}
import os, signal
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGINT) == signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
train()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.out) == (0, "True True\nheard\n")


def test_variables_that_torch_reads_at_its_import_may_be_set_by_the_program(start: Start) -> None:
    text = "import sys\nprint('torch' in sys.modules)\n" + MODEL + "train()\n"
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert done.out == "False\n"


def test_a_program_without_torch_runs_unrecorded_and_this_is_told(start: Start) -> None:
    done = start(*RECORD, "main.py", files={"main.py": "print('hello')"})
    assert (done.code, done.out) == (0, "hello\n")
    assert "nothing is recorded: the program did not import torch" in done.err
    assert not (done.folder / "profiler_logs").exists()


def test_spans_and_steps_of_the_program(start: Start) -> None:
    text = f"""{MODEL}
import ray_memprof
for _ in range(2):
    ray_memprof.step()
    with ray_memprof.span("forward"):
        loss = model(torch.ones(64, 256)).square().mean()
    with ray_memprof.span("backward"):
        loss.backward()
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert {"script/step/forward/Sequential", "script/step/backward", "script/step"} <= done.paths()
    rows = done.ask("SELECT DISTINCT step FROM spans WHERE name = 'backward' ORDER BY step")
    assert rows == [{"step": 0}, {"step": 1}]


def test_all_ranks_of_torchrun_are_one_run(start: Start) -> None:
    done = start(
        *TORCHRUN,
        "-m",
        *RECORD[2:],
        "--name",
        "ddp",
        "main.py",
        files={"main.py": MODEL + DDP + "train(model)"},
    )
    assert done.code == 0, done.err
    assert (done.facts["status"], done.facts["num_ranks"], done.facts["name"]) == ("ok", 2, "ddp")
    assert [row["is_exact"] for row in done.ask("replay_check")] == [True, True]
    assert [row["rank"] for row in done.ask("peak_by_rank")] == [0, 1]
    assert list((done.folder / "profiler_logs" / "ddp").glob(".start-*")) == []
    assert (done.folder / "profiler_logs" / "ddp" / "latest").resolve() == done.run_dir.resolve()


def test_a_rank_that_fails_ends_the_start_at_once_and_is_named(start: Start) -> None:
    # torchrun kills rank 0, which then loses what it has not written yet: of its last seconds, at most.
    text = (
        MODEL
        + DDP
        + "train(model)\nif dist.get_rank() == 1:\n    __import__('time').sleep(8)\n    raise ValueError('no luck')\n"
        + "dist.barrier()\n"
    )
    began = time.monotonic()
    done = start(*TORCHRUN, "-m", *RECORD[2:], "main.py", files={"main.py": text})
    assert done.code != 0
    assert time.monotonic() - began < 60
    until = time.monotonic() + 60
    while done.facts["status"] == "running" and time.monotonic() < until:
        time.sleep(0.2)
    while not (done.run_dir / "report.html").exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert (done.facts["status"], done.facts["reason"]) == ("failed", "rank 1: ValueError: no luck")
    assert [row["rank"] for row in done.ask("peak_by_rank")] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: no program is named"),
        (("absent.py",), "error: absent.py: there is no such file"),
        (("--level", "all", "main.py"), "error: level 'all' is none of stage, event, stack"),
        (("--name", "a/b", "main.py"), "error: name 'a/b' must be letters"),
        (("--device", "tpu", "main.py"), "error: device 'tpu' is neither cpu nor cuda"),
        (("--sample-interval-s", "0", "main.py"), "error: sample_interval_s 0.0 is not between"),
        (("--unknown", "main.py"), "error: "),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_2(
    start: Start, arguments: tuple[str, ...], line: str
) -> None:
    done = start(*RECORD, *arguments, files={"main.py": "print('ran')"})
    assert (done.code, done.out) == (2, "")
    assert line in done.err
    assert "Traceback" not in done.err


def test_a_folder_that_cannot_be_written_leaves_the_program_unrecorded(start: Start) -> None:
    done = start(
        *RECORD,
        "--output-dir",
        "taken/runs",
        "main.py",
        files={"main.py": MODEL + "train()\nprint('ran')", "taken": ""},
    )
    assert (done.code, done.out) == (0, "ran\n")
    assert "ray-memprof: nothing is recorded: " in done.err


def test_a_block_that_a_recorded_program_records_itself_is_told_and_runs(start: Start) -> None:
    text = f"""{MODEL}
import os, ray_memprof
with ray_memprof.recording("inner"):
    train()
child = os.fork()
if child == 0:
    with ray_memprof.recording("child") as run:
        train()
    os._exit(0 if run.run_dir else 9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.out) == (0, "0\n"), done.err
    assert "ray-memprof: nothing is recorded: this process is recorded already" in done.err
    assert sorted(path.name for path in (done.folder / "profiler_logs").iterdir()) == ["child", "main"]


def test_a_block_on_a_thread_of_its_own_is_recorded(start: Start) -> None:
    """As Ray Train runs a loop: it also gives the rank when torch is imported already."""
    text = f"""{MODEL}
import os, threading
import ray_memprof
def loop():
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    with ray_memprof.recording("loop"):
        train()
thread = threading.Thread(target=loop)
thread.start()
thread.join()
print("done")
"""
    done = start(sys.executable, "main.py", files={"main.py": text})
    assert (done.code, done.out, done.run_dir.parent.name) == (0, "done\n", "loop"), done.err
    stages = {row["stage"] for row in done.ask("SELECT DISTINCT stage FROM spans")}
    assert stages >= {"forward", "backward", "optimizer"}
    assert [row["is_exact"] for row in done.ask("replay_check")] == [True]


def test_the_program_may_change_its_folder(start: Start) -> None:
    text = "import os\nos.makedirs('deep/er')\nos.chdir('deep/er')\n" + MODEL + "train()\n"
    done = start(*RECORD, "--output-dir", "runs", "main.py", files={"main.py": text})
    assert (done.code, list((done.folder / "deep" / "er").iterdir())) == (0, []), done.err
    (run,) = (done.folder / "runs" / "main").glob("2*")
    assert (run / "report.html").is_file()
    assert f"path: {done.folder / 'main.py'}" in (run / "config.yaml").read_text()


LATE = "lambda: (__import__('beside'), pickle.dumps(Thing()), print(sys.argv))"


@pytest.mark.parametrize(
    ("text", "out"),
    [
        # What still runs when the last line has run finds the program as it was.
        (f"threading.Timer(0.5, {LATE}).start()", "['main.py', 'a']"),
        (f"atexit.register({LATE})", "['main.py', 'a']"),
        (
            "os.chdir('/')\nprint(open(__file__).readline().strip(), Path(__file__).parent.name != '')",
            "# first True",
        ),
        ("print(importlib.util.find_spec('shadow'))", "None"),
        ("print(torch.compile(double, backend='eager', fullgraph=True)(torch.ones(2)).sum().item())", "4.0"),
    ],
)
def test_a_program_runs_as_it_would_alone(start: Start, text: str, out: str) -> None:
    head = "# first\nimport atexit, importlib.util, os, pickle, sys, threading\nfrom pathlib import Path\n"
    program = head + MODEL + "class Thing: pass\ndef double(x):\n    return x * 2\ntrain()\n" + text + "\n"
    files = {
        "app/main.py": program,
        "main.py": program,
        "beside.py": "",
        "app/beside.py": "",
        "shadow.py": "",
    }
    if "shadow" in text:
        recorded = start(*RECORD, "app/main.py", "a", files=files)
        alone = start(sys.executable, "app/main.py", "a", files={})
    else:
        recorded = start(*RECORD, "main.py", "a", files=files)
        alone = start(sys.executable, "main.py", "a", files={})
    assert (recorded.code, recorded.out) == (alone.code, alone.out) == (0, out + "\n"), recorded.err


def test_a_folder_with_a_main_program_and_a_module_that_is_not_there(start: Start) -> None:
    done = start(
        *RECORD, "app", "a", files={"app/__main__.py": MODEL + "train()\nimport sys\nprint(sys.argv)"}
    )
    assert (done.code, done.out, done.facts["status"]) == (0, "['app', 'a']\n", "ok"), done.err
    absent = start(*RECORD, "-m", "nowhere.main", files={})
    assert absent.code == 1
    assert "No module named" in absent.err
    assert "Traceback" not in absent.err


def test_torch_imported_on_another_thread_is_told(start: Start) -> None:
    text = """
import threading
thread = threading.Thread(target=__import__, args=("torch",))
thread.start()
thread.join()
print("ran")
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.out) == (0, "ran\n")
    assert "nothing is recorded: recording began on another thread than the main thread" in done.err


def test_a_forked_child_that_is_the_first_to_import_torch_runs_unrecorded(start: Start) -> None:
    text = """
import os
child = os.fork()
if child == 0:
    import torch
    os._exit(6)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = start(*RECORD, "main.py", files={"main.py": text})
    assert (done.code, done.out) == (0, "6\n")
    assert not (done.folder / "profiler_logs").exists()
