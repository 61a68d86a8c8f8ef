"""Modules that are played back leave the rows that they would leave if they were computed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ranks import predicted

from ray_memprof.predictor.fake_rank import PredictedRank

BEGUN_NS = 1_790_000_000_000_000_000
GENERATION = {"frame_num": 21, "sample_steps": 6}
OUR_OWN = ("recorder_ns",)
"""What the recorder itself took, by the clock of this machine."""


def tables(folder: Path) -> dict[str, pa.Table]:
    """All rows of a run folder, by table and rank."""
    found = {}
    for place in sorted((folder / "tables").glob("*/rank=*")):
        table = pa.concat_tables([pq.read_table(part) for part in sorted(place.glob("*.parquet"))])
        found[f"{place.parent.name}/{place.name}"] = table.drop_columns(
            [name for name in OUR_OWN if name in table.column_names]
        )
    return found


def is_equal(left: pa.Table, right: pa.Table) -> bool:
    """Whether the rows are equal, however they are stored; Arrow compares faster than Python where they are alike."""
    return left.equals(right) or left.to_pydict() == right.to_pydict()


def both(
    folder: Path, num_ranks: int = 1, **sections: Any
) -> tuple[list[PredictedRank], list[PredictedRank]]:
    """The ranks played back and computed, after their rows were found to be equal."""
    made = [
        [
            predicted(folder / str(replays), rank=rank, replays=replays, begun_ns=BEGUN_NS, **sections)
            for rank in range(num_ranks)
        ]
        for replays in (True, False)
    ]
    played, computed = (tables(folder / str(replays)) for replays in (True, False))
    assert played.keys() == computed.keys() and len(played) >= 4 * num_ranks
    assert [name for name, table in played.items() if not is_equal(table, computed[name])] == []
    assert all(one.num_played == 0 for one in made[1])
    return made[0], made[1]


@pytest.mark.parametrize(
    ("sections", "num_played"),
    [
        ({"generation": GENERATION}, 131),
        ({"generation": GENERATION, "model_config": {"load_strategy": "stream"}}, 131),
        ({"generation": GENERATION, "optimization": {"fused_kernels": False, "vae_slabs": 2}}, 222),
        ({"generation": GENERATION, "model_config": {"task": "vace-tiny"}}, 211),
        (
            {
                "generation": GENERATION,
                "model_config": {"weights_dtype": "fp8"},
                "optimization": {"matmul": "fp8", "attention_slicing": True},
            },
            131,
        ),
    ],
    ids=["plain", "streamed", "without kernels, in slabs", "vace", "fp8"],
)
def test_rows_are_the_same_to_the_byte(sections: dict[str, Any], num_played: int, tmp_path: Path) -> None:
    played, computed = both(tmp_path, **sections)
    assert played[0].outcome.status == "ok", played[0].outcome.reason
    assert played[0].num_played == num_played
    assert played[0].end_ns == computed[0].end_ns


def test_a_picture_that_is_encoded_is_played_back_too(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    generation = {**GENERATION, "image": str(tmp_path / "a.png")}
    played, _ = both(tmp_path, model_config={"task": "i2v-tiny"}, generation=generation)
    assert played[0].num_played > 100


@pytest.mark.parametrize("mib", [840, 900, 1000])
def test_memory_runs_out_at_the_same_moment(mib: int, tmp_path: Path) -> None:
    # Latent frames are kept until the last one is decoded, by layers that are played back meanwhile.
    generation = {**GENERATION, "frame_num": 33, "size": "480*480"}
    one, other = (
        predicted(
            tmp_path / str(replays),
            replays=replays,
            begun_ns=BEGUN_NS,
            total_bytes=mib * 2**20,
            generation=generation,
        )
        for replays in (True, False)
    )
    assert one.outcome.status == "oom" and one.outcome.path.startswith("decode")
    assert one.num_played > 30 and other.num_played == 0
    facts = ("status", "reason", "path", "step", "exit_code")
    assert [getattr(one.outcome, name) for name in facts] == [getattr(other.outcome, name) for name in facts]
    played, computed = (_until_out_of_memory(tables(tmp_path / str(replays))) for replays in (True, False))
    assert played == computed and played[-1]["action"] == "oom"


def _until_out_of_memory(found: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """What comes later is freed when Python comes to it."""
    rows: list[dict[str, Any]] = found["allocs/rank=0"].to_pylist()
    return rows[: 1 + next(number for number, row in enumerate(rows) if row["action"] == "oom")]


@pytest.mark.parametrize(
    "parallel",
    [
        {"ulysses": 2, "dit_fsdp": True, "t5_fsdp": True, "vae": "split"},
        {"ring": 2},
        {"ring": 2, "dit_fsdp": True, "vae": "split"},
        {"cfg": 2},
    ],
    ids=["ulysses, FSDP, split VAE", "ring", "ring, FSDP, split VAE", "cfg"],
)
def test_ranks_that_exchange_leave_the_same_rows(parallel: dict[str, Any], tmp_path: Path) -> None:
    played, _ = both(tmp_path, 2, generation={"frame_num": 17, "sample_steps": 4}, parallel=parallel)
    assert [one.outcome.status for one in played] == ["ok", "ok"]
    assert all(one.num_played > 20 for one in played)
