"""A YAML file as a mapping, and `section.key=value` overrides applied to it.

    mapping = read("configs/baseline.yaml")
    override(mapping, ["generation.sample_steps=4"])        # value as YAML; changes `mapping`

A key that is given twice is refused, although YAML readers usually accept it. null, or no value, means the default.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.config.faults import shown
from ray_memprof.errors import ConfigError

_YAML_HINT = "it must be YAML; quote text that holds : # [ { or }"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is twice in one mapping, and names line and column of a value that it cannot read."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # 2026-02-30, !!int x, a number of 5,000 digits
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: str | Path) -> dict[str, Any]:
    """The file as a mapping. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", hint="check the path; configs/ holds examples"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}", hint="configs/ holds examples") from error
    mapping = _parse(text, source=str(path))
    if not isinstance(mapping, dict):
        found = "nothing in it" if mapping is None else f"{shown(mapping)} is not a section of keys"
        raise ConfigError(f"{path}: {found}", hint="configs/ holds examples")
    return mapping


def _parse(text: str, *, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{source}{place}: {error.problem}", hint=_YAML_HINT) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}", hint=_YAML_HINT) from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply", hint="configs/ holds examples") from error


def override(mapping: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply each `section.key=value` to `mapping`; returns the keys."""
    keys = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"--set {text}: not of the form section.key=value", hint="--set generation.sample_steps=4"
            )
        put(mapping, key, _parse(value, source=f"--set {text}"), source=f"--set {text}")
        keys.append(key)
    return keys


def put(mapping: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    """Set a dotted key, and make its sections if they are missing."""
    *sections, last = key.split(".")
    for depth, section in enumerate(sections):
        known = mapping.get(section)
        if known is not None and not isinstance(known, dict):
            taken = ".".join(sections[: depth + 1])
            raise ConfigError(f"{source}: {taken} is {shown(known)}, no section", hint="check the key")
        # Changed in a copy, because a YAML alias puts the same dict in several places.
        mapping[section] = dict(known or {})
        mapping = mapping[section]
    mapping[last] = value


def without_nulls(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without keys whose value is null, in every section: null means the default."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in mapping.items()
        if value is not None
    }
