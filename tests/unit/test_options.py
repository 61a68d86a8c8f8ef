"""The flags: defaults are the official ones, and what cannot be used is refused with words and a way out."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wan.config import TASKS
from wan.errors import InputError
from wan.levers import Levers
from wan.options import DEFAULT_PROMPTS, MAX_SEED, Options, check, describe, parse, warn

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--task", "t2v-tiny", "--weights", "random")
LARGE = ("--task", "t2v-14B", "--weights", "random")


def refusal(*flags: str) -> tuple[str, str]:
    """Message and hint of the InputError that ends parsing or checking; the exit code is 2 for every one."""
    with pytest.raises(InputError) as raised:
        check(parse(flags))
    return str(raised.value), raised.value.hint


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files that are there, by the name of their flag."""
    names = {
        "image": "start.png", "first_frame": "first.png", "last_frame": "last.png",
        "src_video": "video.mp4", "src_mask": "mask.mp4", "src_ref_images": "ref.png",
    }  # fmt: skip
    for name in names.values():
        (tmp_path / name).touch()
    return {flag: str(tmp_path / name) for flag, name in names.items()}


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
        t5_fsdp=False,
        dit_fsdp=False,
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
        load_strategy="full",
        expandable_segments=True,
        levers=Levers(
            attention_slicing=False,
            ffn_chunks=0,
            rope_chunks=16,
            vae_slabs=0,
            gradient_checkpointing=False,
            fused_kernels=True,
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
# Refusals of the check


@pytest.mark.parametrize(
    ("task", "frames", "below", "above"),
    [("t2v-tiny", 0, 1, 5), ("t2v-tiny", -3, 1, 5), ("t2v-tiny", 4, 1, 5), ("t2v-14B", 80, 77, 81),
     ("t2v-14B", 82, 81, 85)],
)  # fmt: skip
def test_frame_num_is_4n_plus_1(task: str, frames: int, below: int, above: int) -> None:
    assert refusal("--task", task, "--weights", "random", "--frame_num", str(frames)) == (
        f"--frame_num {frames} is not 4n+1: the VAE makes four frames of each latent but the first",
        f"use {below} or {above}",
    )


def test_t2i_makes_one_frame() -> None:
    assert refusal("--task", "t2i-14B", "--weights", "random", "--frame_num", "5") == (
        "--frame_num 5: t2i-14B makes one image",
        "leave it out",
    )


def test_flf2v_makes_more_than_one_frame(files: dict[str, str]) -> None:
    given = ("--first_frame", files["first_frame"], "--last_frame", files["last_frame"])
    assert refusal("--task", "flf2v-tiny", "--weights", "random", *given, "--frame_num", "1") == (
        "--frame_num 1: flf2v-tiny goes from a first to a last frame",
        "use at least 5",
    )


@pytest.mark.parametrize(
    ("task", "size", "legal"),
    [
        ("t2v-1.3B", "1280*720", "832*480, 480*832"),
        ("t2v-14B", "1024*1024", "1280*720, 720*1280, 832*480, 480*832"),
        ("t2i-14B", "64*48", "1280*720, 720*1280, 832*480, 480*832, 1024*1024"),
        ("vace-1.3B", "832x480", "832*480, 480*832"),
        ("t2v-tiny", "64*50", "64*48, or small multiples of 16"),
        ("t2v-tiny", "528*16", "64*48, or small multiples of 16"),
        ("t2v-tiny", "0*16", "64*48, or small multiples of 16"),
        ("t2v-tiny", "64*-16", "64*48, or small multiples of 16"),
        ("t2v-tiny", "64", "64*48, or small multiples of 16"),
        ("t2v-tiny", "64*48*16", "64*48, or small multiples of 16"),
    ],
)
def test_a_size_is_one_of_the_task(task: str, size: str, legal: str) -> None:
    assert refusal("--task", task, "--weights", "random", "--size", size) == (
        f"--size {size} is not a size of {task}",
        f"use {legal}",
    )


def test_tiny_tasks_take_small_multiples_of_16() -> None:
    check(parse([*TINY, "--size", "32*512"]))


@pytest.mark.parametrize(
    ("task", "size", "heads", "legal"),
    [
        ("t2v-1.3B", 8, 12, "1, 2, 3, 4, 6, 12"),
        ("vace-1.3B", 24, 12, "1, 2, 3, 4, 6, 12"),
        ("t2v-14B", 16, 40, "1, 2, 4, 5, 8, 10, 20, 40"),
        ("t2v-tiny", 3, 4, "1, 2, 4"),
    ],
)
def test_ulysses_divides_the_heads(task: str, size: int, heads: int, legal: str) -> None:
    assert refusal("--task", task, "--weights", "random", "--ulysses_size", str(size)) == (
        f"--ulysses_size {size} does not divide the {heads} heads of {task}",
        f"use one of {legal}, or --ring_size",
    )


@pytest.mark.parametrize(
    ("name", "value"), [("ulysses_size", "2"), ("ring_size", "2"), ("dit_fsdp", "True"), ("t5_fsdp", "True")]
)
def test_several_gpus_are_not_available_yet(name: str, value: str) -> None:
    assert refusal(*LARGE, f"--{name}", value) == (
        f"--{name} {value}: several GPUs are not available yet",
        f"leave --{name} out; --load_strategy stream fits the 14B models on one small GPU",
    )


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("ulysses_size", "0", "be at least 1"),
        ("ring_size", "-1", "be at least 1"),
        ("sample_steps", "0", "be at least 1"),
        ("ffn_chunks", "-1", "be at least 0"),
        ("rope_chunks", "0", "be at least 1"),
        ("vae_slabs", "-1", "be at least 0"),
        ("sample_shift", "0.0", "be a number above 0"),
        ("sample_shift", "-1.0", "be a number above 0"),
        ("sample_shift", "inf", "be a number above 0"),
        ("sample_shift", "nan", "be a number above 0"),
        ("sample_guide_scale", "inf", "be a finite number"),
        ("sample_guide_scale", "nan", "be a finite number"),
        ("base_seed", str(2**64), f"be at most {2**64 - 1}"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_bound(name: str, value: str, must: str) -> None:
    assert refusal(*TINY, f"--{name}", value) == (f"--{name} {value}: must {must}", "")


def test_the_least_numbers_pass() -> None:
    check(
        parse(
            [
                *TINY,
                *"--sample_steps 1 --ffn_chunks 0 --rope_chunks 1 --vae_slabs 0 --sample_shift 0.1".split(),
            ]
            + "--ulysses_size 1 --ring_size 1 --sample_guide_scale 0 --frame_num 1".split()
        )
    )


def test_random_weights_come_without_a_folder(tmp_path: Path) -> None:
    assert refusal(*TINY, "--ckpt_dir", str(tmp_path)) == (
        f"--weights random reads no files, but --ckpt_dir {tmp_path} is given",
        "leave one out",
    )


def test_official_weights_need_a_folder() -> None:
    assert refusal("--task", "vace-1.3B") == (
        "--ckpt_dir is missing: vace-1.3B needs the folder Wan2.1-VACE-1.3B",
        "--weights random runs without files",
    )


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal("--task", "t2v-1.3B", "--ckpt_dir", str(gone)) == (
        f"--ckpt_dir {gone}: there is no such folder",
        "",
    )
    check(parse(["--task", "t2v-1.3B", "--ckpt_dir", str(tmp_path)]))


# --------------------------------------------------------------------------------
# Inputs of the tasks


# Per task: what it reads, what it cannot do without, and how its hint puts it.
INPUTS = {
    "t2v-tiny": ([], [], "a prompt only"),
    "t2i-tiny": ([], [], "a prompt only"),
    "i2v-tiny": (["image"], ["image"], "--image"),
    "flf2v-tiny": (
        ["first_frame", "last_frame"], ["first_frame", "last_frame"], "--first_frame, --last_frame",
    ),
    "vace-tiny": (
        ["src_video", "src_mask", "src_ref_images"], [], "--src_video, --src_mask, --src_ref_images",
    ),
}  # fmt: skip


def flags_for(task: str, given: list[str], files: dict[str, str]) -> list[str]:
    flags = ["--task", task, "--weights", "random"]
    for name in given:
        flags += [f"--{name}", files[name]]
    return flags


@pytest.mark.parametrize("task", INPUTS)
def test_every_input_that_a_task_reads_is_taken(task: str, files: dict[str, str]) -> None:
    reads, needs, _ = INPUTS[task]

    check(parse(flags_for(task, reads, files)))
    check(parse(flags_for(task, needs, files)))


@pytest.mark.parametrize("task", INPUTS)
def test_every_other_input_is_refused(task: str, files: dict[str, str]) -> None:
    reads, needs, used = INPUTS[task]
    for name in files.keys() - set(reads):
        assert refusal(*flags_for(task, [*needs, name], files)) == (
            f"--{name} has no use in {task}",
            f"{task} reads {used}",
        )


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in INPUTS for name in INPUTS[task][1]])
def test_every_needed_input_is_missed(task: str, name: str, files: dict[str, str]) -> None:
    others = [other for other in INPUTS[task][1] if other != name]
    assert refusal(*flags_for(task, others, files)) == (f"--{name} is missing: {task} starts from it", "")


@pytest.mark.parametrize("task", INPUTS)
def test_every_input_must_be_a_file(task: str, files: dict[str, str], tmp_path: Path) -> None:
    reads, _, _ = INPUTS[task]
    for name in reads:
        gone = str(tmp_path / "gone.png")
        assert refusal(*flags_for(task, reads, files | {name: gone})) == (
            f"--{name} {gone}: there is no such file",
            "",
        )


def test_one_reference_of_several_is_missing(files: dict[str, str]) -> None:
    refs = f"{files['src_ref_images']}, gone.png"
    assert refusal("--task", "vace-tiny", "--weights", "random", "--src_ref_images", refs) == (
        "--src_ref_images gone.png: there is no such file",
        "",
    )


def test_a_mask_needs_its_video(files: dict[str, str]) -> None:
    assert refusal(*flags_for("vace-tiny", ["src_mask"], files)) == (
        "--src_mask is given without --src_video",
        "give the video that the mask belongs to",
    )


# --------------------------------------------------------------------------------
# What is said, and what it costs


def test_a_run_is_described_in_one_line() -> None:
    options = parse([*TINY, "--base_seed", "7", "--device", "cpu", "--load_strategy", "stream"])

    assert describe(options) == (
        "t2v-tiny 64*48 9 frames, 4 steps of unipc, shift 5, guidance 5, seed 7, bf16 on cpu, weights random, "
        "load stream"
    )


def test_a_warning_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("--x does nothing")

    assert capsys.readouterr() == ("", "warning: --x does nothing\n")


def test_parsing_and_checking_import_no_torch() -> None:
    program = """
import json, sys
from wan.options import check, describe, parse
options = parse(sys.argv[1:])
check(options)
describe(options)
print(json.dumps(sorted({"torch", "wan.options"} & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert json.loads(done.stdout) == ["wan.options"], done.stderr
