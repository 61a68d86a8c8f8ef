"""What an allocation is for, and of which component, found from names of spans."""

import pytest

from ray_memprof.store.categories import SCRIPT, category_of, component_of, stage_of
from ray_memprof.store.schema import CATEGORIES


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("", "activation"),
        ("load.t5", "weight"),
        ("load.dit", "weight"),
        ("residency.onload", "weight"),
        ("residency.offload", "activation"),
        ("comm.init", "communication"),
        ("comm.ulysses", "communication"),
        ("warmup", "workspace"),
        ("device.init", "workspace"),
        ("vae.chunk", "activation"),
        ("decode", "output"),
        ("save", "output"),
        ("denoise", "activation"),
        ("module", "activation"),
    ],
)
def test_category(name: str, category: str) -> None:
    assert category_of(name) == category
    assert category in CATEGORIES


@pytest.mark.parametrize(
    ("name", "attribute", "inherited", "component"),
    [
        ("save", None, None, None),
        ("load.t5", None, None, "t5"),
        ("dit.block", None, None, "dit"),
        ("vae.chunk", None, "dit", "vae"),
        ("encode.text", None, None, "t5"),
        ("encode.image", None, None, "clip"),
        ("encode.video", None, None, "vae"),
        ("denoise", None, None, "dit"),
        ("decode", None, None, "vae"),
        ("comm.ulysses", None, "dit", "dit"),
        ("residency.onload", "t5", "dit", "t5"),
        ("module", "WanModel.blocks.0", None, "WanModel.blocks.0"),
        ("module", "", "dit", ""),
    ],
)
def test_component(name: str, attribute: str | None, inherited: str | None, component: str | None) -> None:
    assert component_of(name, attribute, inherited) == component


@pytest.mark.parametrize(
    ("name", "around", "component", "stage"),
    [
        ("denoise", None, None, "denoise"),
        ("dit.block", "denoise", None, "denoise"),
        (SCRIPT, None, None, SCRIPT),
        ("module", SCRIPT, "WanModel", "WanModel"),
        ("module", "WanModel", "WanModel.blocks.0", "WanModel"),
        ("save", SCRIPT, None, "save"),
        # As in wan: loading is no part of what a network is for.
        ("load.t5", SCRIPT, "t5", "load.t5"),
        ("residency.offload", SCRIPT, "t5", "residency.offload"),
        ("load.t5", "encode.text", "t5", "encode.text"),
        # The step of a program: what it has in it begins stages.
        ("step", SCRIPT, None, SCRIPT),
        ("step", None, None, "step"),
        ("step", "forward", None, "forward"),
    ],
)
def test_stage(name: str, around: str | None, component: str | None, stage: str) -> None:
    assert stage_of(name, around, component) == stage


def test_the_attribute_of_a_span_that_begins_a_stage_goes_first() -> None:
    assert stage_of("dit", SCRIPT, "dit", "denoise") == "denoise"
    assert stage_of("dit", "forward", "dit", "denoise") == "forward"
