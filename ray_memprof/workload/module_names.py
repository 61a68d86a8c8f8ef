"""Names of a program's modules: the path from the module at the top of its tree, and the component.

    names = ModuleNames()
    hook = register_module_module_registration_hook(names.attached)
    names.named(block).path              # "WanModel.blocks.7"; its component is "dit", its title "dit.blocks.7"

A module is at the top of its tree if it is in no other module, as far as torch was told since names.attached is its
hook. Its name is that of its class. The component is that class, too, or the name that `components` gives it; a class
of `components` anywhere in the tree begins a component of its own. Wrappers of torch (compile, DDP, FSDP, checkpoint)
leave no trace in names.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import Module

WAN_COMPONENTS = {
    "WanModel": "dit", "VaceWanModel": "dit", "WanTransformer3DModel": "dit", "WanVACETransformer3DModel": "dit",
    "T5Encoder": "t5", "UMT5EncoderModel": "t5",
    "XLMRobertaCLIP": "clip", "CLIPVisionModel": "clip", "CLIPVisionModelWithProjection": "clip",
    "WanVAE_": "vae", "AutoencoderKLWan": "vae",
}  # fmt: skip
"""Classes of the public Wan2.1 repository and of diffusers, by the component that we call them."""
# torch's wrappers add these parts to the paths of the modules that they wrap; others call the part `module`.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPER_CLASSES = frozenset({"DistributedDataParallel", "DataParallel", "DeepSpeedEngine"})


@dataclass(frozen=True, slots=True)
class Name:
    """What a module is called."""

    path: str
    """From the class of the module at the top."""
    title: str
    """The same with the name of the component in front, where it has one of its own."""
    component: str


@dataclass(slots=True)
class _Known:
    """A module that has a name."""

    module: "weakref.ref[Module]"
    name: Name
    is_guess: bool
    """Its place inside the outermost module is not known yet; the next walk may find it."""


@dataclass(slots=True)
class _Place:
    """Where a module was put first."""

    module: "weakref.ref[Module]"
    parent: "weakref.ref[Module]"
    key: str


class ModuleNames:
    """Knows the modules that were named, without keeping them alive.

    Args:
        components: names of components by class, in addition to those of Wan2.1.
    """

    def __init__(self, components: Mapping[str, str] | None = None) -> None:
        self._components = WAN_COMPONENTS | dict(components or {})
        # The key is the id, since a class may define any __eq__, or have no hash. The references are weak, so that a
        # model that the program drops is freed.
        self._known: dict[int, _Known] = {}
        self._places: dict[int, _Place] = {}
        self._credit = self._num_walked = 0

    def find(self, module: Module) -> Name | None:
        """The name of a module; None: it has none yet."""
        known = self._find(module)
        return None if known is None else known.name

    def named(self, module: Module, outermost: Module | None = None) -> Name | None:
        """The name of a module; one without a name gets it now.

        Args:
            module: that is called.
            outermost: the module whose call goes on, if another one's does: the module is looked for in it.
        """
        self._credit += 1
        known = self._find(module)
        if outermost is not None and (known is None or known.is_guess) and self._credit >= self._num_walked:
            self._look_again(module, outermost)
            known = self._find(module)
        if known is None:
            top = self.top_of(module)
            self._learn(top, self._top_name(top), is_guess=outermost is not None)
            known = self._find(module)
            if known is None:  # it has been taken out of `top`
                self._learn(module, self._top_name(module), is_guess=outermost is not None)
                known = self._find(module)
        return None if known is None else known.name

    def _find(self, module: Module) -> _Known | None:
        known = self._known.get(id(module))
        return known if known is not None and known.module() is module else None

    def _look_again(self, module: Module, outermost: Module) -> None:
        """Walk the outermost module to find `module`, which the registration hook missed: it was written to _modules.

        The time of a walk grows with the model, and a module that forward makes for one call is never found. So the
        next walk waits until there were as many calls as the last walk visited modules: then a call costs the same on
        average, however large the model is.
        """
        self._credit = 0
        known = self._find(outermost)
        self._learn(outermost, self._top_name(outermost) if known is None else known.name)
        known = self._find(module)
        if known is not None:
            known.is_guess = False

    def _top_name(self, top: Module) -> Name:
        kind = kind_of(top)
        component = self._components.get(kind, kind)
        return Name(kind, component, component)

    def _learn(self, top: Module, name: Name, *, is_guess: bool = False) -> None:
        """Name `top`, and all modules in it by their present names in torch."""
        seen: set[int] = set()
        waiting = [(top, name)]
        while waiting:
            module, name = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            self._remember(module, name, is_guess=is_guess)
            inside = [
                (child, self._name_inside(name, module, key, child)) for key, child in children_of(module)
            ]
            waiting += reversed(inside)  # so that the first child comes next, as in named_modules()
        if not is_guess:
            self._num_walked = len(seen)

    def _name_inside(self, around: Name, module: Module, key: str, child: Module) -> Name:
        if _is_wrapped(module, key):
            return around
        path, component = f"{around.path}.{key}", self._components.get(_class_of(child))
        if component is not None and component != around.component:
            return Name(path, component, component)
        return Name(path, f"{around.title}.{key}", around.component)

    def _remember(self, module: Module, name: Name, *, is_guess: bool) -> None:
        key = id(module)
        gone = weakref.ref(module, lambda _: self._known.pop(key, None))
        self._known[key] = _Known(gone, name, is_guess)

    def alive(self) -> list[Module]:
        """The modules that have a name, and are still there."""
        return [module for known in list(self._known.values()) if (module := known.module()) is not None]

    def top_of(self, module: Module) -> Module:
        """The module at the top of the tree that a module is in; the module itself if it is in no other."""
        seen = {id(module)}
        while True:
            place = self._places.get(id(module))
            parent = None if place is None or place.module() is not module else place.parent()
            if place is None or parent is None or id(parent) in seen or not _has(parent, place.key, module):
                return module
            seen.add(id(module := parent))

    def attached(self, parent: Module, key: str, module: Module | None) -> None:
        """Hook of torch: `module` becomes a child of `parent`; if `parent` has a name, `module` gets one, too."""
        if not isinstance(module, Module):
            return
        self._place(parent, key, module)
        around = self._find(parent)
        if around is None:
            return
        known, num_walked = self._find(module), self._num_walked
        if known is None or known.is_guess or "." not in known.name.path:  # else it keeps its first name
            name = self._name_inside(around.name, parent, key, module)
            self._learn(module, name, is_guess=around.is_guess)
            self._num_walked = num_walked

    def _place(self, parent: Module, key: str, module: Module) -> None:
        number = id(module)
        place = self._places.get(number)
        if place is not None and place.module() is module:
            before = place.parent()
            if before is not None and _has(before, place.key, module):
                return  # it keeps its first place
        gone = weakref.ref(module, lambda _: self._places.pop(number, None))
        self._places[number] = _Place(gone, weakref.ref(parent), key)


def children_of(module: Module) -> list[tuple[str, Module]]:
    """The child modules from torch's own _modules: a class may override named_modules() and attributes."""
    inside = vars(module).get("_modules") or {}
    return [(key, child) for key, child in inside.items() if isinstance(child, Module)]


def _has(parent: Module, key: str, module: Module) -> bool:
    return (vars(parent).get("_modules") or {}).get(key) is module


def _is_wrapped(module: Module, key: str) -> bool:
    """Whether `module` is a wrapper, and its child under this key what it wraps."""
    return key in _WRAPPERS or (key == "module" and type(module).__name__ in _WRAPPER_CLASSES)


def kind_of(module: Module) -> str:
    """The name of a module's class; for a wrapper the class inside it, for a ScriptModule the original class."""
    seen = {id(module)}
    while True:
        inner = next((child for key, child in children_of(module) if _is_wrapped(module, key)), None)
        if inner is None or id(inner) in seen:  # without its truth: a module may refuse len()
            break
        seen.add(id(module := inner))
    return _class_of(module)


def _class_of(module: Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    kind = type(module)
    # FSDP2 gives a module a class made of its own, FSDPGPT(FSDPModule, GPT).
    is_sharded = len(kind.__mro__) > 2 and kind.__mro__[1].__name__ == "FSDPModule"
    return kind.__mro__[2].__name__ if is_sharded else kind.__name__
