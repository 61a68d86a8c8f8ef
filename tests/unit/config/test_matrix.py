"""A matrix is a table of runs: each is the file with a few keys changed, and all are checked first."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_memprof.config.load import effective_yaml, load_config
from ray_memprof.config.matrix import expand
from ray_memprof.errors import ConfigError

Write = Callable[[str], Path]

TABLE = """
name: table
generation: {sample_steps: 3}
matrix:
  - name: plain
  - name: sliced
    set: {optimization.attention_slicing: true, generation.sample_steps: 2}
  - name: two
    set: {parallel: {ulysses: 2}, generation.base_seed: 5}
"""


def refusal(path: Path, *overrides: str) -> tuple[str, str]:
    """(message, hint); x.yaml stands for the path."""
    with pytest.raises(ConfigError) as caught:
        expand(path, overrides)
    return str(caught.value).replace(str(path), "x.yaml"), caught.value.hint


def test_without_a_matrix_there_is_one_run(write: Write) -> None:
    path = write("name: x\ngeneration: {base_seed: 1}")
    assert expand(path, ["ranks=1"]).runs == [load_config(path, ["ranks=1"])]


def test_every_row_is_the_file_with_its_keys_changed(write: Write, tmp_path: Path) -> None:
    runs = expand(write(TABLE)).runs
    seed = f"generation.base_seed={runs[0].generation.base_seed}"
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: table")
    assert runs == [
        load_config(bare, ["name=table-plain", "generation.sample_steps=3", seed]),
        load_config(
            bare,
            ["name=table-sliced", "generation.sample_steps=2", "optimization.attention_slicing=true", seed],
        ),
        load_config(
            bare,
            ["name=table-two", "generation.sample_steps=3", "parallel.ulysses=2", "generation.base_seed=5"],
        ),
    ]


def test_a_row_loads_again_from_its_own_effective_configuration(write: Write) -> None:
    for run in expand(write(TABLE)).runs:
        assert expand(write(effective_yaml(run))).runs == [run]


def test_overrides_reach_every_row(write: Write) -> None:
    runs = expand(write(TABLE), ["name=other", "generation.frame_num=5"]).runs
    assert [(run.name, run.generation.frame_num) for run in runs] == [
        ("other-plain", 5), ("other-sliced", 5), ("other-two", 5),
    ]  # fmt: skip


def test_the_page_of_the_table_lies_beside_the_folders_of_its_runs(write: Write) -> None:
    expanded = expand(write(TABLE), ["name=other", "logging.output_dir=logs"])
    assert expanded.page == Path("logs/other-matrix.html")


def test_without_its_matrix_the_file_is_one_run(write: Write) -> None:
    expanded = expand(write(TABLE), ["matrix="])
    assert ([run.name for run in expanded.runs], expanded.page) == (["table"], None)


@pytest.mark.parametrize(
    "key", ["generation.sample_steps=4", "optimization={attention_slicing: false}", "parallel.ring=2"]
)
def test_an_override_that_a_row_would_hide_is_refused(write: Write, key: str) -> None:
    message, hint = refusal(write(TABLE), key)
    row = "two" if key.startswith("parallel") else "sliced"
    assert message == f"--set {key.partition('=')[0]} is also set by x.yaml, matrix run {row}"
    assert hint == "leave it out, or take it from the row"


@pytest.mark.parametrize("key", ["name", "matrix"])
def test_a_row_cannot_change_what_it_is(write: Write, key: str) -> None:
    assert refusal(write(f"name: x\nmatrix: [{{name: a, set: {{{key}: b}}}}]")) == (
        f"x.yaml, matrix run a: a row cannot set {key}",
        "its name is that of the row",
    )


def test_names_of_rows_differ(write: Write) -> None:
    assert refusal(write("name: x\nmatrix: [{name: a}, {name: b}, {name: a}]")) == (
        "x.yaml: matrix[2].name a is taken by matrix[0]",
        "give each run a name of its own",
    )


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("optimization.slicing: true", "unknown key optimization.slicing",
         "did you mean optimization.attention_slicing?"),
        ("generation.frame_num: 80",
         "generation.frame_num 80 is not 4n+1: the VAE makes four frames of each latent but the first",
         "use 77 or 81"),
        ("ranks: two", "ranks 'two': must be a whole number", ""),
        ("name.x: 1", "a row cannot set name.x", "its name is that of the row"),
        ("description.x: 1", "description is 'd', no section", "check the key"),
    ],
)  # fmt: skip
def test_a_fault_in_the_last_row_is_found_before_any_runs(
    write: Write, change: str, message: str, hint: str
) -> None:
    path = write(f"name: x\ndescription: d\nmatrix: [{{name: a}}, {{name: b, set: {{{change}}}}}]")
    assert refusal(path) == (f"x.yaml, matrix run b: {message}", hint)


def test_two_rows_do_not_write_the_same_files(write: Write) -> None:
    path = write(TABLE)
    assert refusal(path, "generation.save_file=a.mp4") == (
        "x.yaml: generation.save_file a.mp4 is where both table-plain and table-sliced write",
        "set generation.save_file in the rows, or leave it out",
    )
    profile = ("logging.level=torch_profiler", "logging.profiler.wait=0")
    assert refusal(path, "logging.trace_path=t", *profile) == (
        "x.yaml: logging.trace_path t is where both table-plain and table-sliced write",
        "set logging.trace_path in the rows, or leave it out",
    )
    assert len(expand(path, ["logging.trace_path=t"]).runs) == len(expand(path, profile).runs) == 3
