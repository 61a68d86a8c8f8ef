"""Every file in configs/ can be run as its own first lines say."""

import re
from pathlib import Path

import pytest

from ray_memprof.config.load import effective_yaml
from ray_memprof.config.matrix import expand
from ray_memprof.config.rules import check_files, warnings
from ray_memprof.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(CONFIGS.glob("*"))
# What their names promise: (ranks, ulysses, ring, cfg, dit_fsdp, t5_fsdp).
LAYOUTS = {
    "cfg2_ulysses2": (4, 2, 1, 2, True, True),
    "cpu2": (2, 2, 1, 1, False, False),
    "fsdp4": (4, 1, 1, 1, True, True),
    "matrix_2gpu-cfg2": (2, 1, 1, 2, False, False),
    "matrix_2gpu-cfg2_fsdp": (2, 1, 1, 2, True, True),
    "matrix_2gpu-fsdp2": (2, 1, 1, 1, True, True),
    "matrix_2gpu-ring2": (2, 1, 2, 1, True, True),
    "matrix_2gpu-ulysses2": (2, 2, 1, 1, True, True),
    "ring4": (4, 1, 4, 1, True, True),
    "ulysses2_ring2": (4, 2, 2, 1, True, True),
    "ulysses4": (4, 4, 1, 1, True, True),
    "ulysses8": (8, 8, 1, 1, True, True),
}
NEEDS_A_FILE = {"i2v": "generation.image photo.png: there is no such file"}


def test_these_are_the_examples() -> None:
    assert [path.name for path in FILES] == [
        "baseline.yaml", "cfg2_ulysses2.yaml", "cpu2.yaml", "fsdp4.yaml", "i2v.yaml", "matrix_1gpu.yaml",
        "matrix_2gpu.yaml", "memory_opt.yaml", "optimization_test_1.yaml", "ring4.yaml", "script.yaml",
        "ulysses2_ring2.yaml", "ulysses4.yaml", "ulysses8.yaml", "vace.yaml",
    ]  # fmt: skip


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Each file in turn."""
    assert isinstance(request.param, Path)
    return request.param


def test_it_opens_with_what_it_shows_its_command_and_what_it_is_not_for(path: Path) -> None:
    head = re.match(r"(#.*\n)+", path.read_text(encoding="ascii"))
    assert head is not None
    commands = re.findall(r"python -m ray_memprof\.launch (\S+)", head[0])
    assert commands == [f"configs/{path.name}"]
    assert "\n# Not for " in head[0]
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_its_runs_are_valid_named_for_the_file_and_cross_to_yaml_and_back(path: Path, tmp_path: Path) -> None:
    for run in expand(path).runs:
        assert run.name.partition("-")[0] == path.stem
        copy = tmp_path / "effective.yaml"
        copy.write_text(effective_yaml(run))
        assert expand(copy).runs == [run]
        assert run.model.weights == "random"


def test_every_flag_in_its_comment_is_a_key(path: Path) -> None:
    text = path.read_text()
    given = re.findall(r"--set '?((?<=')[^']+|[\w.]+=[\w./-]*\w)", text)
    assert len(given) == text.count("--set ")
    expand(path, given)


def test_all_files_that_it_names_are_there_but_for_the_users_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one program among the examples lies in the repository; media would be the user's own.
    monkeypatch.chdir(CONFIGS.parent if path.stem == "script" else tmp_path)
    for run in expand(path).runs:
        if path.stem not in NEEDS_A_FILE:
            check_files(run)
            continue
        with pytest.raises(ConfigError) as caught:
            check_files(run)
        assert str(caught.value) == NEEDS_A_FILE[path.stem]


def test_its_description_says_nothing_of_gpus_and_ranks_which_set_may_change(path: Path) -> None:
    (description,) = {run.description for run in expand(path).runs}
    assert not re.search(r"GPU|\b(one|two|four|eight)\b|(Ulysses|ring|FSDP|x|ranks) \d", description)


def test_its_ranks_are_what_its_name_promises(path: Path) -> None:
    for run in expand(path).runs:
        parallel = run.parallel
        degrees = (parallel.ulysses, parallel.ring, parallel.cfg)
        found = (run.num_ranks, *degrees, parallel.dit_fsdp, parallel.t5_fsdp)
        name = run.name.removesuffix("_fp8")
        assert found == LAYOUTS.get(name, LAYOUTS.get(path.stem, (1, 1, 1, 1, False, False)))


def test_it_asks_for_nothing_without_effect(path: Path) -> None:
    expected = {
        "optimization_test_1": [
            "logging.trace_path traces/opt_test_1 has no effect: traces are written with logging.level torch_profiler"
        ]
    }
    for run in expand(path).runs:
        assert warnings(run) == expected.get(path.stem, [])


def test_memory_opt_pulls_every_lever_that_baseline_leaves_alone() -> None:
    (baseline,), (lean,) = expand(CONFIGS / "baseline.yaml").runs, expand(CONFIGS / "memory_opt.yaml").runs
    assert baseline.generation == lean.generation
    levers = ("attention_slicing", "ffn_chunks", "rope_chunks", "vae_slabs", "fused_kernels")
    assert [getattr(baseline.optimization, name) for name in levers] == [False, 1, 1, 1, False]
    assert [getattr(lean.optimization, name) for name in levers] == [True, 0, 16, 0, True]
    assert (baseline.model.offload, lean.model.offload, lean.model.load_strategy) == (False, True, "stream")


def test_rows_of_the_matrix_pull_one_lever_each_and_the_last_all() -> None:
    plain, *single, last = expand(CONFIGS / "matrix_1gpu.yaml").runs
    (lean,) = expand(CONFIGS / "memory_opt.yaml").runs
    assert (last.model, last.optimization) == (lean.model, lean.optimization)

    def changed(run: object) -> list[str]:
        return [
            f"{section}.{key}"
            for section in ("model", "optimization")
            for key, value in getattr(run, section).model_dump().items()
            if value != getattr(getattr(plain, section), key)
        ]

    assert [changed(run) for run in single] == [
        ["model.offload"], ["model.load_strategy"], ["optimization.attention_slicing"],
        ["optimization.ffn_chunks"], ["optimization.rope_chunks"], ["optimization.fused_kernels"],
        ["optimization.vae_slabs"],
    ]  # fmt: skip
