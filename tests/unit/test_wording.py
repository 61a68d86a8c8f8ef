"""Sizes are read by people: never 0.00 of anything that is there. And written by them: never without a unit."""

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.wording import GIB, MIB, did_you_mean, error_line, parse_size, shortened, size_text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0.0 MiB"),
        (512 * 1024, "0.5 MiB"),
        (GIB // 4 - 1, "256.0 MiB"),
        (GIB // 4, "0.25 GiB"),
        (18_628_102_656, "17.35 GiB"),
        (-205_520_896, "-196.0 MiB"),
        (-2 * GIB, "-2.00 GiB"),
        (33 * MIB, "33.0 MiB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0 B", 0),
        ("4096B", 4096),
        ("1 kB", 1000),
        ("1 KiB", 1024),
        ("500 MB", 500_000_000),
        (" 33.0 MiB ", 33 * MIB),
        ("30 GiB", 30 * GIB),
        ("30gib", 30 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("0.1 GiB", 107_374_182),
        ("2 TiB", 2 * 2**40),
        ("1 TB", 10**12),
    ],
)
def test_a_size_is_a_number_with_its_unit(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "30", "GiB", "30 G", "30 Gbit", "-1 GiB", "1e3 MB", "1 2 MB", "30 %"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_size(text)
    assert (str(raised.value), raised.value.hint) == (
        f"{text!r} is no size",
        "a number and its unit: 30 GiB, 500 MB or 4096 B; GiB are 1024^3 bytes, GB are 1000^3",
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n a wrong number: 42 \nmore"), "ValueError: a wrong number: 42"),
        (KeyError("a"), "KeyError: 'a'"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_an_error_in_one_line(error: BaseException, line: str) -> None:
    assert error_line(error) == line


def test_an_error_whose_text_is_given() -> None:
    assert (error_line(ValueError("x"), "y"), error_line(ValueError("x"), "")) == (
        "ValueError: y",
        "ValueError",
    )


def test_a_text_is_cut_only_if_it_is_too_long() -> None:
    assert (shortened("abcdef", 6), shortened("abcdefg", 6)) == ("abcdef", "abc...")


def test_the_nearest_known_word_is_a_hint() -> None:
    assert did_you_mean("peek", ["peak", "books"]) == "did you mean peak?"
    assert did_you_mean("xyz", ["peak"], otherwise="there is peak") == "there is peak"
