"""A program that knows nothing of us: spans of its phases, and owners of what it holds at its peak, to the byte."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ray_memprof.query.database import open_run
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.spans import span, step
from ray_memprof.workload.observed import observed
from ray_memprof.workload.tensor_owners import TensorOwners, plain_tensors


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class GPT(nn.Module):
    """Its head is tied to its embedding, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head.weight = self.wte.weight
        self.register_buffer("mask", torch.ones(8, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


@contextmanager
def recorded(run_dir: Path, components: dict[str, str] | None = None) -> Iterator[None]:
    with recording(RecordingOptions(run_dir=run_dir, device="cpu")) as recorder:
        with observed(recorder, module_spans=("blocks.*",), components=components):
            yield
    assert recorder.problems == ()


def asked(run_dir: Path, name: str) -> list[dict[str, Any]]:
    with open_run(run_dir) as connection:
        return rows_of(connection, name)


def stages(run_dir: Path) -> list[tuple[str, str, int | None, str | None]]:
    with open_run(run_dir) as connection:
        rows = fetched(
            connection,
            "SELECT path, stage, step, component FROM spans WHERE is_stage(depth, path) AND depth > 0 ORDER BY span_id",
        )
    return [tuple(row.values()) for row in rows]  # type: ignore[misc]


def train(model: nn.Module, steps: int = 2, kind: Any = torch.optim.AdamW) -> None:
    optimizer = kind(model.parameters())
    tokens = torch.arange(24).reshape(3, 8)
    for _ in range(steps):
        model(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


def num_bytes(tensors: Any) -> int:
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def test_every_byte_at_the_peak_of_a_training_has_its_owner_and_category(tmp_path: Path) -> None:
    with recorded(tmp_path):
        model = GPT()
        train(model)
    held = Counter[str]()
    for row in asked(tmp_path, "alive_at_peak"):
        held[row["category"]] += row["bytes"]
        assert row["component"] == "GPT" or row["path"] == "script"
    parameters = num_bytes(model.parameters())
    assert held["weight"] == parameters
    assert held["buffer"] == num_bytes(model.buffers())
    # Two moments for each parameter. torch makes the tensor with the step by no operation: it is not counted at all.
    assert held["optimizer"] == 2 * parameters
    owners = {row["owner"] for row in asked(tmp_path, "alive_at_peak_by_owner")}
    assert {"GPT.wte.weight", "GPT.mask", "GPT.blocks.2.down.bias exp_avg_sq", "GPT.blocks.0"} <= owners
    assert "GPT.head.weight" not in owners  # tied
    assert asked(tmp_path, "base_memory")[0]["base_bytes"] == parameters + held["buffer"]


def test_gradients_are_those_of_the_parameters_to_the_byte(tmp_path: Path) -> None:
    with recorded(tmp_path):
        model = GPT()
        model(torch.arange(24).reshape(3, 8)).backward()
        torch.ones(1 << 20)  # the peak, with all gradients alive; no step ever comes
        held = num_bytes(one.grad for one in model.parameters())
    rows = asked(tmp_path, "alive_at_peak")
    assert sum(row["bytes"] for row in rows if row["category"] == "gradient") == held


def test_a_training_step_has_forward_backward_and_optimizer(tmp_path: Path) -> None:
    with recorded(tmp_path):
        train(GPT())
    assert stages(tmp_path) == [
        ("script/GPT", "forward", 0, "GPT"),
        ("script/backward", "backward", 0, "GPT"),
        ("script/optimizer", "optimizer", 0, "GPT"),
        ("script/GPT", "forward", 1, "GPT"),
        ("script/backward", "backward", 1, "GPT"),
        ("script/optimizer", "optimizer", 1, "GPT"),
    ]


def test_a_step_that_the_program_names_is_no_stage_and_has_stages_in_it(tmp_path: Path) -> None:
    with recorded(tmp_path):
        model = GPT()
        for _ in range(2):
            step()
            with span("data"):
                tokens = torch.arange(24).reshape(3, 8)
            model(tokens).backward()
    named = ("script/step/data", "data"), ("script/step/GPT", "forward"), ("script/step/backward", "backward")
    assert [(path, stage, number) for path, stage, number, _ in stages(tmp_path)] == [
        (path, stage, number) for number in range(2) for path, stage in named
    ]
    with open_run(tmp_path) as connection:
        rows = fetched(connection, "SELECT DISTINCT stage FROM spans WHERE name = 'step'")
    assert rows == [{"stage": "script"}]


def test_steps_that_accumulate_gradients_share_their_number(tmp_path: Path) -> None:
    with recorded(tmp_path):
        model, tokens = GPT(), torch.arange(8).reshape(1, 8)
        optimizer = torch.optim.SGD(model.parameters())
        for _ in range(2):
            for _ in range(2):
                model(tokens).backward()
            optimizer.step()
    assert [(stage, step) for _, stage, step, _ in stages(tmp_path)] == [
        ("forward", 0), ("backward", 0), ("forward", 0), ("backward", 0), ("optimizer", 0),
        ("forward", 1), ("backward", 1), ("forward", 1), ("backward", 1), ("optimizer", 1),
    ]  # fmt: skip


# --------------------------------------------------------------------------------
# Inference, by the names of Wan2.1


class WanModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Decoder3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class WanVAE_(nn.Module):
    """Never called itself: its method works through the modules inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder3d()

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.decoder(one) for one in latents.unbind()])


class T5Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


def generate() -> None:
    t5, dit, vae = (one().eval().requires_grad_(False) for one in (T5Encoder, WanModel, WanVAE_))
    x = t5(torch.ones(4, 16))
    for _ in range(2):
        x = dit(x)
    vae.decode(x.reshape(2, 2, 16))


def test_the_networks_of_wan_have_its_words(tmp_path: Path) -> None:
    with recorded(tmp_path), torch.no_grad():
        generate()
    assert stages(tmp_path) == [
        ("script/t5", "encode.text", 0, "t5"),
        ("script/dit", "denoise", 0, "dit"),
        ("script/dit", "denoise", 1, "dit"),
        ("script/vae.decode", "decode", None, "vae"),
    ]
    base = {row["component"]: row["base_bytes"] for row in asked(tmp_path, "base_memory")}
    assert base == {"t5": 4 * 272, "vae": 4 * 272, "dit": 2 * 4 * (2 * 1024 + 80)}


def test_a_program_names_its_own_components(tmp_path: Path) -> None:
    with recorded(tmp_path, {"GPT": "llm", "Block": "block"}), torch.no_grad():
        GPT().eval()(torch.arange(8).reshape(1, 8))
    assert stages(tmp_path) == [("script/llm", "llm", 0, "llm")]
    assert {row["component"] for row in asked(tmp_path, "base_memory")} == {"llm", "block"}


# --------------------------------------------------------------------------------
# Nothing of it stays, and nothing of it harms


def test_torch_is_as_it_was() -> None:
    def state() -> list[Any]:
        names = ("to", "cuda", "cpu", "to_empty")
        found: list[Any] = [vars(nn.Module)[name] for name in names]
        return [
            *found,
            torch.autograd.backward,
            torch.autograd.grad,
            vars(WanVAE_)["decode"],
            dist.Reducer.__init__,
        ]

    class Deaf:
        hears_claims = True

        def claim(self, tensor: Any, owner: Any) -> None:
            raise RuntimeError("claims nothing")

        def problem(self, text: str) -> None:
            told.append(text)

    told, before = list[str](), state()
    with observed(Deaf()):
        assert state() != before
        train(GPT(), 1)
        with torch.no_grad():
            generate()
    assert state() == before
    assert set(told) == {"the owner of a tensor is not known: RuntimeError: claims nothing"}


@pytest.mark.parametrize("act", [lambda model: model.to("meta"), lambda model: model.to("nowhere")])
def test_what_torch_does_and_refuses_is_the_programs_own(
    tmp_path: Path, act: Callable[[nn.Module], Any]
) -> None:
    with recorded(tmp_path):
        try:
            act(GPT())
        except Exception as error:
            assert "nowhere" in str(error) or "meta" in str(error)


def test_an_optimizer_that_raises_leaves_no_open_span(tmp_path: Path) -> None:
    class Bad(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("no step")

    with recorded(tmp_path):
        with pytest.raises(RuntimeError, match="no step"):
            train(GPT(), 1, Bad)
        train(GPT(), 1)
    assert [stage for _, stage, _, _ in stages(tmp_path)][-3:] == ["forward", "backward", "optimizer"]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("is_view", [False, True])
def test_buckets_of_ddp_are_communication(tmp_path: Path, is_view: bool) -> None:
    with recorded(tmp_path / "run"):
        model = GPT()
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=is_view)
        wrapped(torch.arange(24).reshape(3, 8)).backward()
        torch.ones(1 << 20)
    held = Counter[str]()
    for row in asked(tmp_path / "run", "alive_at_peak"):
        held[row["category"]] += row["bytes"]
        assert row["component"] == "GPT" or row["path"] == "script"
    size = num_bytes(model.parameters())
    assert (held["weight"], held["communication"]) == (size, size)
    assert held["gradient"] == (0 if is_view else size)


@pytest.mark.usefixtures("group")
def test_what_fsdp2_gathers_is_communication(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    with recorded(tmp_path / "run"):
        model = GPT()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        train(model)
    rows = asked(tmp_path / "run", "alive_at_peak_by_owner")
    gathered = {row["owner"]: row["bytes"] for row in rows if row["category"] == "communication"}
    assert gathered and gathered.keys() <= {"GPT", *(f"GPT.blocks.{number}" for number in range(3))}, rows
    assert {row["component"] for row in rows if row["category"] == "communication"} == {"GPT"}
    held = Counter[str]()
    for row in rows:
        held[row["category"]] += row["bytes"]
    assert held["weight"] == sum(one.to_local().untyped_storage().nbytes() for one in model.parameters())


def test_methods_that_are_no_plain_ones_stay_as_they_are(tmp_path: Path) -> None:
    class Codec(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        @staticmethod
        def encode(x: Tensor) -> Tensor:
            return x + 1

        @classmethod
        def decode(cls, x: Tensor) -> Tensor:
            return x - 1

        @property
        def generate(self) -> int:
            return 3

    with recorded(tmp_path):
        codec = Codec()
        assert torch.equal(codec.encode(codec.decode(torch.ones(2))), torch.ones(2))
        assert codec.generate == 3
    assert stages(tmp_path) == []


def test_a_step_that_failed_ends_with_its_span_and_steps_go_on(tmp_path: Path) -> None:
    """A program skips a batch for which there is no memory."""
    with recorded(tmp_path):
        model, tokens = GPT(), torch.arange(8).reshape(1, 8)
        optimizer = torch.optim.SGD(model.parameters())

        def fail() -> Any:
            raise RuntimeError("no room")

        for batch in range(3):
            model(tokens).backward()
            try:
                optimizer.step(fail if batch == 0 else None)
            except RuntimeError:
                continue
    assert [(stage, step) for _, stage, step, _ in stages(tmp_path)] == [
        ("forward", 0), ("backward", 0), ("optimizer", 0),
        ("forward", 0), ("backward", 0), ("optimizer", 0),
        ("forward", 1), ("backward", 1), ("optimizer", 1),
    ]  # fmt: skip


def test_sparse_gradients_and_what_has_no_storage_are_left_out_alone(tmp_path: Path) -> None:
    with recorded(tmp_path):
        table, head = nn.Embedding(100, 16, sparse=True), nn.Linear(16, 4)
        optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()])
        head(table(torch.arange(8))).sum().backward()
        optimizer.step()
        torch.ones(1 << 16)
        held = num_bytes(one.grad for one in head.parameters())
    rows = asked(tmp_path, "alive_at_peak")
    assert sum(row["bytes"] for row in rows if row["category"] == "gradient") == held


def test_buffers_of_another_dtype_are_found_anew(tmp_path: Path) -> None:
    with recorded(tmp_path):
        model = GPT().double()
        torch.ones(1 << 16)
    (row,) = asked(tmp_path, "base_memory")
    # For a moment both are there, one parameter after the other; the mask is the last.
    assert row["base_bytes"] >= num_bytes([*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("call", [lambda model, x: model.encode(x), lambda model, x: model.to("cpu")(x)])
def test_compiled_code_calls_methods_and_moves_without_a_break(
    tmp_path: Path, call: Callable[..., Any]
) -> None:
    class Codec(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def encode(self, x: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

        forward = encode

    with recorded(tmp_path):
        codec = Codec()
        compiled = torch.compile(lambda x: call(codec, x), backend="eager", fullgraph=True)
        assert compiled(torch.ones(2)).shape == (2,)


def test_a_coroutine_stays_one(tmp_path: Path) -> None:
    class Server(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        async def encode(self) -> int:
            return 1

        def generate(self) -> Iterator[int]:
            yield 1

    with recorded(tmp_path):
        Server()
        assert inspect.iscoroutinefunction(Server.encode)
        assert inspect.isgeneratorfunction(Server.generate)


def test_modules_that_are_called_one_by_one_do_not_walk_the_model_at_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked: list[nn.Module] = []
    monkeypatch.setattr(TensorOwners, "_walk", lambda self, top: walked.append(top))

    class Mute:
        hears_claims = True

        def claim(self, tensor: Any, owner: Any) -> None:
            pass

        problem = claim

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(100))

    with observed(Mute()):  # type: ignore[arg-type]
        holder, x = Holder(), torch.ones(2)
        for layer in holder.layers:
            x = layer(x)
        holder.layers[0].register_buffer("ema", torch.ones(2))
        holder.layers[0](x)
    assert len(walked) == 7  # calls 1, 2, 4 ... 64


def test_a_tensor_of_tensors_gives_those_inside() -> None:
    plain = torch.ones(2)
    assert [one is plain for one in plain_tensors(plain)] == [True]
    two = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert len(list(plain_tensors(two))) >= 2
