"""Explains what pydantic finds wrong with a configuration: the key, its value, what is allowed, the nearest known key.

    raise explained(error, RunConfig, source="configs/x.yaml")
    # configs/x.yaml: unknown key logging.log_intervall
    # hint: did you mean logging.log_interval?

Takes a ValidationError and the model that raised it; leaves nothing.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ray_memprof.errors import ConfigError
from ray_memprof.wording import did_you_mean, nearest, shortened

Loc = tuple[int | str, ...]

# What a value must be, by pydantic's type of error; for other types pydantic's own message is used.
_WANTED = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys",
    "model_type": "must be a section of keys",
    "invalid_key": "keys must be text",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be more than {gt}",
    "too_short": "must hold at least {min_length}",
    "value_error": "{error}",
}


def explained(
    error: ValidationError, model: type[BaseModel], *, source: str, overridden: Sequence[str] = ()
) -> ConfigError:
    """The errors that pydantic found as a ConfigError, one line for each: key, value, what the value must be."""
    lines, hints = [], []
    faults = {_dotted(fault["loc"]): fault for fault in error.errors()}
    for key, fault in faults.items():
        # For a list with a wrong entry pydantic reports two errors, since it also finds the list too short.
        if any(other != key and _covers(key, other) for other in faults):
            continue
        line, hint = _explain(fault, key, model)
        lines.append(f"{origin(key, source, overridden)}: {line}")
        hints.append(hint)
    return ConfigError("\n".join(lines), hint="; ".join(dict.fromkeys(filter(None, hints))))


def origin(message: str, source: str, overridden: Sequence[str]) -> str:
    """Where the faulty value was given: "--set" if `message` names a key that was given there, else the file."""
    named = re.findall(r"[\w.\[\]]+", message)
    touched = any(_covers(given, key) or _covers(key, given) for given in overridden for key in named)
    return "--set" if touched else source


def _covers(section: str, key: str) -> bool:
    return key == section or key.startswith((f"{section}.", f"{section}["))


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _explain(fault: Any, key: str, model: type[BaseModel]) -> tuple[str, str]:
    """The line for one error, and its hint or ""."""
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return f"unknown key {key}", _nearest_key(fault["loc"], model)
    if kind == "missing":
        return f"{key} is missing", ""
    context = {
        name: str(bound).replace("'", "").removesuffix(".0") for name, bound in fault.get("ctx", {}).items()
    }
    wanted = _WANTED[kind].format(**context) if kind in _WANTED else fault["msg"]
    return f"{key} {shown(value)}: {wanted}", _value_hint(kind, value, context)


def _value_hint(kind: str, value: Any, context: Mapping[str, str]) -> str:
    if kind == "literal_error":
        words = context["expected"].replace(" or ", ", ").split(", ")
        return did_you_mean(str(value), words)
    if kind == "string_type" and isinstance(value, bool):
        return "quote it; YAML takes yes, no, on and off for true or false"
    if kind == "string_type" and value is None:
        return 'quote it: "null" for the word, "" for an empty text'
    if kind == "string_type" and isinstance(value, int | float):
        return f'quote it: "{shown(value)}"'
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return _number_hint(value)
    return ""


def _number_hint(text: str) -> str:
    """The hint for a number that YAML 1.1 reads as text, because it is quoted or written as 1e3."""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    plain = f"{number:.0f}" if number.is_integer() else repr(number)
    return f"YAML takes it for text: write {plain} without quotes"


def shown(value: Any) -> str:
    """A value as YAML writes it, cut to fit a line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return shortened(repr(value), 60)


def _nearest_key(loc: Loc, model: type[BaseModel]) -> str:
    """A hint with the known key that was probably meant: the same name in any section, else a similar name."""
    name, known = str(loc[-1]), list(_known_keys(model))
    # A row of a matrix has its number in `loc`, but not in the known keys.
    section = _dotted(tuple(part for part in loc[:-1] if isinstance(part, str)))
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    for candidates, cutoff in ((known, 1.0), (siblings, 0.55), (known, 0.55)):
        by_name = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        if near := nearest(name, by_name, cutoff=cutoff):
            return f"did you mean {by_name[near]}?"
    return f"known here: {', '.join(siblings)}"


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield key
        for section in _models_in(field.annotation):
            yield from _known_keys(section, f"{key}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
