"""A launch whose two ranks run one pass of guidance each: what each of them recorded."""

from pathlib import Path
from typing import Any

from launcher import launch
from ray.cluster_utils import Cluster

from ray_memprof.query.database import open_run

STEPS = 2


def config(tmp_path: Path, **parallel: Any) -> dict[str, Any]:
    return {
        "name": "passes",
        "model_config": {"task": "t2v-tiny", "precision": "fp32", "device": "cpu"},
        "generation": {"size": "64*48", "frame_num": 9, "sample_steps": STEPS, "base_seed": 1},
        "parallel": parallel,
        "logging": {"output_dir": str(tmp_path / "logs"), "sample_interval_s": 1.0},
        "ray": {"timeouts": {"init_s": 60.0, "stall_s": 60.0}},
    }


def test_each_rank_records_the_pass_that_it_runs(tmp_path: Path, shared: Cluster) -> None:
    given = config(tmp_path, cfg=2, t5_fsdp=True)
    given["ray"] |= {"address": shared.address, "gpus_per_rank": 1}
    code, run = launch(tmp_path, given)

    assert (code, run.facts["problems"]) == (0, []), run.text
    with open_run(run.run_dir) as connection:
        coordinates = connection.execute(
            "SELECT rank, ulysses, ring, cfg FROM ranks ORDER BY rank"
        ).fetchall()
        assert coordinates == [(0, 0, 0, 0), (1, 0, 0, 1)]
        passes = connection.execute(
            "SELECT rank, branch, COUNT(*) FROM spans WHERE name = 'dit.forward' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        assert passes == [(0, "cond", STEPS), (1, "uncond", STEPS)]
        exchanges = connection.execute(
            "SELECT rank, step, branch, COUNT(*) FROM spans WHERE name LIKE 'comm.%' AND stage = 'denoise' "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        assert exchanges == [
            (rank, step, branch, 1) for rank, branch in enumerate(("cond", "uncond")) for step in range(STEPS)
        ]


def test_one_rank_cannot_run_two_passes_at_a_time(tmp_path: Path) -> None:
    code, run = launch(tmp_path, {**config(tmp_path, cfg=2), "ranks": 1})

    assert code == 2
    error, hint = run.errors()
    assert error.endswith(": parallel.ulysses 1 x parallel.ring 1 x parallel.cfg 2 needs 2 ranks, there is 1")
    assert hint == "hint: set ranks to 2"
