"""What may not stand together is refused with the full keys; what has no effect is said."""

import os
from pathlib import Path
from typing import Any

import pytest
from command_line import NO_FILE
from refusals import loaded, refusal

from ray_memprof.config.rules import check_files, warnings
from ray_memprof.config.run_config import RunConfig
from ray_memprof.config.wan_keys import wan_options
from ray_memprof.errors import ConfigError
from wan.levers import Levers
from wan.options import parse


def test_nothing_but_a_name_may_stand() -> None:
    assert warnings(loaded()) == []


def test_blocks_are_streamed_or_sharded() -> None:
    assert refusal(ranks=2, parallel={"dit_fsdp": True}, model={"load_strategy": "stream"}) == (
        "parallel.dit_fsdp keeps blocks on the other GPUs, model_config.load_strategy stream in host memory",
        "leave one out",
    )


@pytest.mark.parametrize("world_size", ["4", "many"])
def test_the_launchers_own_world_size_says_nothing_of_the_ranks(
    monkeypatch: pytest.MonkeyPatch, world_size: str
) -> None:
    expected = loaded(ranks=2, parallel={"ulysses": 2}, generation={"base_seed": 1})
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert loaded(ranks=2, parallel={"ulysses": 2}, generation={"base_seed": 1}) == expected
    check_files(expected)
    assert os.environ["WORLD_SIZE"] == world_size


def test_a_text_encoder_on_the_cpu_is_not_sharded_over_gpus() -> None:
    assert refusal(ranks=2, parallel={"t5_fsdp": True}, model={"t5_cpu": True}) == (
        "parallel.t5_fsdp shards over GPUs what model_config.t5_cpu keeps off them",
        "leave one out",
    )


def test_xfuser_needs_cuda() -> None:
    assert refusal(parallel={"ulysses": 2, "backend": "xfuser"}, model={"device": "cpu"}) == (
        "parallel.backend xfuser needs CUDA, model_config.device is cpu",
        "parallel.backend native runs on CPUs too",
    )


def test_an_attention_kernel_must_fit_the_device_and_the_precision() -> None:
    fa3 = {"attention_kernel": "fa3"}
    assert refusal(optimization=fa3, model={"device": "cpu"}) == (
        "optimization.attention_kernel fa3 needs CUDA, model_config.device is cpu",
        "optimization.attention_kernel sdpa runs on CPUs too",
    )
    assert refusal(optimization=fa3, model={"device": "cuda", "precision": "fp32"}) == (
        "optimization.attention_kernel fa3 computes in bf16, model_config.precision is fp32",
        "optimization.attention_kernel auto takes what fits",
    )


def test_one_video_at_a_time() -> None:
    assert refusal(optimization={"micro_batch_size": 2}) == (
        "optimization.micro_batch_size (2) must be 1: one video is made at a time",
        "optimization.batch_size makes several, one after the other",
    )


def test_the_last_video_of_a_batch_has_a_seed_too() -> None:
    last = 2**64 - 1
    assert (
        loaded(generation={"base_seed": last - 2}, optimization={"batch_size": 3}).generation.base_seed
        == last - 2
    )
    assert refusal(generation={"base_seed": last - 1}, optimization={"batch_size": 3}) == (
        f"generation.base_seed {last - 1}: each of the 3 videos takes the next seed, the largest is {last}",
        f"use at most {last - 2}",
    )


# --------------------------------------------------------------------------------
# Ray


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head:6379"])
def test_a_running_ray_has_an_address(address: str) -> None:
    assert loaded(ray={"address": address}).ray.address == address


@pytest.mark.parametrize("address", ["", "local", "head", "ray://head:10001", "head:"])
def test_another_address_is_refused(address: str) -> None:
    assert refusal(ray={"address": address}) == (
        f"ray.address {address!r}: must be auto or host:port",
        "start the launcher on a node of the cluster; leave ray.address out for a Ray of its own",
    )


def test_a_running_ray_is_not_told_its_gpus() -> None:
    assert refusal(ray={"address": "auto", "num_gpus": 4}) == (
        "ray.num_gpus (4) cannot be told to the running Ray of ray.address auto",
        "leave one out",
    )


def test_a_rank_on_cuda_holds_a_gpu() -> None:
    assert refusal(ray={"gpus_per_rank": 0}) == (
        "ray.gpus_per_rank (0): ranks on model_config.device cuda need a GPU each",
        "leave it out, or set model_config.device: cpu",
    )


@pytest.mark.parametrize("workload", [{}, {"workload": "script", "script": {"path": "a.py"}}])
def test_a_rank_uses_one_gpu(workload: dict[str, Any]) -> None:
    assert refusal(ray={"gpus_per_rank": 2}, **workload) == (
        "ray.gpus_per_rank (2): a rank uses one GPU",
        "raise ranks instead",
    )


# --------------------------------------------------------------------------------
# Scripts


def test_workload_script_needs_a_script() -> None:
    assert refusal(workload="script") == (
        "script.path is missing, or script.module",
        "script: {path: train.py, args: []}",
    )


def test_a_script_is_a_file_or_a_module() -> None:
    assert refusal(workload="script", script={"path": "a.py", "module": "b"}) == (
        "script.path (a.py) and script.module (b) both say what runs",
        "leave one out",
    )
    command = ("-m", "pkg.train", "-x")
    script = loaded(workload="script", script={"module": "pkg.train", "args": ["-x"]}).script
    assert script is not None and script.command == command


def test_a_script_needs_workload_script() -> None:
    assert refusal(script={"path": "a.py"}) == ("script is given, but workload is wan", "workload: script")


def test_a_script_says_itself_what_its_ranks_share() -> None:
    assert loaded(workload="script", script={"path": "a.py"}, ranks=3).num_ranks == 3


# --------------------------------------------------------------------------------
# The rules of wan.generate, in keys


@pytest.mark.parametrize(
    ("sections", "message", "hint"),
    [
        ({"generation": {"frame_num": 80}},
         "generation.frame_num 80 is not 4n+1: the VAE makes four frames of each latent but the first",
         "use 77 or 81"),
        ({"generation": {"size": "1280*720"}},
         "generation.size 1280*720 is not a size of t2v-1.3B", "use 832*480, 480*832"),
        ({"generation": {"sample_steps": 0}}, "generation.sample_steps 0: must be at least 1",
         "40 and 50 are usual values"),
        ({"optimization": {"vae_slabs": -1}}, "optimization.vae_slabs -1: must be at least 0",
         "0 chooses by size, 1 is off"),
        ({"model": {"weights": "checkpoint"}},
         "model_config.ckpt_dir is missing: t2v-1.3B needs the folder Wan2.1-T2V-1.3B",
         "model_config.weights random runs without files"),
        ({"model": {"weights": "random", "ckpt_dir": "Wan"}},
         "model_config.weights random reads no files, but model_config.ckpt_dir Wan is given", "leave one out"),
        ({"model": {"task": "i2v-14B"}}, "generation.image is missing: i2v-14B starts from it",
         "give it: generation.image FILE"),
        ({"generation": {"image": "a.png"}}, "generation.image has no use in t2v-1.3B",
         "t2v-1.3B reads a prompt only"),
        ({"model": {"task": "vace-1.3B"}, "generation": {"src_mask": "m.mp4"}},
         "generation.src_mask is given without generation.src_video", "give the video that the mask belongs to"),
    ],
)  # fmt: skip
def test_what_wan_refuses_is_told_in_keys(sections: dict[str, Any], message: str, hint: str) -> None:
    assert refusal(**sections) == (message, hint)


def test_an_unknown_task_is_told_with_the_nearest() -> None:
    assert refusal(model={"task": "t2v-1.3b"}) == (
        "model_config.task 't2v-1.3b' is not a task",
        "did you mean t2v-1.3B?",
    )
    message, hint = refusal(model={"task": "sora"})
    assert message == "model_config.task 'sora' is not a task"
    assert hint.startswith("use one of t2v-1.3B, t2v-14B, ")


def test_several_gpus_change_nothing_in_what_wan_allows() -> None:
    message, _ = refusal(parallel={"ulysses": 2, "dit_fsdp": True}, generation={"frame_num": 2})
    assert message.startswith("generation.frame_num 2 is not 4n+1")


def test_the_options_say_what_the_configuration_says() -> None:
    config = loaded(
        model={"task": "vace-1.3B", "load_strategy": "stream", "precision": "fp16", "offload": False},
        generation={
            "prompt": "--size 3", "src_ref_images": ["a,b.png", "c.png"], "base_seed": 7, "sample_steps": 3,
        },
        parallel={"ulysses": 2, "ring": 2, "cfg": 2, "t5_fsdp": True},
        optimization={"attention_slicing": True, "expandable_segments": False, "vae_slabs": 4},
    )  # fmt: skip
    options = wan_options(config)
    expected = {
        "task": "vace-1.3B", "load_strategy": "stream", "precision": "fp16", "offload_model": False,
        "prompt": "--size 3", "src_ref_images": (Path("a,b.png"), Path("c.png")), "base_seed": 7,
        "sample_steps": 3, "ulysses_size": 2, "ring_size": 2, "cfg_size": 2, "dit_fsdp": False, "t5_fsdp": True,
        "vae_parallel": "split", "sp_backend": "native",
        "expandable_segments": False, "weights": "random", "size": "832*480", "frame_num": 81,
        "sample_shift": 16.0, "device": "cuda", "levers": Levers(attention_slicing=True, vae_slabs=4),
    }  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected


def test_the_options_of_a_bare_configuration_are_those_of_wan_generate() -> None:
    bare = loaded(model={"precision": "bf16"}, generation={"base_seed": 3})
    flags = "--task t2v-1.3B --weights random --base_seed 3 --vae_parallel rank0 --load_strategy block"
    assert wan_options(bare) == parse(flags.split())


@pytest.mark.parametrize(("given", "num_draws"), [({}, 1), ({"base_seed": -1}, 1), ({"base_seed": 0}, 0)])
def test_only_a_seed_that_is_not_given_is_drawn_and_only_once(
    given: dict[str, int], num_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(least: int, most: int) -> int:
        drawn.append(most)
        return 7

    monkeypatch.setattr("random.randint", draw)
    config = loaded(generation=given)
    wan_options(config)
    assert (len(drawn), config.generation.base_seed) == (num_draws, 7 * num_draws)


# --------------------------------------------------------------------------------
# torch.profiler


def test_a_profile_of_no_step_is_refused() -> None:
    logging = {"level": "torch_profiler", "profiler": {"wait": 2, "warmup": 2}}
    assert refusal(logging=logging, generation={"sample_steps": 4}) == (
        "logging.profiler.wait (2) + logging.profiler.warmup (2) leave none of the 4 denoise steps to trace",
        "lower them, or raise generation.sample_steps",
    )
    assert warnings(loaded(logging=logging, generation={"sample_steps": 5})) == [
        "logging.profiler asks for 7 steps (wait 2, warmup 2, active 3), the run makes 5: traces will be short"
    ]
    assert warnings(loaded(logging=logging, generation={"sample_steps": 7})) == []
    assert loaded(logging=logging, generation={"sample_steps": 4}, optimization={"batch_size": 2})
    assert loaded(logging={**logging, "level": "event"}, generation={"sample_steps": 4})
    assert loaded(logging={**logging, "profile_memory": False}, generation={"sample_steps": 4})


# --------------------------------------------------------------------------------
# Files, asked for before a run only


def problem(config: RunConfig) -> tuple[str, str]:
    """(message, hint) of check_files."""
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    return str(caught.value), caught.value.hint


def test_a_run_without_files_needs_none() -> None:
    check_files(loaded())


def test_a_script_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    config = loaded(workload="script", script={"path": str(path)})
    hint = "check the path; relative ones start at the working folder, or else at that of the YAML file"
    told = (f"script.path {path}: there is no such file", hint)
    assert problem(config) == told
    path.mkdir()  # a folder is a program only with a main program in it
    assert problem(config) == told
    (path / "__main__.py").touch()
    check_files(config)
    check_files(loaded(workload="script", script={"module": "absent"}))  # Python itself says it is not there


def test_a_checkpoint_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "--size" / "Wan"  # no flag, though it looks like one
    config = loaded(model={"ckpt_dir": str(path)}, parallel={"ulysses": 2})
    assert problem(config) == (
        f"model_config.ckpt_dir {path}: there is no such folder",
        "download Wan2.1-T2V-1.3B, or check the path",
    )
    path.mkdir(parents=True)
    check_files(config)


@pytest.mark.parametrize(
    ("task", "given", "absent"),
    [
        ("i2v-tiny", {"image": "a.png"}, "image"),
        ("flf2v-tiny", {"first_frame": "a.png", "last_frame": "b.png"}, "first_frame"),
        ("vace-tiny", {"src_ref_images": ["a.png", "b.png"]}, "src_ref_images"),
    ],
)
def test_inputs_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, given: dict[str, Any], absent: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = loaded(model={"task": task}, generation=given)
    assert problem(config) == (f"generation.{absent} a.png: there is no such file", NO_FILE)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    check_files(config)


# --------------------------------------------------------------------------------
# Warnings

SCRIPT = {"workload": "script", "script": {"path": "a.py"}}


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"optimization": {"gradient_checkpointing": True}},
         ["optimization.gradient_checkpointing has no effect here: inference records no gradients"]),
        ({"logging": {"trace_path": "t"}},
         ["logging.trace_path t has no effect: traces are written with logging.level torch_profiler"]),
        ({"logging": {"trace_path": "t", "level": "torch_profiler"}}, []),
        ({"logging": {"profiler": {"active": 1}}},
         ["logging.profiler has no effect: it is for logging.level torch_profiler"]),
        ({"logging": {"profile_memory": False, "level": "stack"}},
         ["logging.level stack has no effect: logging.profile_memory is false"]),
        ({"logging": {"profile_memory": False}}, []),
        ({"parallel": {"vae": "split", "backend": "xfuser"}},
         ["parallel.vae split has no effect with one rank", "parallel.backend xfuser has no effect with one rank"]),
        ({"parallel": {"vae": "split", "backend": "xfuser", "ulysses": 2}}, []),
        ({"model": {"load_strategy": "stream"}, "parallel": {"ulysses": 2}}, []),
        ({"model": {"ckpt_dir": "Wan"}}, ["generation.save_file is not given: the video is made and not kept"]),
        ({"model": {"ckpt_dir": "Wan"}, "generation": {"save_file": "a.mp4"}}, []),
        ({**SCRIPT, "ranks": 2, "model": {"device": "cpu"}, "optimization": {"parallel_degree": 2}}, []),
        ({**SCRIPT, "model": {"task": "t2v-14B"}, "generation": {"sample_steps": 3}, "parallel": {"ulysses": 2},
          "optimization": {"gradient_checkpointing": True}},
         ["model_config.task, generation.sample_steps, parallel.ulysses, optimization.gradient_checkpointing: "
          "no effect with workload script"]),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said(sections: dict[str, Any], lines: list[str]) -> None:
    assert warnings(loaded(**sections)) == lines


def test_dtypes_that_do_not_fit_together_are_refused_by_their_keys() -> None:
    assert refusal(model={"weights_dtype": "fp8", "precision": "fp32"}) == (
        "model_config.weights_dtype fp8 stores weights for products in bf16, fp16 or fp8, "
        "model_config.precision is fp32",
        "model_config.precision bf16, or leave model_config.weights_dtype out",
    )
    assert refusal(optimization={"matmul": "fp8"}) == (
        "optimization.matmul fp8 multiplies weights that are stored in fp8, model_config.weights_dtype is precision",
        "model_config.weights_dtype fp8",
    )


def test_fp8_reaches_the_options_of_wan() -> None:
    options = wan_options(loaded(model={"weights_dtype": "fp8"}, optimization={"matmul": "fp8"}))
    assert (options.weights_dtype, options.levers.matmul) == ("fp8", "fp8")
