"""FSDP1 (FullyShardedDataParallel) on a made-up group of two ranks: what it holds, gathers and sends, to the byte.

The program counts its own tensors at the moment of its peak; collectives of the group give back what was there.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision, ShardingStrategy, _flat_param, _init_utils, _runtime_utils
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.testing._internal.distributed.fake_pg import FakeStore

from ray_memprof.query.database import open_run
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.rows import Owner
from ray_memprof.workload.flat_parameters import claiming_flat
from ray_memprof.workload.module_names import ModuleNames
from ray_memprof.workload.observed import observed

CPU = torch.device("cpu")
WIDTH = 32
PEAK = 1 << 22
LOW = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 65), nn.Linear(65, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.register_buffer("scale", torch.ones(7) * 2)
        self.inside: Callable[[], None] | None = None
        """Called between two blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        if self.inside is not None:
            self.inside()
        return x


@pytest.fixture(autouse=True)
def two_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def wrapped(model: nn.Module, **options: Any) -> FSDP:
    policy = partial(lambda_auto_wrap_policy, lambda_fn=lambda one: isinstance(one, Block))
    return FSDP(model, auto_wrap_policy=policy, **{"device_id": CPU} | options)


@contextmanager
def recorded(run_dir: Path) -> Iterator[None]:
    with recording(RecordingOptions(run_dir=run_dir, device="cpu")) as recorder:
        with observed(recorder):
            yield
    assert recorder.problems == ()


def at_peak(run_dir: Path) -> list[dict[str, Any]]:
    with open_run(run_dir) as connection:
        rows = rows_of(connection, "alive_at_peak_by_owner")
        (rank,) = rows_of(connection, "peak_by_rank")
    assert sum(row["bytes"] for row in rows) == rank["allocated_peak_bytes"] >= PEAK
    return rows


def held(run_dir: Path) -> Counter[str]:
    found = Counter[str]()
    for row in at_peak(run_dir):
        found[row["category"]] += row["bytes"]
    return found


def counted(tensors: Any) -> int:
    """Bytes of the storages of tensors, each once."""
    kept = [one.untyped_storage() for one in tensors if one is not None]
    return sum({one._cdata: one.nbytes() for one in kept}.values())


def flat_parameters(model: FSDP) -> list[Any]:
    return [one._handle.flat_param for one in FSDP.fsdp_modules(model)]


def gathered(model: FSDP) -> int:
    names = ("_full_param_padded", "_full_prec_full_param_padded", "_mp_shard")
    return counted(getattr(one, name, None) for one in flat_parameters(model) for name in names)


@pytest.mark.parametrize("precision", [None, LOW])
def test_a_gathered_parameter_is_communication_and_its_shard_a_weight(
    tmp_path: Path, precision: MixedPrecision | None
) -> None:
    count = {}
    with recorded(tmp_path / "run"), torch.no_grad():
        model = wrapped(Net(), mixed_precision=precision)

        def most() -> None:
            torch.ones(PEAK // 4)
            shards = counted(one._local_shard for one in flat_parameters(model))
            count.update(weight=shards, communication=gathered(model), buffer=counted(model.buffers()))

        for number in range(3):
            if number == 2:
                model.module.inside = most
            model(torch.ones(4, WIDTH))
    assert count["communication"] > 0
    rows = at_peak(tmp_path / "run")
    assert {category: held(tmp_path / "run")[category] for category in count} == count
    owners = {(row["owner"], row["category"]) for row in rows if row["category"] != "activation"}
    assert owners == {
        ("Net", "communication"), ("Net.scale", "buffer"), ("Net._flat_param", "weight"),
        *((f"Net.blocks.{number}._flat_param", "weight") for number in range(3)),
    }  # fmt: skip
    assert {row["component"] for row in rows if row["category"] != "activation"} == {"Net"}


@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.parametrize("precision", [None, LOW])
@pytest.mark.parametrize("strategy", [ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP])
@pytest.mark.parametrize("peak_in", ["backward", "step"])
def test_the_program_counts_the_same_in_training(
    tmp_path: Path,
    use_orig_params: bool,
    precision: MixedPrecision | None,
    strategy: ShardingStrategy,
    peak_in: str,
) -> None:
    count: dict[str, int] = {}
    with recorded(tmp_path / "run"):
        model = wrapped(
            Net(), mixed_precision=precision, use_orig_params=use_orig_params, sharding_strategy=strategy
        )
        optimizer = torch.optim.AdamW(model.parameters())

        def most(*_: object) -> None:
            torch.ones(PEAK // 4)
            flat = flat_parameters(model)
            reduced = [getattr(one, "_saved_grad_shard", None) for one in flat]
            leaves = [one for one in (*flat, *model.parameters()) if one.is_leaf]
            state = [one for kept in optimizer.state.values() for one in kept.values() if one.dim()]
            count.update(
                weight=counted(one._local_shard for one in flat),
                communication=gathered(model),
                gradient=counted([*reduced, *(one.grad for one in leaves)]),
                optimizer=counted(state),
            )

        for number in range(3):
            for again in range(2):  # gradients of two batches are added up
                out = model(torch.ones(4, WIDTH))
                if (number, again, peak_in) == (2, 1, "backward"):
                    out.register_hook(most)
                out.square().sum().backward()
            if (number, peak_in) == (2, "step"):
                most()
            optimizer.step()
            optimizer.zero_grad()
    assert min(count["weight"], count["gradient"], count["optimizer"]) > 0
    # Only parts of the flat parameters of which this rank has a share have a state: none is counted twice.
    assert {category: held(tmp_path / "run")[category] for category in count} == count


def test_what_is_sent_is_communication_and_what_comes_back_a_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flat parameter of a block is padded: its whole gradient is copied before it is sent."""
    sizes: dict[str, int] = {}
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    with recorded(tmp_path / "run"):
        watched = getattr(dist, name)

        def reducing(output: Tensor, sent: Tensor, **options: Any) -> Any:
            if not sizes and sent.numel() > WIDTH * WIDTH + WIDTH:
                sizes.update(sent=counted([sent]), back=counted([output]))
                torch.ones(PEAK // 4)
            return watched(output, sent, **options)

        monkeypatch.setattr(dist, name, reducing)
        model = wrapped(Net(), mixed_precision=LOW)
        model(torch.ones(4, WIDTH)).square().sum().backward()
        monkeypatch.undo()
    rows = [row for row in at_peak(tmp_path / "run") if (row["owner"] or "").startswith("Net.blocks.2")]
    found = {(row["category"], row["dtype"]): row["bytes"] for row in rows}
    assert found["communication", "float32"] == sizes["sent"]
    num_whole = sum(one.numel() for one in Block().parameters())
    assert num_whole % 2 == 1
    # Whole in both precisions, and the share of this rank.
    assert found["gradient", "float32"] == sizes["back"] + 4 * num_whole
    assert found["gradient", "bfloat16"] == 2 * num_whole


def test_the_base_is_the_share_and_the_whole_weights_before_have_names(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"), torch.no_grad():
        net = Net()
        whole = counted(net.parameters())
        torch.ones(PEAK // 4)  # the peak: before anything is wrapped
        model = wrapped(net)
        share = counted(flat_parameters(model)) + counted(model.buffers())
        model(torch.ones(4, WIDTH))
    rows = at_peak(tmp_path / "run")
    weights = [row for row in rows if row["category"] == "weight"]
    assert sum(row["bytes"] for row in weights) == whole
    assert {row["component"] for row in weights} == {"Net"}
    assert "Net.blocks.2.up.weight" in {row["owner"] for row in weights}
    with open_run(tmp_path / "run") as connection:
        assert rows_of(connection, "component_visits") == []
        (base,) = rows_of(connection, "base_memory")
        (sharding,) = rows_of(connection, "model_switching")
    assert (base["base_bytes"], base["num_visits"]) == (share, 0)
    assert share < whole
    assert (sharding["name"], sharding["component"]) == ("residency.shard", "Net")
    assert sharding["allocated_bytes"] < -0.4 * whole


def test_a_whole_flat_parameter_is_a_weight_until_it_is_sharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, sizes = _flat_param.FlatParamHandle.shard, list[int]()

    def sharding(handle: Any) -> None:
        sizes.append(counted([handle.flat_param]))
        if len(sizes) == 2:
            torch.ones(PEAK // 4)
        shard(handle)

    monkeypatch.setattr(_flat_param.FlatParamHandle, "shard", sharding)
    with recorded(tmp_path / "run"):
        wrapped(Net())
    rows = {row["owner"]: row for row in at_peak(tmp_path / "run")}
    whole, share = rows["Net.blocks.1._flat_param"], rows["Net.blocks.0._flat_param"]
    assert (whole["bytes"], whole["category"], whole["component"]) == (sizes[1], "weight", "Net")
    assert share["bytes"] == -(-sizes[0] // 8) * 4


def test_weights_that_come_to_the_device_as_they_are_wrapped_are_loaded(tmp_path: Path) -> None:
    """One component is made elsewhere, and is brought block by block."""

    def make(module: nn.Module) -> None:
        module.to_empty(device=CPU, recurse=False)

    with recorded(tmp_path / "run"), torch.no_grad():
        with torch.device("meta"):
            net = Net()
        model = wrapped(net, param_init_fn=make)
        share = counted(flat_parameters(model)) + counted(model.buffers())
        model(torch.ones(4, WIDTH))
    with open_run(tmp_path / "run") as connection:
        (visit,) = rows_of(connection, "component_visits")
        (base,) = rows_of(connection, "base_memory")
        paths = fetched(connection, "SELECT DISTINCT path FROM spans WHERE name LIKE '%load%'")
    assert paths == [{"path": "script/load.Net"}]
    assert (visit["component"], visit["base_bytes"]) == ("Net", share)
    assert (base["base_bytes"], base["num_visits"]) == (share, 1)


def test_states_that_the_first_rank_sends_are_in_a_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch sends them only between accelerators.
    monkeypatch.setattr(_init_utils, "_check_module_states_for_sync_module_states", lambda states: None)
    with recorded(tmp_path / "run"):
        wrapped(Net(), sync_module_states=True)
    with open_run(tmp_path / "run") as connection:
        rows = fetched(connection, "SELECT path, component FROM spans WHERE name = 'comm.sync_states'")
    assert rows == [{"path": "script/residency.shard/comm.sync_states", "component": "Net"}] * 4


def test_whole_parameters_that_the_program_asks_for_are_communication(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        model = wrapped(Net(), mixed_precision=LOW)
        with FSDP.summon_full_params(model):
            torch.ones(PEAK // 4)
            count = {"communication": gathered(model)}
            count["weight"] = counted(one._local_shard for one in flat_parameters(model))
    assert count["communication"] > count["weight"]
    assert {category: held(tmp_path / "run")[category] for category in count} == count


def test_buffers_that_are_made_once_and_emptied_are_communication(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(WIDTH, 4096)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.only(x)
            return out

    with recorded(tmp_path / "run"), torch.no_grad():
        model = FSDP(Wide(), device_id=CPU, mixed_precision=LOW)
        model(torch.ones(1, WIDTH))
    with open_run(tmp_path / "run") as connection:
        rows = fetched(
            connection,
            "SELECT DISTINCT category, component FROM allocs INNER JOIN spans USING (rank, span_id) "
            "WHERE spans.name = 'comm.flat_parameters' AND action = 'alloc'",
        )
    assert rows == [{"category": "communication", "component": "Wide"}]


def test_spans_alone_are_recorded_without_events(tmp_path: Path) -> None:
    with recording(RecordingOptions(run_dir=tmp_path / "run", device="cpu", level="stage")) as recorder:
        with observed(recorder), torch.no_grad():
            wrapped(Net())(torch.ones(4, WIDTH))
    assert recorder.problems == ()
    with open_run(tmp_path / "run") as connection:
        paths = {row["path"] for row in fetched(connection, "SELECT path FROM spans")}
    assert {"script/residency.shard", "script/Net", "script/Net/comm.flat_parameters"} <= paths


def test_everything_is_put_back_and_what_stays_does_nothing(tmp_path: Path) -> None:
    def all_of_it() -> list[Any]:
        handle = _flat_param.FlatParamHandle
        return [
            FSDP.__init__, handle.shard, handle.pre_unshard, handle._alloc_padded_unsharded_flat_param,
            handle._init_flat_param_and_metadata, handle._use_unsharded_views, handle.init_flat_param_attributes,
            _runtime_utils._post_backward_hook, _runtime_utils._get_reduce_scatter_tensors,
            _runtime_utils._accumulate_sharded_grad, _init_utils._sync_module_params_and_buffers,
        ]  # fmt: skip

    before = all_of_it()
    claims: list[Owner] = []
    with claiming_flat(
        lambda tensor, owner: claims.append(owner), pytest.fail, ModuleNames(), lambda _: None
    ):
        assert not any(one is other for one, other in zip(before, all_of_it(), strict=True))
        model = wrapped(Net())
        loss = model(torch.ones(4, WIDTH)).square().sum()
    assert all_of_it() == before
    num = len(claims)
    assert num > 0
    loss.backward()  # calls ours, which was taken as a hook
    assert all(one.grad is not None for one in model.parameters())
    assert len(claims) == num


def test_what_fails_in_here_is_told_and_not_raised() -> None:
    told: list[str] = []

    def fail(tensor: Tensor, owner: Owner) -> None:
        raise RuntimeError("no luck")

    with claiming_flat(fail, told.append, ModuleNames(), lambda _: None):
        model = wrapped(Net())
        model(torch.ones(4, WIDTH)).square().sum().backward()
    assert set(told) == {"what FSDP has flattened is not known: RuntimeError: no luck"}
    assert all(one.grad is not None for one in model.parameters())


def test_a_module_is_walked_when_it_is_wrapped_and_not_again() -> None:
    walked = Counter[str]()

    def walk(module: nn.Module) -> None:
        walked[type(module).__name__] += 1

    with claiming_flat(lambda tensor, owner: None, pytest.fail, ModuleNames(), walk):
        model = wrapped(Net())
        assert walked == {"Net": 2, "Block": 3}
        for _ in range(3):
            model(torch.ones(4, WIDTH)).square().sum().backward()
    assert walked == {"Net": 2, "Block": 3}
