"""A YAML file as a mapping, and `section.key=value` overrides applied to it.

    mapping = read("configs/baseline.yaml")
    override(mapping, ["generation.sample_steps=4"])        # value as YAML; changes `mapping`

A key that is given twice is refused, although YAML readers usually accept it. null, or no value, means the default.
The arguments of a script are kept as they are written: 007 stays 007, and 1e-4, yes and 2026-01-31 stay texts.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.config.faults import shown
from ray_memprof.errors import ConfigError

_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_YAML_HINT = "it must be YAML; quote text that holds : # [ { or }"


_ARGUMENTS = ("args", "script.args")
"""The key of a script's arguments: in its section, in a row of a matrix, and behind --set."""


def _as_written(node: yaml.Node) -> yaml.Node:
    """A list whose scalars are texts, whatever YAML would read them as; only null stays null."""
    if not isinstance(node, yaml.SequenceNode):
        return node
    # New nodes: an alias may use the old ones elsewhere.
    texts = [
        yaml.ScalarNode(_TEXT, one.value, one.start_mark, one.end_mark)
        if isinstance(one, yaml.ScalarNode) and one.tag != _NULL
        else one
        for one in node.value
    ]
    return yaml.SequenceNode(node.tag, texts, node.start_mark, node.end_mark)


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
        for at, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
            if key.value in _ARGUMENTS:
                node.value[at] = key, _as_written(value)
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


def _parse(text: str, *, source: str, is_arguments: bool = False) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        return loader.construct_document(_as_written(node) if is_arguments else node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{source}{place}: {error.problem}", hint=_YAML_HINT) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}", hint=_YAML_HINT) from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply", hint="configs/ holds examples") from error
    finally:
        loader.dispose()


def override(mapping: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply each `section.key=value` to `mapping`; returns the keys."""
    keys = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"--set {text}: not of the form section.key=value", hint="--set generation.sample_steps=4"
            )
        source = f"--set {text}"
        put(mapping, key, _parse(value, source=source, is_arguments=key in _ARGUMENTS), source=source)
        keys.append(key)
    return keys


def short_forms(module_spans: Sequence[str], output_dir: Path | None) -> list[str]:
    """The overrides that the launcher's short options stand for; written as JSON, for values are read as YAML."""
    spans = [f"script.module_spans={json.dumps(list(module_spans))}"] if module_spans else []
    folder = [f"logging.output_dir={json.dumps(str(output_dir))}"] if output_dir is not None else []
    return [*spans, *folder]


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


def put_default(mapping: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Set a key of a section if the file does not; a section that is none is left to the check."""
    known = mapping.get(section)
    if known is None or (isinstance(known, dict) and known.get(key) is None):
        mapping[section] = {**(known or {}), key: value}


def without_nulls(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without keys whose value is null, in every section: null means the default."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in mapping.items()
        if value is not None
    }
