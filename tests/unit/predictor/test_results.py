"""Results that are remembered are those of FakeTensorMode."""

import math
from typing import Any

import torch
from devices import allocations, device_of, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ray_memprof.predictor.results import Results

SIDES = st.integers(1, 4)


def steps(a: Tensor, b: Tensor) -> list[Tensor]:
    """Operations of every kind: new tensors, in place, views, several results."""
    normed, *others = torch.ops.aten.native_layer_norm(a, a.shape[-1:], None, None, 1e-5)
    made = [a + b, a.t(), a[1:], a.permute(1, 0), (a * 2).to(torch.bfloat16), normed, *others]
    made += [a.view(-1), *a.unbind(), *a.split(1), torch.cat([a, b]), a @ b.t(), a.sum(0, keepdim=True)]
    made += [
        a.unsqueeze(1).expand(-1, 3, -1),
        a.clone(),
        a.t().contiguous(),
        a.t().clone(),
        a.mul_(2),
        a[:, :1],
    ]
    return [*made, torch.empty_like(a.t()), a.t() + b.t(), torch.softmax(a, -1), a.float().amax(1)]


def shapes(made: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(one.shape, one.stride(), one.storage_offset(), one.dtype, one.device) for one in made]


class _Remembering(TorchDispatchMode):
    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.results.of(func, args, kwargs or {})


@settings(deadline=None, max_examples=40)
@given(rows=SIDES, columns=SIDES, times=st.integers(1, 3))
def test_they_are_equal_however_often_they_are_asked_for(rows: int, columns: int, times: int) -> None:
    with torch.no_grad(), FakeTensorMode() as mode:
        wanted = shapes(steps(torch.empty(rows, columns), torch.empty(rows, columns)))
        with _Remembering(Results(mode)):
            for _ in range(times):
                made = steps(torch.empty(rows, columns), torch.empty(rows, columns))
                assert shapes(made) == wanted
                # Views are of the same memory, new tensors have their own.
                a = torch.empty(rows, columns)
                assert a.t()[:1].untyped_storage()._cdata == a.untyped_storage()._cdata
                assert a.clone().untyped_storage()._cdata != a.untyped_storage()._cdata


def test_a_new_result_is_no_older_one() -> None:
    device = device_of()
    with on_device(device):
        a = torch.empty(3, device="cuda")
        first, second = a + 1, a + 1
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        first = second = a
    assert allocations(device) == [12, 12, 12]


def test_whole_numbers_and_fractions_are_told_apart() -> None:
    """1, 1.0 and True are equal in Python, and give results of different dtypes."""
    with on_device(device_of()):
        a = torch.zeros(3, dtype=torch.int64, device="cuda")
        dtypes = [(a + one).dtype for one in (1, 1.0, True)]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def test_the_default_dtype_counts() -> None:
    before = torch.get_default_dtype()
    with on_device(device_of()):
        try:
            dtypes = []
            for dtype in (torch.float32, torch.bfloat16, torch.float32):
                torch.set_default_dtype(dtype)
                dtypes.append(torch.empty(3, device="cuda").dtype)
        finally:
            torch.set_default_dtype(before)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]


def test_unsafe_view_takes_no_memory() -> None:
    device = device_of()
    with on_device(device):
        a, b = torch.empty(2, 3, 4, device="cuda"), torch.empty(4, 5, device="cuda")
        allocations(device)
        made = a @ b  # a product of two dimensions, seen as three
        assert made.shape == (2, 3, 5)
    taken = allocations(device)
    assert taken[0] == math.prod(made.shape) * 4
    # The rest is cuBLAS's workspace.
    assert taken[1:] == [32 * 2**20]
