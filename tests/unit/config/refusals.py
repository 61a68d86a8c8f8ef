"""Configurations from sections, and how a wrong one is refused."""

from typing import Any

import pytest

from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError


def loaded(**sections: Any) -> RunConfig:
    """A configuration with these sections; model stands for model_config."""
    if "model" in sections:
        sections["model_config"] = sections.pop("model")
    return from_mapping({"name": "x", **sections}, source="x.yaml")


def refusal(**sections: Any) -> tuple[str, str]:
    """(message, hint) without the file, which every message begins with."""
    with pytest.raises(ConfigError) as caught:
        loaded(**sections)
    source, _, message = str(caught.value).partition(": ")
    assert source == "x.yaml"
    return message, caught.value.hint
