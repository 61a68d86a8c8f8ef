"""What a rank runs: the tiny task on the CPU in this process, its spans, seeds, files and refusals."""

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_memprof.config.keys import Logging
from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import WorkloadError
from ray_memprof.predictor.processes import Processes
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan
from ray_memprof.recorder.spans import Attribute, listening
from ray_memprof.workload import wan, wan_rank
from wan import options_here
from wan.errors import InputError, MediaError
from wan.inputs import prompt_extend
from wan.inputs.media import read_image
from wan.networks.text import encode_text

STEPS = 2


class Recorder:
    """Stands for the recorder: the paths of the spans it hears with their steps, and the steps it is told of."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.failed: list[str] = []
        self._open: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        if not self._open:
            self.stages.append(f"{name} {attributes['step']}" if "step" in attributes else name)
        self._open.append(name)

    def exit(self, name: str, failed: bool) -> None:
        assert self._open.pop() == name
        if failed:
            self.failed.append(name)

    def problem(self, text: str) -> None:
        raise AssertionError(text)

    hears_claims = False

    def claim(self, tensor: Any, owner: Any) -> None:
        pass

    def on_step(self, step: int, steps: int) -> None:
        self.steps.append((step, steps))


def config(**sections: Any) -> RunConfig:
    model = {"task": "t2i-tiny", "device": "cpu", "precision": "fp32", **sections.pop("model_config", {})}
    generation = {"sample_steps": STEPS, "base_seed": 3, **sections.pop("generation", {})}
    mapping = {"name": "test", "model_config": model, "generation": generation, **sections}
    return from_mapping(mapping, source="test")


@pytest.fixture(autouse=True)
def environ() -> Iterator[None]:
    """The environment as it was: a run sets what CUDA and NCCL read."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def plan(given: RunConfig, run_dir: Path, **changes: Any) -> RankPlan:
    facts = RankFacts(node_id="n0", host="alpha", node_ip="127.0.0.1", pid=1, gpu_index=-1)
    values: dict[str, Any] = {
        "run_id": "r", "config": given, "rank": 0, "world_size": 1, "local_rank": 0, "local_world_size": 1,
        "node": 0, "visible_devices": (), "facts": facts, "run_dir": run_dir,
    }  # fmt: skip
    return RankPlan(**values | changes)


def run_plan(given: RankPlan, recorder: Any) -> None:
    wan_rank.run(given.config, given.place, recorder, device=given.device, run_dir=given.run_dir)


def run(given: RankPlan) -> Recorder:
    recorder = Recorder()
    with listening(recorder):
        run_plan(given, recorder)
    return recorder


LOOP = [f"denoise {step}" for step in range(STEPS)]


def test_a_run_that_saves_nothing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = run(plan(config(), tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
    assert [stage for stage in recorder.stages if not stage.startswith(("load.", "residency."))] == [
        "device.init", "warmup", "encode.text", *LOOP, "decode",
    ]  # fmt: skip
    assert recorder.steps == [(1, STEPS), (2, STEPS)]
    assert recorder.failed == []


def test_a_batch_is_made_with_one_seed_after_the_other_and_saved_under_numbers(tmp_path: Path) -> None:
    def make(folder: Path, **sections: Any) -> Recorder:
        folder.mkdir()
        seed = sections.pop("seed")
        save = {"save_file": str(folder / "out.png"), "base_seed": seed}
        return run(plan(config(generation=save, **sections), tmp_path / "run"))

    recorder = make(tmp_path / "batch", seed=3, optimization={"batch_size": 2})
    for index in range(2):
        make(tmp_path / str(index), seed=3 + index)
    assert [stage for stage in recorder.stages if stage in (*LOOP, "decode", "save")] == [
        *LOOP, "decode", "save", *LOOP, "decode", "save",
    ]  # fmt: skip
    assert recorder.steps == 2 * [(1, STEPS), (2, STEPS)]
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == ["out-0.png", "out-1.png"]
    made = [read_image(tmp_path / "batch" / f"out-{index}.png") for index in range(2)]
    alone = [read_image(tmp_path / str(index) / "out.png") for index in range(2)]
    assert torch.equal(made[0], alone[0])
    assert torch.equal(made[1], alone[1])
    assert not torch.equal(made[0], made[1])


def test_a_host_too_small_for_the_video_is_told_in_the_keys_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config()  # checked where there was room; a rank may run on another host
    monkeypatch.setattr(options_here, "memory_bytes", lambda: 1024)
    with pytest.raises(WorkloadError, match=r"^generation\.frame_num 1: the video alone takes ") as raised:
        run(plan(given, tmp_path))
    assert raised.value.exit_code == 2


def test_a_file_that_could_not_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    recorder = Recorder()
    given = config(generation={"save_file": str(tmp_path / "absent" / "out.png")})
    (tmp_path / "absent").write_text("not a folder")
    with listening(recorder), pytest.raises(WorkloadError) as raised:
        run_plan(plan(given, tmp_path), recorder)
    cause = raised.value.__cause__
    assert isinstance(cause, MediaError)
    assert (str(raised.value), raised.value.hint, raised.value.exit_code) == (str(cause), cause.hint, 4)
    assert recorder.stages == []


def test_an_error_inside_a_stage_passes_through_and_marks_its_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("wan.networks.vae.network.WanVae.decode", refuse)
    recorder = Recorder()
    with listening(recorder), pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        run_plan(plan(config(), tmp_path), recorder)
    assert recorder.failed == ["decode"]


def test_a_rank_takes_its_own_gpu_from_the_list_of_its_node(tmp_path: Path) -> None:
    given = config(model_config={"device": "cuda"})

    def device(rank: int, *visible: str) -> str:
        return plan(given, tmp_path, local_rank=rank, visible_devices=visible).device

    assert plan(config(), tmp_path, local_rank=2).device == "cpu"
    assert [device(0), device(1, "4", "5"), device(2, "GPU-a", "GPU-b", "GPU-c")] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
    ]


@pytest.mark.parametrize(
    ("precision", "task", "dtypes"),
    [
        ("fp32", "i2v-tiny", {torch.float32}),
        ("bf16", "t2v-tiny", {torch.float32, torch.bfloat16}),
        ("fp16", "t2v-tiny", {torch.float32, torch.float16, torch.bfloat16}),
        ("bf16", "i2v-tiny", {torch.float32, torch.float16, torch.bfloat16}),
    ],
)
def test_every_dtype_that_multiplies_is_warmed_up(
    precision: str, task: str, dtypes: set[torch.dtype], monkeypatch: pytest.MonkeyPatch, picture: Path
) -> None:
    from ray_memprof.config.wan_keys import wan_options

    linear, seen = torch.nn.functional.linear, set()

    def watch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        seen.add(x.dtype)
        return linear(x, weight, bias)

    given = config(
        model_config={"precision": precision, "task": task},
        generation={"image": str(picture)} if task == "i2v-tiny" else {},
    )
    monkeypatch.setattr("torch.nn.functional.linear", watch)
    wan.warm_up(wan_options(given))
    assert seen == dtypes


@pytest.mark.parametrize(("matmul", "num_products"), [("fp8", 1), ("precision", 0)])
def test_a_product_in_fp8_is_warmed_up_without_drawing_numbers(
    matmul: str, num_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_memprof.config.wan_keys import wan_options

    product, seen = torch._scaled_mm, []

    def watch(*given: Any, **named: Any) -> torch.Tensor:
        seen.append(given)
        return product(*given, **named)

    given = config(
        model_config={"precision": "bf16", "weights_dtype": "fp8"}, optimization={"matmul": matmul}
    )
    monkeypatch.setattr(torch, "_scaled_mm", watch)
    before = torch.get_rng_state()
    wan.warm_up(wan_options(given))
    assert len(seen) == num_products
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_without_fp8_units_is_refused_before_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_memprof.config.wan_keys import wan_options

    def refuse(matmul: str, device: torch.device, names: dict[str, str]) -> None:
        raise InputError(f"{names['matmul']} {matmul} on {device}")

    given = config(model_config={"precision": "bf16", "weights_dtype": "fp8"}, optimization={"matmul": "fp8"})
    monkeypatch.setattr("wan.networks.linear.check_matmul", refuse)
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **named: 1 / 0)
    with pytest.raises(InputError, match=r"^optimization\.matmul fp8 on cpu$"):
        wan.warm_up(wan_options(given))


def test_the_prompt_is_extended_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def extend(prompt: str, **named: object) -> str:
        asked.append(prompt)
        return "a very red fox"

    monkeypatch.setattr("wan.inputs.prompt_extend.extend_prompt", extend)
    prompts: list[list[str]] = []

    def watch(encoder: Any, tokenizer: Any, texts: list[str], device: Any) -> Any:
        prompts.append(texts[:1])
        return encode_text(encoder, tokenizer, texts, device)

    monkeypatch.setattr("wan.pipeline.encode_text", watch)
    extended = {"prompt": "a fox", "use_prompt_extend": True}
    run(plan(config(generation=extended, optimization={"batch_size": 2}), tmp_path))
    assert (asked, prompts) == (["a fox"], [["a very red fox"], ["a very red fox"]])


PROFILED = {"level": "torch_profiler", "profiler": {"wait": 0, "warmup": 1, "active": 1}}


def profiled(folder: Path) -> None:
    run(plan(config(logging=PROFILED), folder))


def test_level_torch_profiler_leaves_a_trace_of_the_active_steps(tmp_path: Path) -> None:
    """In a process of its own: in one that had run 5,000 tests, torch's profiler once took 20 GiB."""
    with Processes(1) as processes:
        processes.call(profiled, tmp_path).result(timeout=100)
    assert [path.name for path in (tmp_path / "trace").iterdir()] == ["rank0.pt.trace.json"]
    run(plan(config(logging=PROFILED | {"profile_memory": False}), tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_the_process_group_is_left_only_after_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure other ranks may wait in a collective that never ends: leaving the group would wait for them."""
    calls: list[Any] = []
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, **given: calls.append((backend, given))
    )
    monkeypatch.setattr("torch.distributed.barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr("wan.generate.make_pipeline", lambda *_, **given: calls.append("made") or 1 / 0)
    given = config(parallel={"ulysses": 2}, ray={"timeouts": {"process_group_s": 7}})
    with pytest.raises(ZeroDivisionError):
        run(plan(given, tmp_path, rank=1, local_rank=1, world_size=2, local_world_size=2))
    joined = {"rank": 1, "world_size": 2, "timeout": timedelta(seconds=7), "device_id": None}
    assert calls == [("gloo", joined), "barrier", "made"]


def rank_of_two(given: tuple[int, Path, int]) -> tuple[list[str], list[tuple[int, int]], list[str]]:
    """What a rank went through, its steps, and the prompts that it had extended."""
    rank, folder, port = given
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    asked: list[str] = []

    def extend(prompt: str, **named: object) -> str:
        asked.append(prompt)
        return "a very red fox"

    prompt_extend.extend_prompt = extend
    generation = {"save_file": str(folder / "two.png"), "prompt": "a fox", "use_prompt_extend": True}
    made = plan(
        config(parallel={"ulysses": 2}, generation=generation),
        folder,
        rank=rank, local_rank=rank, world_size=2, local_world_size=2,
    )  # fmt: skip
    heard = run(made)
    assert not torch.distributed.is_initialized()
    passing = ("load.", "residency.", "comm.broadcast")
    return [stage for stage in heard.stages if not stage.startswith(passing)], heard.steps, asked


@pytest.mark.slow
def test_two_ranks_make_one_video_in_a_group_of_their_own(tmp_path: Path) -> None:
    """In processes: torch.distributed has one default group a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Processes(2) as processes:
        ranks = [processes.call(rank_of_two, (rank, tmp_path, port)) for rank in range(2)]
        said = [rank.result(timeout=100) for rank in ranks]
    start = ["device.init", "comm.init", "warmup", "encode.text", *LOOP, "decode"]
    steps = [(1, STEPS), (2, STEPS)]
    assert said == [([*start, "save"], steps, ["a fox"]), (start, steps, [])]
    alone = {"save_file": str(tmp_path / "one.png"), "prompt": "a very red fox"}
    run(plan(config(generation=alone), tmp_path))
    one, two = (read_image(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert torch.allclose(one, two, atol=2 / 127)  # one step of a pixel: the order of sums differs


def test_a_folder_of_ones_own_takes_the_traces(tmp_path: Path) -> None:
    own = Logging(level="torch_profiler", trace_path=tmp_path / "mine")
    assert wan_rank.trace_file(own, tmp_path / "run", 1) == tmp_path / "mine" / "rank1.pt.trace.json"
    default = wan_rank.trace_file(Logging(level="torch_profiler"), tmp_path / "run", 1)
    assert default == tmp_path / "run" / "trace" / "rank1.pt.trace.json"
