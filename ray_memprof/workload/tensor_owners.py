"""Finds whose the storages of a program are: parameters and buffers of its modules, gradients, state of optimizers.

    owners = TensorOwners(names, recorder.claim, problem)
    owners.moved(model)                    # its parameters are on the device now: each is claimed under its path
    owners.optimizer_steps(optimizer)      # the gradients are whole

A storage is claimed when it can be found, which may be long after it was allocated; the recorder then names the
allocation. Parameters are found when their module is made on the device, moved there or called; gradients when an
optimizer begins its step, when a backward begins that adds to them, and at the end. To claim a storage takes 3 us.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy as is_uninitialized
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.rows import Owner
from ray_memprof.wording import error_line
from ray_memprof.workload.module_names import ModuleNames, Name, children_of, kind_of
from ray_memprof.workload.phases import PhaseListener

Claim = Callable[[Tensor, Owner], None]


class TensorOwners(PhaseListener):
    """Claims storages, as a listener of phases.

    Args:
        names: of the program's modules.
        claim: is told of a tensor and the owner of its storage; from any thread.
        problem: called with a message if something could not be claimed; no error is raised into the program.
    """

    def __init__(self, names: ModuleNames, claim: Claim, problem: Callable[[str], None]) -> None:
        self._names, self._claim_one, self._problem = names, claim, problem
        self._num_calls: Counter[int] = Counter()
        self._is_changed = False
        """Whether a parameter or a buffer was put into a module since the last walk."""
        self._parameters: dict[int, tuple[weakref.ref[Tensor], Name, str]] = {}
        self._gradients: dict[int, Owner] = {}
        """Owners of gradients, by their parameter."""
        self._kept: dict[int, int] = {}
        """Gradients that were claimed when a backward began, by their parameter; both by id()."""
        self._num_states: weakref.WeakKeyDictionary[Optimizer, tuple[int, int]] = weakref.WeakKeyDictionary()
        """For each optimizer: its steps, and how many tensors its state had when they were claimed."""

    def _noted(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:
            pass_on(error)
            self._problem(f"the owner of a tensor is not known: {error_line(error)}")

    def _claim(self, tensor: Any, path: str, component: str | None, category: str) -> None:
        if type(tensor) is not Tensor and is_uninitialized(tensor):
            return
        for one in plain_tensors(tensor):
            dtype = str(one.dtype).removeprefix("torch.")
            self._claim_one(one, Owner(path, component, category, dtype))

    # ---- parameters and buffers

    def registered(self, module: Module, key: str, tensor: Tensor | None) -> None:
        """Hook of torch: a parameter or a buffer is put into a module."""
        if self._names.find(module) is None:
            self._is_changed = True
        if tensor is not None and tensor.device.type != "meta":
            self._noted(self._claim_registered, module, key, tensor)

    def _claim_registered(self, module: Module, key: str, tensor: Tensor) -> None:
        name = self._names.find(module)
        path, component = (kind_of(module), None) if name is None else (name.title, name.component)
        self._claim(tensor, f"{path}.{key}", component, _category(tensor))

    def moved(self, module: Module) -> None:
        """Claim what a module holds, for its parameters are on another device now."""
        self._noted(self._walk, module)

    def outermost_called(self, module: Module, name: Name) -> None:
        """Claim what a module holds: at the first call, the second, the fourth and so on, and after changes."""
        # By the module at the top, whose walk takes time: a program may call the modules inside it one by one.
        top = self._names.top_of(module)
        self._num_calls[id(top)] += 1
        num = self._num_calls[id(top)]
        if self._is_changed or num & (num - 1) == 0:
            self._is_changed = False
            self._noted(self._walk, top)

    def _walk(self, top: Module) -> None:
        self._names.named(top)
        done: set[int] = set()
        waiting = [top]
        while waiting:
            module = waiting.pop()
            if id(module) in done:
                continue
            done.add(id(module))
            self._claim_held(module, done)
            waiting += [child for _, child in reversed(children_of(module))]

    def _claim_held(self, module: Module, done: set[int]) -> None:
        name = self._names.named(module)
        if name is None:
            return
        for held in ("_parameters", "_buffers"):
            for key, tensor in list((vars(module).get(held) or {}).items()):
                if isinstance(tensor, Tensor) and id(tensor) not in done:
                    done.add(id(tensor))  # a tied parameter goes by its first name
                    path = f"{name.title}.{key}"
                    self._remember(tensor, name, path)
                    self._claim(_shard_of(tensor), path, name.component, _category(tensor))

    def _remember(self, tensor: Tensor, name: Name, path: str) -> None:
        number = id(tensor)
        known = self._parameters.get(number)
        if isinstance(tensor, Parameter) and (known is None or known[0]() is not tensor):
            gone: weakref.ref[Tensor] = weakref.ref(tensor, lambda _: self._forget(number))
            self._parameters[number] = (gone, name, path)

    def _forget(self, number: int) -> None:
        self._parameters.pop(number, None)
        self._gradients.pop(number, None)
        self._kept.pop(number, None)

    # ---- gradients and optimizers

    def backward_begins(self) -> None:
        """Claim gradients that are added to: by the step, DDP may have put views of its buckets in their place."""
        self._noted(self._claim_kept)

    def _claim_kept(self) -> None:
        changed = []
        for number, (gone, _, _) in list(self._parameters.items()):
            parameter = gone()
            gradient = None if parameter is None else parameter.grad
            if gradient is None:
                self._kept.pop(number, None)
            elif self._kept.get(number) != id(gradient):
                self._kept[number] = id(gradient)
                changed.append(parameter)
        self._claim_gradients(one for one in changed if one is not None)

    def optimizer_steps(self, optimizer: Optimizer) -> None:
        """Claim the gradients of an optimizer's parameters."""
        self._noted(self._claim_gradients, _parameters_of(optimizer))

    def _claim_gradients(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            owner = self._gradients.get(id(parameter))
            if type(gradient) is Tensor and owner is not None:  # at every step, so it must be quick
                self._claim_one(gradient, owner)
                continue
            component, path = self._place_of(parameter)
            self._claim(gradient, path, component, "gradient")
            if id(parameter) in self._parameters:
                dtype = str(gradient.dtype).removeprefix("torch.")
                self._gradients[id(parameter)] = Owner(path, component, "gradient", dtype)

    def _place_of(self, parameter: Tensor) -> tuple[str | None, str]:
        known = self._parameters.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1].component, known[2]
        return None, f"parameter {list(parameter.shape)}"

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Claim the state of an optimizer: after its first steps, and whenever there is more of it."""
        self._noted(self._claim_state, optimizer)

    def _claim_state(self, optimizer: Optimizer) -> None:
        num_steps, num_before = self._num_states.get(optimizer, (0, -1))
        num = sum(len(state) for state in optimizer.state.values() if isinstance(state, dict))
        self._num_states[optimizer] = (num_steps + 1, num)
        if num == num_before and num_steps & (num_steps - 1):
            return
        for parameter, state in optimizer.state.items():
            if isinstance(state, dict) and isinstance(parameter, Tensor):
                component, path = self._place_of(parameter)
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        self._claim(value, f"{path} {key}", component, "optimizer")

    def end(self) -> None:
        """Claim what parameters there are and the gradients that they have now: no step may come any more."""
        for module in self._names.alive():
            self._noted(self._claim_held, module, set[int]())
        alive: list[Tensor] = []
        for gone, _, _ in list(self._parameters.values()):
            parameter = gone()
            if parameter is not None:
                alive.append(parameter)
        self._noted(self._claim_gradients, alive)


def _shard_of(tensor: Tensor) -> Tensor:
    """The shard of a flat parameter of FSDP1, which is the gathered one while it is used; else the tensor itself."""
    shard = getattr(tensor, "_local_shard", None) if getattr(tensor, "_is_flat_param", False) else None
    return shard if isinstance(shard, Tensor) else tensor


def _category(tensor: Tensor) -> str:
    return "weight" if isinstance(tensor, Parameter) else "buffer"


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"] if isinstance(one, Tensor)]


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with storages that a tensor consists of: itself, or those inside a DTensor or a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        if torch._C._has_storage(tensor):  # a sparse tensor has none of its own
            yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        inside = getattr(tensor, name)
        if isinstance(inside, Tensor):  # a DTensor also names its mesh
            yield from plain_tensors(inside)
