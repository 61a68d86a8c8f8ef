"""The settings of torch's caching allocator, read from the text of PYTORCH_CUDA_ALLOC_CONF.

    settings_of("expandable_segments:True,max_split_size_mb:128")
    # {"expandable_segments": True, "max_split_size": 134_217_728}
    Rules().under(settings_of(text))

Keys and values are those of a snapshot's allocator_settings. Keys that decide neither sizes nor segments are left out.

Source: c10/core/AllocatorConfig.cpp of torch 2.11 (parseRoundUpPower2Divisions and its neighbours).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_memprof.allocator.rules import LARGE_SEGMENT_BYTES, OWN_SEGMENT_BYTES, SETTINGS_VARIABLES
from ray_memprof.errors import ConfigError

_MIB = 2**20
_NUM_POWERS = 16
"""Divisions are given for each power of two from 1 MiB to 32 GiB."""
_PAIR = re.compile(r"([A-Za-z0-9_]+):(\[[^\]]*\]|[^,\[\]]+)")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_SIZES = {
    "max_split_size_mb": "max_split_size",
    "large_segment_size_mb": "large_segment_size",
    "max_non_split_rounding_mb": "max_non_split_rounding_size",
}


def settings_of(text: str, variable: str = SETTINGS_VARIABLES[0]) -> dict[str, Any]:
    """Return the settings that decide sizes and segments; what torch would refuse is an error.

    Args:
        text: of the environment variable.
        variable: its name, for messages.

    Raises:
        ConfigError: the text is not one of torch's settings, or a value is not one of the key's.
    """
    settings: dict[str, Any] = {}
    try:
        for key, value in _pairs(text):
            if key in _SIZES:
                settings[_SIZES[key]] = _mebibytes(key, value)
            elif key in _READERS:
                settings[key] = _READERS[key](key, value)
        _check_sizes(settings)
    except ConfigError as error:
        raise ConfigError(f"{variable}: {error}", hint=error.hint) from None
    return settings


def given(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that torch reads in an environment, and its text; the text is empty where none is set."""
    variable = next((name for name in SETTINGS_VARIABLES if name in environment), SETTINGS_VARIABLES[0])
    return variable, environment.get(variable, "")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Split the text at commas outside of brackets; torch ignores white space."""
    text, at = re.sub(r"\s", "", text), 0
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None or text[found.end() : found.end() + 1] not in ("", ","):
            raise ConfigError(f"{text[at:]!r} is no setting", hint="write key:value,key:value")
        yield found[1], found[2]
        at = found.end() + 1


def _wrong(key: str, value: str, wanted: str) -> ConfigError:
    return ConfigError(f"{key} is {value!r}", hint=f"{key} takes {wanted}")


def _check_sizes(settings: Mapping[str, int]) -> None:
    large = settings.get("large_segment_size", LARGE_SEGMENT_BYTES)
    if large <= OWN_SEGMENT_BYTES:
        raise _wrong("large_segment_size_mb", str(large // _MIB), "more than 10")
    for key in ("max_split_size_mb", "max_non_split_rounding_mb"):
        size = settings.get(_SIZES[key], large)
        if size < large:
            raise _wrong(key, str(size // _MIB), f"at least {large // _MIB}")


def _mebibytes(key: str, value: str) -> int:
    if not value.isdecimal():
        raise _wrong(key, value, "a whole number of MiB")
    return int(value) * _MIB


def _is_true(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise _wrong(key, value, "True or False")
    return value == "True"


def _fraction(key: str, value: str) -> float:
    fraction = float(value) if _NUMBER.fullmatch(value) else 0.0
    if not 0 < fraction < 1:
        raise _wrong(key, value, "a number between 0 and 1")
    return fraction


def _divisions(key: str, value: str) -> dict[str, int]:
    """Return the divisions by power of two: one number for all, or [256:1,512:2,>:4] with sizes in MiB."""
    if not value.startswith("["):
        return {str(2**power): _steps(key, value) for power in range(_NUM_POWERS)}
    steps = [0] * _NUM_POWERS
    last, is_first = 0, True
    for part in value[1:-1].split(","):
        bound, _, number = part.partition(":")
        if bound == ">":
            steps[last + 1 :] = [_steps(key, number)] * (_NUM_POWERS - last - 1)
            continue
        if not bound.isdecimal() or int(bound).bit_count() != 1:
            raise _wrong(key, value, "powers of two in MiB, and > for the rest")
        last = min(int(bound).bit_length() - 1, _NUM_POWERS - 1)
        if is_first:
            steps[:last] = [_steps(key, number)] * last
        steps[last], is_first = _steps(key, number), False
    return {str(2**power): step for power, step in enumerate(steps)}


def _steps(key: str, text: str) -> int:
    if not text.isdecimal() or int(text).bit_count() > 1:
        raise _wrong(key, text, "a power of two, or 0")
    return int(text)


_READERS: dict[str, Callable[[str, str], Any]] = {
    "expandable_segments": _is_true,
    "garbage_collection_threshold": _fraction,
    "roundup_power2_divisions": _divisions,
}
