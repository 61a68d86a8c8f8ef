"""Sizes are read by people: never 0.00 of anything that is there. And written by them: never without a unit."""

import json
import shutil
import subprocess
from importlib import resources

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.wording import (
    GIB,
    MIB,
    did_you_mean,
    error_line,
    parse_size,
    share_text,
    shortened,
    size_text,
    unit_of,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (12 * 1024, "12.0 KiB"),
        (512 * 1024, "512 KiB"),
        (1000 * 1024, "0.977 MiB"),
        (MIB + 5 * 1024, "1.00 MiB"),
        (MIB + 6 * 1024, "1.01 MiB"),
        (10 * MIB - 1, "10.0 MiB"),
        (96 * MIB, "96.0 MiB"),
        (958 * MIB, "958 MiB"),
        (999 * MIB + MIB // 2 - 1, "999 MiB"),
        (999 * MIB + MIB // 2, "0.976 GiB"),
        (GIB, "1.00 GiB"),
        (17 * GIB + GIB // 4, "17.3 GiB"),
        (18_628_102_656, "17.3 GiB"),
        (139 * GIB, "139 GiB"),
        (1234 * GIB, "1,234 GiB"),
        (-205_520_896, "-196 MiB"),
        (-2 * GIB, "-2.00 GiB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, which runs the page's JavaScript")
def test_a_page_writes_sizes_as_the_tables_do() -> None:
    sizes = [
        0,
        1,
        1023,
        *(2**power + more for power in range(10, 45) for more in (-1, 0, 1, 2**power // 4 + 7)),
    ]
    sizes += [999 * MIB + MIB // 2, 17 * GIB + GIB // 4, 10 * MIB - 1, -GIB]
    script = (resources.files("ray_memprof.report") / "templates" / "report.js").read_text(encoding="utf-8")
    function = script[script.index("const UNITS") : script.index("// Puts the sizes of a trace")]
    body = function[: function.index("const NARROW")] + function[function.index("function sizeText") :]
    asked = f"{body}\nconsole.log(JSON.stringify({sizes}.map(sizeText)));"
    told = subprocess.run(
        ["node", "-e", asked], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert json.loads(told) == list(map(size_text, sizes))


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "0%"),
        (0.1234567, "12.35%"),
        (0.00005, "0.01%"),
        (0.00004, "<0.01%"),
        (-0.00004, ">-0.01%"),
        (1, "100.00%"),
    ],
)
def test_a_share_of_something_is_never_zero(fraction: float, text: str) -> None:
    assert share_text(fraction) == text


@pytest.mark.parametrize(
    ("num_bytes", "unit"),
    [
        (0, ("B", 1)),
        (1023, ("B", 1)),
        (MIB, ("MiB", MIB)),
        (GIB - 1, ("MiB", MIB)),
        (5000 * GIB, ("GiB", GIB)),
    ],
)
def test_an_axis_has_the_largest_unit_that_fits(num_bytes: int, unit: tuple[str, int]) -> None:
    assert unit_of(num_bytes) == unit


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
