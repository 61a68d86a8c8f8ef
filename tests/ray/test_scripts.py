"""A program of one's own under the launcher: it has its process, its packages and its signals to itself."""

from pathlib import Path

import yaml
from launcher import config_of, launch

TRAIN = """
import json, os, signal, sys, threading
from pathlib import Path
import config, wan
import torch
from torch import distributed
rank = int(os.environ["RANK"])
Path(sys.argv[-1], f"rank{rank}.pid").write_text(str(os.getpid()))
signal.signal(signal.SIGUSR1, lambda number, frame: print("signal heard", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
ours = ("ray", "duckdb", "pydantic", "ray_memprof.config", "ray_memprof.driver")
print(wan.value, config.value, sys.argv[1:-2], [name for name in ours if name in sys.modules], flush=True)
distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(256, 256))
model(torch.ones(64, 256)).sum().backward()
distributed.barrier()
distributed.destroy_process_group()
if rank == 0:
    import ray
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print("ray of its own", ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid(), flush=True)
    ray.shutdown()
sys.stdout.flush()
os._exit(0)
"""


def test_a_program_of_ones_own(tmp_path: Path) -> None:
    """GIVEN a program beside its YAML file, with packages of our names THEN it runs as alone, and is recorded."""
    config = config_of(tmp_path, ranks=2)
    config["script"] |= {"path": "program/train.py", "module_spans": ["module"]}
    config["script"]["args"] = [1, 0.5, True, "007", *config["script"]["args"]]
    for name in ("wan", "config"):
        package = tmp_path / "program" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"value = 'their {name}'")
    program = tmp_path / "program" / "train.py"
    program.write_text(TRAIN)
    code, run = launch(tmp_path, config)

    assert (code, *run.verdict()) == (0, 0, "ok", ""), run.text
    first = "their wan their config ['1', '0.5', 'true', '007'] []"
    logs = [(run.run_dir / "logs" / f"rank{rank}.log").read_text() for rank in range(2)]
    assert logs[1].splitlines() == ["signal heard", first]
    assert logs[0].splitlines() == ["signal heard", first, "ray of its own True"]
    assert run.living() == []
    assert [facts["pid"] for facts in run.facts["ranks"]] == run.rank_pids()
    assert run.facts["problems"] == []
    assert "replay: exact to the byte on 2 of 2 ranks" in run.text
    assert yaml.safe_load((run.run_dir / "config.yaml").read_text())["script"]["path"] == str(program)
