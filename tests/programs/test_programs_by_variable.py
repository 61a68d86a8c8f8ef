"""RAY_MEMPROF=1: processes that nobody starts through us are recorded by an entry point of torch."""

import sys
from importlib import metadata

import pytest
from programs import MODEL, TORCHRUN, Start

ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
ON = {"RAY_MEMPROF": "1"}

pytestmark = pytest.mark.skipif(
    not any(
        one.dist is not None and one.dist.name == "ray-memprof"
        for one in metadata.entry_points(group="torch.backends")
    ),
    reason="the entry point is not installed: make env",
)


def test_off_is_off(start: Start) -> None:
    text = "import sys\n" + MODEL + "train()\nprint('ray_memprof.rank.session' in sys.modules)"
    for environ in ({}, {"RAY_MEMPROF": "0"}, {"RAY_MEMPROF": ""}):
        done = start(sys.executable, "main.py", files={"main.py": text}, environ=ONE_RANK | environ)
        assert (done.code, done.out, done.err) == (0, "False\n", "")
    assert not (done.folder / "profiler_logs").exists()


def test_a_rank_is_recorded(start: Start) -> None:
    done = start(sys.executable, "main.py", files={"main.py": MODEL + "train()"}, environ=ONE_RANK | ON)
    assert (done.code, done.facts["status"], done.facts["name"]) == (0, "ok", "main"), done.err
    assert done.ask("replay_check")[0]["is_exact"]
    assert "script/Sequential" in done.paths()


def test_a_process_without_rank_and_without_cuda_is_not_recorded(start: Start) -> None:
    done = start(sys.executable, "main.py", files={"main.py": MODEL + "train()"}, environ=ON)
    assert (done.code, done.err) == (0, "")
    assert not (done.folder / "profiler_logs").exists()


def test_all_ranks_of_torchrun_are_one_run_and_its_agent_none(start: Start) -> None:
    text = MODEL + "import torch.distributed as dist\ndist.init_process_group('gloo')\ntrain()\n"
    done = start(*TORCHRUN, "main.py", files={"main.py": text}, environ=ON)
    assert (done.code, done.facts["status"], done.facts["num_ranks"]) == (0, "ok", 2), done.err
    assert [row["is_exact"] for row in done.ask("replay_check")] == [True, True]


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("sys.exit(3)", 3, "rank 0: the program ended with exit code 3"),
        ("raise ValueError('no luck')", 1, "rank 0: ValueError: no luck"),
        ("os._exit(4)", 4, "rank 0: the program ended with exit code 4"),
        ("os.kill(os.getpid(), 2)", -2, "rank 0: KeyboardInterrupt"),
    ],
)
def test_how_the_program_ended_is_known(start: Start, end: str, code: int, reason: str) -> None:
    text = MODEL + f"import os, sys\ntrain()\n{end}\n"
    done = start(sys.executable, "main.py", files={"main.py": text}, environ=ONE_RANK | ON)
    assert (done.code, done.facts["reason"]) == (code, reason)


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        ("sys.excepthook = lambda *given: None\nraise ValueError('no luck')", 1, "failed"),
        ("import pickle\nassert pickle.loads(pickle.dumps(sys.exit)) is sys.exit", 0, "ok"),
    ],
)
def test_a_program_may_have_hooks_of_its_own(start: Start, end: str, code: int, status: str) -> None:
    text = MODEL + f"import sys\ntrain()\n{end}\n"
    done = start(sys.executable, "main.py", files={"main.py": text}, environ=ONE_RANK | ON)
    assert (done.code, done.facts["status"]) == (code, status), done.err


def test_what_starts_the_ranks_inside_a_job_is_not_recorded(start: Start) -> None:
    job = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    done = start(*TORCHRUN, "main.py", files={"main.py": MODEL + "train()"}, environ=ON | job)
    assert (done.code, done.facts["status"], done.facts["num_ranks"]) == (0, "ok", 2), done.err


def test_settings_come_from_a_file(start: Start) -> None:
    files = {"main.py": MODEL + "train()", "settings.yaml": "name: mine\nlevel: stage\nmodule_spans: ['*']\n"}
    done = start(sys.executable, "main.py", files=files, environ=ONE_RANK | {"RAY_MEMPROF": "settings.yaml"})
    assert (done.code, done.facts["name"]) == (0, "mine"), done.err
    assert "script/Sequential/Sequential" in done.paths()
    assert done.ask("SELECT COUNT(*) AS num FROM allocs") == [{"num": 0}]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "the file of settings cannot be read"),
        ("name: [", "the file of settings cannot be read"),
        ("- a", "the file of settings is no mapping"),
        ("names: x", "there is no setting 'names'"),
        ("level: all", "level 'all' is none of"),
        ("sample_interval_s: often", "sample_interval_s 'often' is no number"),
        ("module_spans: blocks", "module_spans 'blocks' is no list of texts"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_and_the_program_runs(
    start: Start, text: str | None, line: str
) -> None:
    files = {"main.py": MODEL + "train()\nprint('ran')"} | ({} if text is None else {"settings.yaml": text})
    done = start(sys.executable, "main.py", files=files, environ=ONE_RANK | {"RAY_MEMPROF": "settings.yaml"})
    assert (done.code, done.out) == (0, "ran\n")
    assert done.err.count("\n") == 1
    assert line in done.err


def test_workers_of_a_loader_are_not_recorded(start: Start) -> None:
    text = f"""{MODEL}
from torch.utils.data import DataLoader, TensorDataset
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        for batch in DataLoader(TensorDataset(torch.ones(4, 2)), num_workers=2, multiprocessing_context=method):
            pass
    train()
"""
    done = start(sys.executable, "main.py", files={"main.py": text}, environ=ONE_RANK | ON)
    assert (done.code, done.facts["status"]) == (0, "ok"), done.err
    assert done.err.count("report: ") == 1
