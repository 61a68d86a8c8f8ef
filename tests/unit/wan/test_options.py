"""The flags: defaults are the official ones, and what the parser cannot read is refused with words."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, refusal

from wan.config import TASKS
from wan.levers import Levers
from wan.options import DEFAULT_PROMPTS, MAX_SEED, Options, describe, parse, warn
from wan.options_check import check

ROOT = Path(__file__).resolve().parents[3]


# --------------------------------------------------------------------------------
# Defaults


def test_no_flags_are_the_official_defaults() -> None:
    options = parse([])

    assert dataclasses.replace(options, base_seed=0) == Options(
        task="t2v-14B",
        size="1280*720",
        frame_num=81,
        ckpt_dir=None,
        weights="checkpoint",
        device="cuda",
        offload_model=True,
        ulysses_size=1,
        ring_size=1,
        cfg_size=1,
        t5_fsdp=False,
        dit_fsdp=False,
        vae_parallel="split",
        sp_backend="native",
        t5_cpu=False,
        save_file=None,
        prompt=DEFAULT_PROMPTS["t2v"],
        negative_prompt=None,
        use_prompt_extend=False,
        prompt_extend_method="local_qwen",
        prompt_extend_model=None,
        prompt_extend_target_lang="zh",
        base_seed=0,
        image=None,
        first_frame=None,
        last_frame=None,
        src_video=None,
        src_mask=None,
        src_ref_images=(),
        sample_solver="unipc",
        sample_steps=50,
        sample_shift=5.0,
        sample_guide_scale=5.0,
        precision="bf16",
        weights_dtype="precision",
        load_strategy="full",
        expandable_segments=True,
        levers=Levers(
            attention_slicing=False,
            ffn_chunks=0,
            rope_chunks=16,
            vae_slabs=0,
            vae_dtype="fp32",
            gradient_checkpointing=False,
            fused_kernels=True,
            matmul="precision",
            attention_kernel="auto",
        ),
    )


@pytest.mark.parametrize(
    ("task", "size", "frames", "steps", "shift", "guidance"),
    [
        ("t2v-1.3B", "832*480", 81, 50, 5.0, 5.0),
        ("t2v-14B", "1280*720", 81, 50, 5.0, 5.0),
        ("t2i-14B", "1280*720", 1, 50, 5.0, 5.0),
        ("i2v-14B", "1280*720", 81, 40, 5.0, 5.0),
        ("flf2v-14B", "1280*720", 81, 50, 16.0, 5.0),
        ("vace-1.3B", "832*480", 81, 50, 16.0, 5.0),
        ("vace-14B", "1280*720", 81, 50, 16.0, 5.0),
    ],
)
def test_each_task_has_its_official_defaults(
    task: str, size: str, frames: int, steps: int, shift: float, guidance: float
) -> None:
    options = parse(["--task", task])

    assert (options.size, options.frame_num) == (size, frames)
    assert (options.sample_steps, options.sample_shift, options.sample_guide_scale) == (
        steps,
        shift,
        guidance,
    )
    assert options.prompt == DEFAULT_PROMPTS[TASKS[task].dit.model_type]


@pytest.mark.parametrize(
    ("task", "size", "shift"),
    [
        ("i2v-14B", "832*480", 3.0),
        ("i2v-14B", "480*832", 3.0),
        ("i2v-14B", "720*1280", 5.0),
        ("t2v-14B", "832*480", 5.0),
        ("flf2v-14B", "832*480", 16.0),
    ],
)
def test_the_shift_follows_the_size_where_it_officially_does(task: str, size: str, shift: float) -> None:
    assert parse(["--task", task, "--size", size]).sample_shift == shift


def test_what_is_given_takes_the_place_of_the_task_defaults() -> None:
    options = parse(
        "--task i2v-14B --size 832*480 --frame_num 5 --sample_steps 7 --sample_shift 2.5 --sample_guide_scale 1 "
        "--prompt hello --negative_prompt grey --src_ref_images a.png,,b.png --ffn_chunks 3".split()
    )

    assert (options.size, options.frame_num, options.sample_steps) == ("832*480", 5, 7)
    assert (options.sample_shift, options.sample_guide_scale) == (2.5, 1.0)
    assert (options.prompt, options.negative_prompt) == ("hello", "grey")
    assert options.src_ref_images == (Path("a.png"), Path("b.png"))
    assert options.levers == Levers(ffn_chunks=3)


def test_an_empty_prompt_is_not_replaced_by_the_example() -> None:
    options = parse(["--prompt", "", "--negative_prompt", ""])

    assert (options.prompt, options.negative_prompt) == ("", "")


# --------------------------------------------------------------------------------
# Switches and seeds


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], False),
        (["--t5_cpu"], True),
        (["--t5_cpu", "True"], True),
        (["--t5_cpu", "yes"], True),
        (["--t5_cpu", "1"], True),
        (["--t5_cpu", "False"], False),
        (["--t5_cpu", "no"], False),
        (["--t5_cpu=0"], False),
    ],
)
def test_a_switch_that_is_off_by_default(flags: list[str], value: bool) -> None:
    assert parse(flags).t5_cpu is value


@pytest.mark.parametrize(
    ("flags", "value"), [([], True), (["--offload_model"], True), (["--offload_model", "False"], False)]
)
def test_a_switch_that_is_on_by_default(flags: list[str], value: bool) -> None:
    assert parse(flags).offload_model is value


def test_every_switch_knows_both_spellings() -> None:
    switches = [
        field.name
        for field in dataclasses.fields(Options)
        if isinstance(getattr(parse([]), field.name), bool)
    ]
    assert sorted(switches) == [
        "dit_fsdp", "expandable_segments", "offload_model", "t5_cpu", "t5_fsdp", "use_prompt_extend",
    ]  # fmt: skip
    for name in switches:
        assert getattr(parse([f"--{name}"]), name) is True
        assert getattr(parse([f"--{name}", "False"]), name) is False


@pytest.mark.parametrize("word", ["true", "t", "yes", "y", "1", "True", "T", "YES", "Y"])
def test_the_words_of_the_release_that_turn_a_switch_on(word: str) -> None:
    assert parse(["--t5_cpu", word]).t5_cpu is True
    assert parse(["--use_prompt_extend", word]).use_prompt_extend is True
    assert parse(["--offload_model", word]).offload_model is True


@pytest.mark.parametrize("word", ["false", "f", "no", "n", "0", "False", "F", "NO", "N"])
def test_the_words_of_the_release_that_turn_a_switch_off(word: str) -> None:
    assert parse(["--offload_model", word]).offload_model is False
    assert parse(["--dit_fsdp", word]).dit_fsdp is False


@pytest.mark.parametrize("word", ["", "on", "tr", "10", "none", "-1"])
def test_other_words_are_refused_in_one_line(word: str) -> None:
    assert refusal(f"--offload_model={word}")[0] == (
        f"argument --offload_model: {word!r} is neither True nor False"
    )


def test_a_switch_is_neither_maybe_nor_two() -> None:
    assert refusal("--t5_cpu", "maybe") == (
        "argument --t5_cpu: 'maybe' is neither True nor False",
        "python -m wan.generate --help lists the flags",
    )


def test_a_seed_below_zero_is_any_seed() -> None:
    seeds = {parse(["--base_seed", "-1"]).base_seed for _ in range(20)} | {parse([]).base_seed}

    assert len(seeds) > 1
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize("seed", [0, 42, 2**64 - 1])
def test_any_other_seed_stays(seed: int) -> None:
    options = parse([*TINY, "--base_seed", str(seed)])

    check(options)
    assert options.base_seed == seed


# --------------------------------------------------------------------------------
# Refusals of the parser


def test_an_unknown_flag_is_named() -> None:
    assert refusal("--frames", "5") == (
        "unrecognized arguments: --frames 5",
        "python -m wan.generate --help lists the flags",
    )


def test_a_flag_is_not_guessed_from_its_beginning() -> None:
    assert refusal("--sample_s", "5")[0] == "unrecognized arguments: --sample_s 5"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--task", "t2v-2B"), ("--task", "'t2v-2B'", *TASKS)),
        (("--precision", "fp8"), ("--precision", "'fp8'", "fp32", "fp16", "bf16")),
        (("--load_strategy", "lazy"), ("--load_strategy", "'lazy'", "full", "block", "stream")),
        (("--sample_solver", "euler"), ("--sample_solver", "'euler'", "unipc", "dpm++")),
        (("--weights", "some"), ("--weights", "'some'", "checkpoint", "random")),
        (("--frame_num", "many"), ("--frame_num", "'many'")),
        (("--sample_shift", "high"), ("--sample_shift", "'high'")),
        (("--base_seed", "1.5"), ("--base_seed", "'1.5'")),
        (("--size",), ("--size", "expected one argument")),
    ],
)
def test_a_value_the_parser_cannot_use_is_named_with_those_it_can(
    flags: tuple[str, ...], named: tuple[str, ...]
) -> None:
    message, hint = refusal(*flags)  # the words around are argparse's, and differ between versions of Python

    assert [word for word in named if word not in message] == []
    assert hint == "python -m wan.generate --help lists the flags"


# --------------------------------------------------------------------------------
# What is said, and what it costs


def test_help_names_no_default_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])

    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "(default: None)" not in told and "(default: ())" not in told
    assert "default: the first size of the task --frame_num" in told
    assert "(default: unipc)" in told and "(default: -1)" in told and "(default: True)" in told


def test_a_run_is_described_in_one_line() -> None:
    options = parse([*TINY, "--base_seed", "7", "--device", "cpu", "--load_strategy", "stream"])

    assert describe(options) == (
        "t2v-tiny 64*48 9 frames, 4 steps of unipc, shift 5, guidance 5, seed 7, bf16 on cpu, weights random, "
        "load stream"
    )


def test_how_ranks_share_the_work_is_described_by_their_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse([*TINY, "--ulysses_size", "2", "--t5_fsdp"], num_ranks=2)
    monkeypatch.setenv("WORLD_SIZE", "4")

    assert describe(options, 2) == (
        f"{describe(options)}, 2 ranks: ulysses 2 x ring 1 (native), t5_fsdp, VAE split"
    )


def test_passes_of_guidance_are_described_where_they_have_ranks_of_their_own() -> None:
    options = parse([*TINY, "--cfg_size", "2"], num_ranks=2)
    told = f"{describe(options)}, 2 ranks: ulysses 1 x ring 1 x cfg 2 (native), VAE split"
    assert describe(options, 2) == told


def test_a_warning_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("--x does nothing")

    assert capsys.readouterr() == ("", "warning: --x does nothing\n")


def test_parsing_and_checking_import_no_torch() -> None:
    program = """
import json, sys
from wan.options import describe, parse
from wan.options_check import check
options = parse(sys.argv[1:])
check(options)
describe(options)
print(json.dumps(sorted({"torch", "wan.options"} & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert json.loads(done.stdout) == ["wan.options"], done.stderr
