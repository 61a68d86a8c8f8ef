"""What is put in place of functions of torch while a program is recorded is like the original: pickle, inspect, jit."""

import copy
import importlib
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from desks import at_work
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.cuda import nvtx
from torch.nn.parallel import DistributedDataParallel

from ray_memprof.recorder.collectives import OPS, watching
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.workload.observed import observed

FSDP2 = "torch.distributed.fsdp._fully_shard._fsdp_param_group"
PLACES: list[tuple[Any, str]] = [
    *((nn.Module, name) for name in ("__call__", "_apply", "to", "cuda", "cpu", "to_empty")),
    *((torch.autograd, name) for name in ("backward", "grad")),
    *((nvtx, name) for name in ("range_push", "range_pop")),
    *((record_function, name) for name in ("__enter__", "__exit__")),
    (DistributedDataParallel, "__init__"),
    *((importlib.import_module(FSDP2), name) for name in ("foreach_all_gather", "foreach_reduce")),
    *((dist, name) for name in OPS if hasattr(dist, name)),
]


class Child(nn.Module):
    """Has its own name for what it inherits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def in_recording(recorder: Recorder) -> Any:
    return observed(recorder, ranges=("nvtx", "record_function"))


def test_functions_can_be_pickled_and_looked_at_while_they_are_replaced() -> None:
    originals = {(owner, name): getattr(owner, name) for owner, name in PLACES}
    signatures = {place: inspect.signature(original) for place, original in originals.items()}
    with at_work() as desk, in_recording(desk.recorder), watching(desk.recorder):
        for (owner, name), original in originals.items():
            ours = getattr(owner, name)
            assert ours is not original, name
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                assert pickle.loads(pickle.dumps(ours, protocol)) is ours, name
            assert copy.deepcopy(ours) is ours
            assert inspect.signature(ours) == signatures[owner, name], name
            assert inspect.unwrap(ours) is inspect.unwrap(original), name
        while_recorded = pickle.dumps([nn.Module.__call__, Child.__call__, Child().to, torch.autograd.grad])
    # Read back where nothing is recorded, they are the originals.
    call, of_child, move, grad = pickle.loads(while_recorded)
    assert call is of_child is nn.Module.__call__ is originals[nn.Module, "__call__"]
    assert move.__func__ is originals[nn.Module, "to"]
    assert grad is originals[torch.autograd, "grad"]


def test_a_script_of_jit_may_call_what_is_replaced() -> None:
    from torch.jit import _builtins

    def slope(x: Tensor) -> Tensor:
        found = torch.autograd.grad([(x * x).sum()], [x])[0]
        assert found is not None
        return found

    before = dict(_builtins._get_builtin_table())
    with at_work() as desk, in_recording(desk.recorder):
        scripted = torch.jit.script(slope)
        assert scripted(torch.ones(2, requires_grad=True)).tolist() == [2.0, 2.0]
    assert _builtins._get_builtin_table() == before


@pytest.mark.parametrize("kind", [nn.Linear, Child])
def test_a_module_that_was_pickled_while_it_was_recorded_runs_elsewhere(kind: type[nn.Module]) -> None:
    with at_work() as desk, in_recording(desk.recorder):
        content = pickle.dumps(kind(2, 2) if kind is nn.Linear else kind())
    assert pickle.loads(content)(torch.ones(1, 2)).shape == (1, 2)
