"""A configuration file becomes one frozen value without open defaults; a fault in it becomes one line."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_memprof.config.load import effective_yaml, from_mapping, load_config
from ray_memprof.config.matrix import expand
from ray_memprof.config.run_config import RunConfig

SEED_EXAMPLE = """
name: optimization_test_1
model_config: {load_strategy: block, precision: fp16, device: cuda, offload: false}
optimization: {attention_slicing: true, gradient_checkpointing: false, batch_size: 1, micro_batch_size: 1,
  parallel_degree: 1}
logging: {profile_memory: true, log_interval: 10, trace_path: "traces/opt_test_1"}
"""

Write = Callable[[str], Path]


Refusal = Callable[..., tuple[str, str]]

# --------------------------------------------------------------------------------
# Defaults


def test_a_name_is_enough(write: Write) -> None:
    config = load_config(write("name: x"))
    assert config.model_dump(by_alias=True) == {
        "name": "x", "description": "", "workload": "wan", "ranks": 1, "script": None,
        "model_config": {
            "task": "t2v-1.3B", "ckpt_dir": None, "weights": "random", "load_strategy": "block",
            "precision": "bf16", "weights_dtype": "precision", "device": "cuda", "offload": True,
            "t5_cpu": False,
        },
        "generation": {
            "size": "832*480", "frame_num": 81,
            "prompt": "A red fox trots along a frozen river at dawn, its breath rising in the cold light.",
            "negative_prompt": None, "image": None, "first_frame": None, "last_frame": None,
            "src_video": None, "src_mask": None, "src_ref_images": (), "sample_solver": "unipc",
            "sample_steps": 50, "sample_shift": 5.0, "sample_guide_scale": 5.0,
            "base_seed": config.generation.base_seed, "use_prompt_extend": False,
            "prompt_extend_method": "local_qwen", "prompt_extend_model": None,
            "prompt_extend_target_lang": "zh", "save_file": None,
        },
        "parallel": {
            "ulysses": 1, "ring": 1, "cfg": 1, "dit_fsdp": False, "t5_fsdp": False, "vae": "rank0", "backend": "native",
        },
        "optimization": {
            "attention_slicing": False, "ffn_chunks": 0, "rope_chunks": 16, "vae_slabs": 0, "vae_dtype": "fp32",
            "fused_kernels": True, "matmul": "precision", "attention_kernel": "auto", "gradient_checkpointing": False,
            "batch_size": 1,
            "micro_batch_size": 1, "parallel_degree": None, "expandable_segments": True,
        },
        "logging": {
            "profile_memory": True, "level": "event", "log_interval": 10, "trace_path": None,
            "output_dir": Path("profiler_logs"), "sample_interval_s": 0.1, "predict": None,
            "profiler": {
                "wait": 1, "warmup": 1, "active": 3, "record_shapes": False, "profile_memory": True,
                "with_stack": False,
            },
            "export": (), "ray_metrics": False,
        },
        "ray": {
            "address": None, "num_gpus": None, "gpus_per_rank": 1, "cpus_per_rank": 1, "placement": "pack",
            "scratch_dir": None,
            "timeouts": {
                "start_s": 120.0, "init_s": 300.0, "process_group_s": 1800.0, "stall_s": 300.0,
                "grace_s": 1.0, "node_grace_s": 3.0, "stop_s": 10.0, "collect_s": 120.0,
                "export_s": 120.0,
            },
        },
        "matrix": None,
    }  # fmt: skip
    assert 0 <= config.generation.base_seed < 2**31


def test_the_seed_example_loads_as_it_stands(write: Write) -> None:
    config = load_config(write(SEED_EXAMPLE))
    expected = load_config(
        write("name: optimization_test_1"),
        [
            "model_config.load_strategy=block", "model_config.precision=fp16", "model_config.offload=false",
            "optimization.attention_slicing=true", "optimization.parallel_degree=1",
            "logging.trace_path=traces/opt_test_1", f"generation.base_seed={config.generation.base_seed}",
        ],
    )  # fmt: skip
    assert config == expected
    assert (config.num_ranks, config.model.load_strategy, config.optimization.attention_slicing) == (
        1,
        "block",
        True,
    )
    assert config.logging.trace_path == Path("traces/opt_test_1")


def test_json_is_yaml(write: Write) -> None:
    text = json.dumps({"name": "x", "generation": {"base_seed": 3}, "ray": {"timeouts": {"stop_s": 2}}})
    assert load_config(write(text)) == load_config(
        write("name: x"), ["generation.base_seed=3", "ray.timeouts.stop_s=2.0"]
    )


@pytest.mark.parametrize(
    ("text", "num_ranks"),
    [
        ("", 1),
        ("parallel: {ulysses: 2, ring: 3}", 6),
        ("parallel: {ulysses: 2, cfg: 2}", 4),
        ("ranks: 4\nparallel: {ring: 4}", 4),
        ("ranks: 4\nparallel: {dit_fsdp: true}", 4),
        ("optimization: {parallel_degree: 2}\nparallel: {t5_fsdp: true}", 2),
        ("ranks: 2\noptimization: {parallel_degree: 2}\nparallel: {ulysses: 2}", 2),
        ("workload: script\nscript: {path: train.py}", 1),
        ("workload: script\nscript: {path: train.py}\nranks: 3", 3),
    ],
)
def test_ranks_have_two_names_and_a_default(write: Write, text: str, num_ranks: int) -> None:
    config = load_config(write(f"name: x\n{text}"))
    assert (config.num_ranks, config.ranks) == (num_ranks, num_ranks)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "rank0"),
        ("parallel: {ulysses: 2}", "split"),
        ("parallel: {ulysses: 2, vae: rank0}", "rank0"),
        ("parallel: {vae: split}", "split"),
    ],
)
def test_the_vae_is_split_where_there_are_ranks_to_split_it(write: Write, text: str, place: str) -> None:
    assert load_config(write(f"name: x\n{text}")).parallel.vae == place


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("", 1),
        ("model_config: {device: cpu}", 0),
        ("model_config: {device: cpu}\nray: {num_gpus: 4}", 1),
        ("model_config: {device: cpu}\nray: {gpus_per_rank: 1}", 1),
    ],
)
def test_ranks_on_the_cpu_hold_no_gpu_unless_told(write: Write, text: str, gpus: int) -> None:
    assert load_config(write(f"name: x\n{text}")).ray.gpus_per_rank == gpus


def test_weights_come_from_the_folder_that_is_given(write: Write) -> None:
    config = load_config(write("name: x"), ["model_config.ckpt_dir=Wan2.1-T2V-1.3B"])
    assert (config.model.weights, config.model.ckpt_dir) == ("checkpoint", Path("Wan2.1-T2V-1.3B"))


@pytest.mark.parametrize(
    ("task", "size", "filled"),
    [
        ("vace-1.3B", "null", ("832*480", 81, 50, 16.0)),
        ("t2i-14B", "1024*1024", ("1024*1024", 1, 50, 5.0)),
        ("t2v-tiny", "null", ("64*48", 9, 4, 5.0)),
    ],
)
def test_what_is_open_is_filled_in_by_the_task(
    write: Write, task: str, size: str, filled: tuple[str, int, int, float]
) -> None:
    generation = load_config(
        write("name: x"), [f"model_config.task={task}", f"generation.size={size}"]
    ).generation
    assert (
        generation.size, generation.frame_num, generation.sample_steps, generation.sample_shift,
    ) == filled  # fmt: skip


def test_a_seed_is_drawn_once_and_written_down(write: Write, tmp_path: Path) -> None:
    config = load_config(write("name: x\ngeneration: {base_seed: -1}"))
    again = tmp_path / "effective.yaml"
    again.write_text(effective_yaml(config))
    assert load_config(again).generation.base_seed == config.generation.base_seed >= 0


def test_a_seed_that_is_given_stays(write: Write) -> None:
    assert load_config(write("name: x\ngeneration: {base_seed: 0}")).generation.base_seed == 0


def test_null_and_an_empty_section_mean_the_default(write: Write) -> None:
    text = (
        "name: x\nlogging:\nray: {timeouts: }\nmatrix: null\ngeneration: {base_seed: 1, sample_solver: null}"
    )
    assert load_config(write(text)) == load_config(write("name: x\ngeneration: {base_seed: 1}"))


def test_a_home_folder_is_filled_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(write("name: x"), ["logging.output_dir=~/logs"]).logging.output_dir == Path(
        "/home/someone/logs"
    )


# --------------------------------------------------------------------------------
# Round trip


@pytest.mark.parametrize(
    "text",
    [
        "name: x",
        SEED_EXAMPLE,
        "name: x\nmodel_config: {task: t2v-tiny, device: cpu, precision: fp32}\nparallel: {ulysses: 2}",
        "name: x\nworkload: script\nscript: {path: a/b.py, args: ['--lr', '1e-3', 'yes'], module_spans: ['blocks.*']}",
        "name: x\nmodel_config: {task: vace-1.3B}\ngeneration: {src_ref_images: ['a,b.png', c.png], src_video: v.mp4}",
        "name: x\nmatrix: [{name: a}, {name: b, set: {generation.size: 480*832, ray.address: null}}]",
    ],
)
def test_effective_yaml_loads_into_an_equal_value(write: Write, text: str) -> None:
    config = load_config(write(text))
    assert load_config(write(effective_yaml(config))) == config


@pytest.mark.parametrize(
    "prompt",
    ["no", "1e-4", "12", "a: b # c", " edges ", "line\nline\n", "\u4e00\u53ea\u72d0\u72f8", "'\"", "- x", "x " * 300,
     "--frame_num 80", "~", "2026-01-01", "\u2028\x85\ttab"],
)  # fmt: skip
def test_any_prompt_survives_the_round_trip(write: Write, prompt: str) -> None:
    config = load_config(write(json.dumps({"name": "x", "generation": {"prompt": prompt}})))
    assert config.generation.prompt == prompt
    assert load_config(write(effective_yaml(config))) == config


def test_a_long_prompt_stays_on_one_line(write: Write) -> None:
    prompt = "a fox " * 100 + "runs"
    text = effective_yaml(load_config(write(f"name: x\ngeneration: {{prompt: {prompt}}}")))
    assert f"\n  prompt: {prompt}\n" in text


def test_relative_paths_stay_relative(write: Write) -> None:
    text = effective_yaml(load_config(write(SEED_EXAMPLE)))
    assert "  trace_path: traces/opt_test_1\n" in text
    assert text.startswith(
        "# Every key of this run. Relative paths start at the folder that it was launched from.\n"
    )


def test_it_crosses_to_a_rank_unchanged(write: Write) -> None:
    config = load_config(write(SEED_EXAMPLE))
    assert pickle.loads(pickle.dumps(config)) == config


def test_it_is_frozen(write: Write) -> None:
    config = load_config(write("name: x"))
    with pytest.raises(ValidationError, match="frozen"):
        config.parallel.ulysses = 2


# --------------------------------------------------------------------------------
# Overrides


def test_overrides_are_yaml_values_by_full_key_the_last_one_wins(write: Write) -> None:
    config = load_config(
        write("name: x\nworkload: script\nscript: {path: a.py}\nlogging: {level: stage}"),
        [
            "script.args=[--steps, '4']",
            "logging.sample_interval_s=0.5",
            "logging.level=stack",
            "logging.level=event",
            "description=a=b",
            "ray={address: auto}",
            "ray.timeouts.stop_s=1",
        ],
    )
    assert config.script is not None
    assert (config.script.args, config.description) == (("--steps", "4"), "a=b")
    assert (config.logging.sample_interval_s, config.logging.level) == (0.5, "event")
    assert (config.ray.address, config.ray.timeouts.stop_s) == ("auto", 1.0)


AS_WRITTEN = (
    "-1",
    "007",
    "1_000",
    "0x1F",
    "1.50",
    "1e-4",
    ".inf",
    "yes",
    "True",
    "2026-01-31",
    "12:30:45",
    "",
    "a b",
)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("script: {path: a.py, args: [%s]}", []),
        ("script: {path: a.py}", ["script.args=[%s]"]),
        ("script: {path: a.py}", ["script={path: a.py, args: [%s]}"]),
    ],
)
def test_arguments_of_a_script_are_passed_as_they_are_written(
    write: Write, text: str, overrides: list[str]
) -> None:
    listed = ", ".join(one if one else "''" for one in AS_WRITTEN)
    config = load_config(
        write("name: x\nworkload: script\n" + text.replace("%s", listed)),
        [one.replace("%s", listed) for one in overrides],
    )
    assert config.script is not None and config.script.args == AS_WRITTEN
    assert load_config(write(effective_yaml(config))) == config


def test_an_alias_in_the_arguments_keeps_its_type_elsewhere(write: Write) -> None:
    text = "name: x\nworkload: script\nranks: &n 2\nscript: {path: a.py, args: [--ranks, *n, &m 3]}\n"
    config = load_config(write(text + "ray: {cpus_per_rank: *m}\n"))
    assert config.script is not None
    assert (config.ranks, config.script.args, config.ray.cpus_per_rank) == (2, ("--ranks", "2", "3"), 3)


def test_arguments_that_python_gives_are_passed_as_yaml_writes_them() -> None:
    given = {"path": "a.py", "args": [1, 0.5, True, False, "x"]}
    script = from_mapping({"name": "x", "workload": "script", "script": given}, source="test").script
    assert script is not None and script.args == ("1", "0.5", "true", "false", "x")


def test_a_relative_path_starts_at_the_working_folder_and_else_at_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    file = there / "x.yaml"
    file.write_text("name: x\nworkload: script\nscript: {path: job.py}\nmatrix: [{name: a}]")
    monkeypatch.chdir(here)

    def found() -> set[Path | None]:
        scripts = [load_config(file).script, *(run.script for run in expand("../there/x.yaml").runs)]
        return {
            None if script is None or script.path is None else script.path.resolve() for script in scripts
        }

    # Neither: as it was given, and so the refusal names it.
    script = load_config(file).script
    assert script is not None and script.path == Path("job.py")
    (there / "job.py").touch()
    assert found() == {there / "job.py"}
    (here / "job.py").touch()
    assert found() == {here / "job.py"}


def test_an_empty_override_goes_back_to_the_default(write: Write) -> None:
    config = load_config(write("name: x\ngeneration: {frame_num: 5}"), ["generation.frame_num="])
    assert config.generation.frame_num == 81


def test_an_override_leaves_an_aliased_section_alone(write: Write) -> None:
    text = "name: x\nray: {timeouts: &t {stop_s: 3}}\nmatrix: [{name: a, set: {ray.timeouts: *t}}]"
    config = load_config(write(text), ["ray.timeouts.stop_s=4"])
    assert config.matrix is not None
    assert (config.ray.timeouts.stop_s, config.matrix[0].set) == (4.0, {"ray.timeouts": {"stop_s": 3}})


@pytest.mark.parametrize("text", ["ranks", "=3", ".=3", "ray.=3", "ray..address=3", ""])
def test_an_override_needs_a_key_and_a_value(refusal: Refusal, text: str) -> None:
    assert refusal("name: x", text) == (
        f"--set {text}: not of the form section.key=value",
        "--set generation.sample_steps=4",
    )


def test_an_override_below_a_value_is_refused(refusal: Refusal) -> None:
    assert refusal("name: x\nray: {address: auto}", "ray.address.host=y") == (
        "--set ray.address.host=y: ray.address is 'auto', no section",
        "check the key",
    )


def test_an_override_that_is_no_yaml_is_refused(refusal: Refusal) -> None:
    message, hint = refusal("name: x", "script.args=[a")
    assert message.startswith("--set script.args=[a, line 1, column 3: ")
    assert hint == "it must be YAML; quote text that holds : # [ { or }"


# --------------------------------------------------------------------------------
# Cost


def test_loading_brings_neither_torch_nor_ray(write: Write) -> None:
    program = (
        "import sys\n"
        "from ray_memprof.config.load import effective_yaml\n"
        "from ray_memprof.config.rules import check_files, warnings\n"
        "from ray_memprof.config.matrix import expand\n"
        "config, = expand(sys.argv[1]).runs\n"
        "check_files(config), warnings(config), effective_yaml(config)\n"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow', 'duckdb', 'ray_memprof'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(write(SEED_EXAMPLE))],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("['ray_memprof']\n", "")


def test_a_value_made_in_code_has_the_names_of_the_file() -> None:
    config = RunConfig.model_validate({"name": "x", "model_config": {"task": "t2v-tiny"}})
    assert config.model.task == "t2v-tiny"
