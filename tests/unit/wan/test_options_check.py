"""What cannot be used is refused before torch is imported, in one line, with a way out."""

from pathlib import Path

import pytest
from command_line import TINY, refusal

from wan import options_here
from wan.errors import InputError
from wan.options import parse
from wan.options_check import check

LARGE = ("--task", "t2v-14B", "--weights", "random")


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


@pytest.mark.parametrize(
    ("task", "size", "frames", "tokens", "most"),
    [
        ("t2v-tiny", "64*48", 1_000_000_001, "3,000,000,012", 715_827_877),
        ("t2v-1.3B", "832*480", 1_000_000_001, "390,000,001,560", 5_506_365),
        ("t2v-14B", "1280*720", 4_000_001, "3,600,003,600", 2_386_089),
        ("t2v-tiny", "16*16", 4 * 2**31 - 3, "2,147,483,648", 4 * 2**31 - 7),
    ],
)
def test_more_frames_than_attention_can_count_are_refused(
    task: str, size: str, frames: int, tokens: str, most: int
) -> None:
    flags = ("--task", task, "--weights", "random", "--size", size, "--frame_num")
    assert refusal(*flags, str(frames)) == (
        f"--frame_num {frames}: {tokens} tokens of {size}, attention counts at most 2,147,483,647",
        f"use at most {most}; 81 is the length the model was made for",
    )
    assert most % 4 == 1
    check(parse([*flags, str(most)]), here=False)
    with pytest.raises(InputError, match="attention counts at most"):
        check(parse([*flags, str(most + 4)]), here=False)


def test_a_video_that_the_host_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frame_bytes = 64 * 48 * 3 * 4
    monkeypatch.setattr(options_here, "memory_bytes", lambda: 12 * frame_bytes)
    check(parse([*TINY, "--frame_num", "9"]))
    assert refusal(*TINY, "--frame_num", "13") == (
        "--frame_num 13: the video alone takes 0.0 GiB of host memory (fp32, 64*48), this host has 0.0",
        "use at most 9; 81 is the length the model was made for",
    )
    check(parse([*TINY, "--frame_num", "13"]), here=False)
    monkeypatch.setattr(options_here, "memory_bytes", lambda: 13 * frame_bytes)
    check(parse([*TINY, "--frame_num", "13"]))
    monkeypatch.setattr(options_here, "memory_bytes", lambda: 24 * 2**30)
    flags = ("--task", "t2v-14B", "--weights", "random", "--frame_num")
    check(parse([*flags, "2329"]))
    assert refusal(*flags, "2333") == (
        "--frame_num 2333: the video alone takes 24.0 GiB of host memory (fp32, 1280*720), this host has 24.0",
        "use at most 2329; 81 is the length the model was made for",
    )
    monkeypatch.setattr(options_here, "memory_bytes", lambda: 1)
    assert refusal(*TINY)[1].startswith("use at most 1;")


@pytest.mark.parametrize("frames", [-(10**30), 0, 10**30, 10**30 + 1])
def test_no_number_of_frames_is_too_far_off(frames: int) -> None:
    assert refusal(*TINY, "--frame_num", str(frames))[0].startswith(f"--frame_num {frames}")


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


def as_rank_of(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun would start the last of `num_ranks`."""
    for name, value in (("RANK", num_ranks - 1), ("LOCAL_RANK", num_ranks - 1), ("WORLD_SIZE", num_ranks)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (
            ["--ulysses_size", "4"], "--ulysses_size 4 x --ring_size 1 needs 4 ranks, there is 1",
            "start it with torchrun --nproc_per_node 4",
        ),
        (
            ["--cfg_size", "2"], "--ulysses_size 1 x --ring_size 1 x --cfg_size 2 needs 2 ranks, there is 1",
            "start it with torchrun --nproc_per_node 2",
        ),
        (
            ["--ulysses_size", "2", "--ring_size", "4"], "--ulysses_size 2 x --ring_size 4 needs 8 ranks, there is 1",
            "start it with torchrun --nproc_per_node 8",
        ),
        (
            ["--dit_fsdp"], "--dit_fsdp shards over ranks, and there is 1",
            "start it with torchrun --nproc_per_node 2 or more; "
            "--load_strategy stream fits the 14B models on one small GPU",
        ),
        (
            ["--t5_fsdp"], "--t5_fsdp shards over ranks, and there is 1",
            "start it with torchrun --nproc_per_node 2 or more; "
            "--load_strategy stream fits the 14B models on one small GPU",
        ),
    ],
)  # fmt: skip
def test_one_process_is_no_layout_of_several(flags: list[str], error: str, hint: str) -> None:
    assert refusal(*LARGE, *flags) == (error, hint)


@pytest.mark.parametrize(
    ("num_ranks", "task", "flags", "error", "hint"),
    [
        (
            8, "t2v-1.3B", ["--ulysses_size", "4"], "--ulysses_size 4 x --ring_size 1 needs 4 ranks, there are 8",
            "with 8 ranks t2v-1.3B takes --ulysses_size 4 --ring_size 2 or --ulysses_size 2 --ring_size 4 "
            "or --ulysses_size 1 --ring_size 8, with --cfg_size 2 --ulysses_size 4 --ring_size 1 or --ulysses_size 2 "
            "--ring_size 2 or --ulysses_size 1 --ring_size 4",
        ),
        (
            2, "t2v-14B", [], "2 ranks share nothing: each would make the whole video of t2v-14B",
            "use --ulysses_size 2 --ring_size 1 or --ulysses_size 1 --ring_size 2, with --cfg_size 2 --ulysses_size 1 "
            "--ring_size 1, or --dit_fsdp to share the weights alone",
        ),
        (
            4, "t2v-14B", ["--cfg_size", "2"],
            "--ulysses_size 1 x --ring_size 1 x --cfg_size 2 needs 2 ranks, there are 4",
            "with 4 ranks t2v-14B takes --ulysses_size 4 --ring_size 1 or --ulysses_size 2 --ring_size 2 or "
            "--ulysses_size 1 --ring_size 4, with --cfg_size 2 --ulysses_size 2 --ring_size 1 or --ulysses_size 1 "
            "--ring_size 2",
        ),
        (
            2, "t2v-14B", ["--cfg_size", "2", "--sample_guide_scale", "1"],
            "--cfg_size 2 gives half of the ranks the unconditional pass, which --sample_guide_scale 1 leaves out",
            "leave --cfg_size out, or set another --sample_guide_scale",
        ),
        (
            3, "t2v-14B", ["--cfg_size", "3"],
            "--cfg_size 3: guidance has 2 passes, conditional and unconditional",
            "--cfg_size 2 gives each of them half of the ranks",
        ),
        (
            2, "t2v-14B", ["--cfg_size", "2", "--sp_backend", "xfuser"],
            "--cfg_size 2 does not go with --sp_backend xfuser",
            "--sp_backend native runs each pass on half of the ranks",
        ),
        (
            2, "t2v-14B", ["--ulysses_size", "2", "--dit_fsdp", "--load_strategy", "stream"],
            "--dit_fsdp keeps blocks on the other GPUs, --load_strategy stream in host memory", "leave one out",
        ),
        (
            2, "t2v-14B", ["--ulysses_size", "2", "--t5_fsdp", "--t5_cpu"],
            "--t5_fsdp shards over GPUs what --t5_cpu keeps off them", "leave one out",
        ),
        (
            2, "t2v-14B", ["--ulysses_size", "2", "--sp_backend", "xfuser", "--device", "cpu"],
            "--sp_backend xfuser needs CUDA, --device is cpu", "--sp_backend native runs on CPUs too",
        ),
        (
            2, "t2v-14B", ["--ulysses_size", "2", "--device", "cuda:1"],
            "--device cuda:1: with 2 ranks each takes the GPU of its LOCAL_RANK",
            "use cuda or cpu; CUDA_VISIBLE_DEVICES chooses the GPUs",
        ),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_told_with_those_that_can(
    num_ranks: int, task: str, flags: list[str], error: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank_of(num_ranks, monkeypatch)
    assert refusal("--task", task, "--weights", "random", *flags) == (error, hint)


@pytest.mark.parametrize(
    ("num_ranks", "flags"),
    [
        (4, ["--ulysses_size", "4"]), (4, ["--ring_size", "4", "--dit_fsdp"]), (4, ["--dit_fsdp"]), (2, ["--t5_fsdp"]),
        (4, ["--ulysses_size", "2", "--ring_size", "2", "--t5_fsdp", "--vae_parallel", "rank0"]),
        (2, ["--cfg_size", "2"]), (4, ["--cfg_size", "2", "--ring_size", "2", "--dit_fsdp"]),
    ],
)  # fmt: skip
def test_layouts_that_use_every_rank_pass(
    num_ranks: int, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank_of(num_ranks, monkeypatch)
    check(parse([*LARGE, *flags]))


def test_several_ranks_read_straight_to_their_devices_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse([*LARGE]).load_strategy == "full"
    as_rank_of(2, monkeypatch)
    assert parse([*LARGE]).load_strategy == "block"
    assert parse([*LARGE, "--load_strategy", "full"]).load_strategy == "full"


@pytest.mark.parametrize(
    ("name", "values", "must", "hint"),
    [
        ("ulysses_size", ["0"], "be at least 1", "leave --ulysses_size out"),
        ("ring_size", ["-1"], "be at least 1", "leave --ring_size out"),
        ("sample_steps", ["0"], "be at least 1", "40 and 50 are usual values"),
        ("ffn_chunks", ["-1"], "be at least 0", "0 chooses by size, 1 is off"),
        ("rope_chunks", ["0"], "be at least 1", "1 is off"),
        ("vae_slabs", ["-1"], "be at least 0", "0 chooses by size, 1 is off"),
        (
            "sample_shift", ["0.0", "-1.0", "inf", "nan", "1e-300", "0.009", "1000.1", "1e+30"],
            "be from 0.01 to 1000", "3 to 16 are usual values",
        ),
        (
            "sample_guide_scale", ["inf", "nan", "1e+39", "3.5e+38"],
            "be a finite number in fp32", "5 is a usual value, 1 is none",
        ),
        (
            "sample_steps", ["1001", "1000000000"], "be at most 1000, the noise levels that the model knows",
            "40 and 50 are usual values",
        ),
        ("base_seed", [str(2**64)], f"be at most {2**64 - 1}", "below 0 takes any seed"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named_with_its_bound(
    name: str, values: list[str], must: str, hint: str
) -> None:
    for value in values:
        assert refusal(*TINY, f"--{name}", value) == (f"--{name} {value}: must {must}", hint)


@pytest.mark.parametrize(
    ("flags", "name", "most", "what", "usual"),
    [
        # 21 frames of 30 x 52 tokens; a quarter of 21 x 45 x 80; the 104 and the 160 columns of their latents.
        ("--task t2v-1.3B", "ffn_chunks", 511, "32,760 tokens of a rank", 16),
        ("--task t2v-1.3B", "rope_chunks", 511, "32,760 tokens of a rank", 16),
        ("--task t2v-14B --ulysses_size 4", "ffn_chunks", 295, "18,900 tokens of a rank", 16),
        ("--task t2v-1.3B", "vae_slabs", 26, "104 columns of latents", 8),
        ("--task t2v-14B --size 720*1280", "vae_slabs", 40, "160 columns of latents", 8),
        # Few parts are never too many: 5 frames of 3 x 4 tokens.
        ("--task t2v-tiny --size 64*48 --frame_num 17", "ffn_chunks", 64, "60 tokens of a rank", 16),
        ("--task t2v-tiny --size 64*48 --frame_num 17", "vae_slabs", 16, "8 columns of latents", 8),
    ],
)  # fmt: skip
def test_so_many_chunks_and_slabs_that_they_only_take_time_are_refused(
    flags: str, name: str, most: int, what: str, usual: int
) -> None:
    argv = [*flags.split(), "--weights", "random"]
    num_ranks = 4 if "ulysses" in flags else 1
    check(parse([*argv, f"--{name}", str(most)], num_ranks=num_ranks), num_ranks=num_ranks)
    with pytest.raises(InputError) as caught:
        check(parse([*argv, f"--{name}", str(most + 1)], num_ranks=num_ranks), num_ranks=num_ranks)
    assert (str(caught.value), caught.value.hint) == (
        f"--{name} {most + 1}: must be at most {most}: smaller parts of {what} save next to nothing and take far "
        "longer",
        f"{usual} is a usual value",
    )


@pytest.mark.parametrize("value", ["-inf", "-3.5e+38"])
def test_guidance_below_all_numbers_is_refused(value: str) -> None:
    assert refusal(*TINY, f"--sample_guide_scale={value}")[0] == (
        f"--sample_guide_scale {value}: must be a finite number in fp32"
    )


def test_the_largest_numbers_pass() -> None:
    given = f"--sample_steps 1000 --sample_shift 1000 --sample_guide_scale 3.4e38 --base_seed {2**64 - 1}"
    check(parse([*TINY, *given.split()]))


def test_the_least_numbers_pass() -> None:
    check(
        parse(
            [
                *TINY,
                *"--sample_steps 1 --ffn_chunks 0 --rope_chunks 1 --vae_slabs 0 --sample_shift 0.01".split(),
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
        "download Wan2.1-T2V-1.3B, or check the path",
    )
    check(parse(["--task", "t2v-1.3B", "--ckpt_dir", str(tmp_path)]))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    for name, told, hint in (
        ("wan.safetensors", "is one file, not a checkpoint folder",
         "checkpoints in one file, as other programs use them, are not read; give the official folder "
         "of t2v-1.3B: Wan2.1-T2V-1.3B"),
        ("notes.txt", "is not a folder", "give the folder"),
    ):  # fmt: skip
        (tmp_path / name).touch()
        assert refusal("--task", "t2v-1.3B", "--ckpt_dir", str(tmp_path / name)) == (
            f"--ckpt_dir {tmp_path / name} {told}",
            hint,
        )


# --------------------------------------------------------------------------------
# Attention kernels


GPU = ("--task", "t2v-14B", "--weights", "random", "--attention_kernel")


@pytest.mark.parametrize("kernel", ["fa3", "fa3_fp8", "fa4"])
def test_attention_kernels_of_packages_need_cuda(kernel: str) -> None:
    assert refusal(*TINY, "--device", "cpu", "--attention_kernel", kernel) == (
        f"--attention_kernel {kernel} needs CUDA, --device is cpu",
        "--attention_kernel sdpa runs on CPUs too",
    )
    check(parse([*GPU, kernel]), here=False)


@pytest.mark.parametrize(
    ("kernel", "precision", "taken"),
    [("fa3", "fp32", "bf16"), ("fa3", "fp16", "bf16"), ("fa3_fp8", "fp32", "bf16"), ("fa3_fp8", "fp16", "bf16"),
     ("fa4", "fp32", "bf16 or fp16")],
)  # fmt: skip
def test_an_attention_kernel_must_fit_the_precision(kernel: str, precision: str, taken: str) -> None:
    assert refusal(*GPU, kernel, "--precision", precision) == (
        f"--attention_kernel {kernel} computes in {taken}, --precision is {precision}",
        "--attention_kernel auto takes what fits",
    )


def test_attention_of_xfuser_has_kernels_of_its_own() -> None:
    split = ["--ulysses_size", "2", "--sp_backend", "xfuser"]
    for kernel in ("fa3", "sdpa"):
        with pytest.raises(InputError) as raised:
            check(parse([*GPU, kernel, *split], num_ranks=2), here=False, num_ranks=2)
        assert (str(raised.value), raised.value.hint) == (
            f"--attention_kernel {kernel} has no effect: --sp_backend xfuser has kernels of its own",
            "leave one out",
        )
    check(parse([*GPU, "auto", *split], num_ranks=2), here=False, num_ranks=2)


@pytest.mark.parametrize("kernel", ["auto", "sdpa"])
def test_attention_by_torch_runs_everywhere(kernel: str) -> None:
    check(parse([*TINY, "--device", "cpu", "--attention_kernel", kernel]))
    check(parse([*GPU, kernel, "--precision", "fp32"]), here=False)


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            "--weights_dtype fp8 --precision fp32",
            "--weights_dtype fp8 stores weights for products in bf16, fp16 or fp8, --precision is fp32",
            "--precision bf16, or leave --weights_dtype out",
        ),
        (
            "--matmul fp8",
            "--matmul fp8 multiplies weights that are stored in fp8, --weights_dtype is precision",
            "--weights_dtype fp8",
        ),
        (
            "--matmul fp8 --weights_dtype fp8 --precision fp16",
            "--matmul fp8 gives its products in bf16, --precision is fp16",
            "--precision bf16, or leave --matmul out",
        ),
    ],
)
def test_dtypes_that_do_not_fit_together(flags: str, message: str, hint: str) -> None:
    assert refusal(*TINY, *flags.split()) == (message, hint)


@pytest.mark.parametrize(
    "flags",
    ["--weights_dtype fp8 --matmul fp8", "--weights_dtype fp8 --precision fp16", "--weights_dtype fp8"],
)
def test_dtypes_that_fit_together(flags: str) -> None:
    check(parse([*TINY, *flags.split()]))
