"""All that is found out about a program without changing it: spans of its modules and phases, owners of its tensors.

    with observed(recorder, module_spans=("blocks.*",)):
        train()                                    # inside the span "script"

For a program that runs on this thread; all that is put into torch is taken out at the end of the block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from ray_memprof.recorder.rows import Owner
from ray_memprof.recorder.spans import span
from ray_memprof.store.categories import SCRIPT
from ray_memprof.workload.flat_parameters import claiming_flat
from ray_memprof.workload.gathered import claiming_gathered
from ray_memprof.workload.module_names import ModuleNames, Name
from ray_memprof.workload.module_spans import ModuleSpans, naming_modules
from ray_memprof.workload.named_ranges import naming_ranges
from ray_memprof.workload.phases import PhaseListener, Phases, naming_phases
from ray_memprof.workload.tensor_owners import TensorOwners


class Claimant(Protocol):
    """The part of the recorder that is told of owners."""

    @property
    def hears_claims(self) -> bool:
        """Whether claims are of use."""

    def claim(self, tensor: Tensor, owner: Owner) -> None:
        """Name the owner of a tensor's storage."""

    def problem(self, text: str) -> None:
        """Something is wrong with the recording."""


@contextmanager
def observed(
    recorder: Claimant,
    *,
    module_spans: Sequence[str] = (),
    components: Mapping[str, str] | None = None,
    ranges: Sequence[str] = (),
) -> Iterator[None]:
    """Name what runs on this thread inside the block, and whose its tensors are.

    Args:
        recorder: is told of owners and of problems; of spans it hears by itself.
        module_spans: patterns for modules inside others that get spans of their own; see module_spans.py.
        components: names of components by the class of a module; see module_names.py.
        ranges: kinds of named ranges that become spans; see named_ranges.py.
    """
    names = ModuleNames(components)
    with ExitStack() as stack:
        spans = stack.enter_context(naming_modules(module_spans, recorder.problem, names))
        owners = stack.enter_context(_owned(recorder, names, spans))
        # Around everything, so that allocations outside of modules have a span, too.
        stack.enter_context(span(SCRIPT))
        phases = stack.enter_context(naming_phases(names, spans, owners, recorder.problem))
        spans.outermost_called = _both(phases, spans.outermost_called)
        # Inside it: a range that is open at the end ends before it.
        stack.enter_context(naming_ranges(ranges, recorder.problem))
        yield


@contextmanager
def owned(recorder: Claimant, components: Mapping[str, str]) -> Iterator[None]:
    """Find whose the tensors are of a program that opens spans itself.

    Args:
        recorder: is told of owners and of problems.
        components: names of components by the class of a module; see module_names.py.
    """
    names = ModuleNames(components)
    with naming_modules((), recorder.problem, names, opens_spans=False) as spans:
        with _owned(recorder, names, spans):
            yield


@contextmanager
def _owned(recorder: Claimant, names: ModuleNames, spans: ModuleSpans) -> Iterator[PhaseListener]:
    """Claim what the program's modules hold, and what is gathered; gives the listener for phases."""
    if not recorder.hears_claims:
        with (
            claiming_gathered(_nobody, recorder.problem, names),
            claiming_flat(_nobody, recorder.problem, names, _unwalked),
        ):
            yield PhaseListener()
        return
    owners = TensorOwners(names, recorder.claim, recorder.problem)
    spans.outermost_called = owners.outermost_called
    with ExitStack() as stack:
        stack.callback(owners.end)
        for register in (
            register_module_parameter_registration_hook, register_module_buffer_registration_hook
        ):  # fmt: skip
            stack.callback(register(owners.registered).remove)
        stack.enter_context(claiming_gathered(recorder.claim, recorder.problem, names))
        stack.enter_context(claiming_flat(recorder.claim, recorder.problem, names, owners.moved))
        yield owners


def _both(phases: Phases, called: Callable[[Module, Name], None]) -> Callable[[Module, Name], None]:
    def outermost_called(module: Module, name: Name) -> None:
        phases.end_failed_steps()
        called(module, name)

    return outermost_called


def _nobody(tensor: Tensor, owner: Owner) -> None:
    """Nobody wants to know whose a tensor is."""


def _unwalked(module: Module) -> None:
    """Nobody wants to know what a module holds."""
