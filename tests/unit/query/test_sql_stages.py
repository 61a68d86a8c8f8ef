"""Which spans are stages: in a script, those that the script itself opens, also inside a step that it names."""

from pathlib import Path

from run_tables import answer, make_run, span

from ray_memprof.query.database import open_run, query

SPANS = [
    span(1, "script", (0, 99), stage="script", allocated=(0, 0, 9)),
    span(2, "script/load.t5", (1, 2), parent_id=1, stage="load.t5", allocated=(0, 3, 3)),
    span(3, "script/step", (10, 50), parent_id=1, stage="script", step=0, allocated=(3, 3, 9)),
    span(4, "script/step/GPT", (11, 20), parent_id=3, stage="forward", step=0, allocated=(3, 7, 9)),
    span(5, "script/step/GPT/GPT.h", (12, 13), parent_id=4, stage="forward", step=0, allocated=(3, 5, 5)),
    span(6, "script/step/backward", (20, 30), parent_id=3, stage="backward", step=0, allocated=(7, 3, 8)),
    span(7, "script/GPT", (60, 70), parent_id=1, stage="GPT", allocated=(3, 3, 4)),
    span(8, "script/GPT/step", (61, 62), parent_id=7, stage="GPT", allocated=(3, 3, 3)),
]


def test_is_stage(tmp_path: Path) -> None:
    told = {
        "denoise": True,
        "denoise/step": False,
        "denoise/dit.block": False,
        "script": True,
        "script/dit": True,
        "script/dit/dit.blocks": False,
        "script/step": False,
        "script/step/dit": True,
        "script/step/dit/dit.blocks": False,
        "script/stepwise": True,
        "script/stepwise/dit": False,
        "step": True,
    }
    spans = [span(number, path, (number, number)) for number, path in enumerate(told, 1)]
    make_run(tmp_path, {0: {"spans": spans}})
    with open_run(tmp_path) as connection:
        rows = connection.execute("SELECT path, is_stage(depth, path) FROM spans").fetchall()
    assert dict(rows) == told


def test_stages_of_a_program_with_steps(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {"spans": SPANS}})
    stages = query(tmp_path, "peak_by_stage").to_pylist()
    found = [(row["stage"], row["num_spans"], row["allocated_peak_bytes"]) for row in stages]
    assert found == [
        ("script", 1, 9), ("load.t5", 1, 3), ("forward", 1, 9), ("backward", 1, 8), ("GPT", 1, 4)
    ]  # fmt: skip
    assert [row[1:3] for row in answer(tmp_path, "steps")] == [("forward", 0), ("backward", 0)]
