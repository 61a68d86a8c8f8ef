"""Limits: what they say, what they are held against, and what cannot be held against anything."""

from collections.abc import Iterator

import duckdb
import pytest

from ray_memprof.analysis.comparison.certainty import Certainty
from ray_memprof.analysis.comparison.limits import Check, check, check_line, parse, verdict_text
from ray_memprof.errors import ConfigError
from ray_memprof.wording import change_text

MIB, GIB = 2**20, 2**30
LABELS = ["before", "after"]


@pytest.fixture
def compared() -> "Iterator[duckdb.DuckDBPyConnection]":  # in quotes: else DuckDB complains of leaks
    """The table of that name: two runs, the second of which lacks the stage decode and rank 1."""
    rows = [
        # run, path, rank, measure, unit, value, mean_value, max_rank
        (0, None, None, "peak_allocated", "bytes", 100.0 * MIB, 80.0 * MIB, 1),
        (1, None, None, "peak_allocated", "bytes", 102.0 * MIB, 82.0 * MIB, 0),
        (0, None, 0, "peak_allocated", "bytes", 60.0 * MIB, None, None),
        (1, None, 0, "peak_allocated", "bytes", 102.0 * MIB, None, None),
        (0, None, 1, "peak_allocated", "bytes", 100.0 * MIB, None, None),
        (0, "encode.text", None, "duration", "s", 2.0, 1.5, 0),
        (1, "encode.text", None, "duration", "s", 2.5, 1.5, 0),
        (0, "decode", None, "duration", "s", 1.0, 1.0, 0),
        (0, None, None, "imbalance", "", 1.25, None, None),
        (1, None, None, "imbalance", "", 1.0, None, None),
        (0, None, None, "num_retries", "", 0.0, 0.0, 0),
        (1, None, None, "num_retries", "", 3.0, 1.5, 1),
        (0, None, None, "unexplained", "bytes", -4.0 * MIB, -4.0 * MIB, 0),
        (1, None, None, "unexplained", "bytes", -3.0 * MIB, -3.0 * MIB, 0),
        (1, None, None, "nccl", "bytes", 1.0 * GIB, 1.0 * GIB, 0),
        (0, "denoise", None, "step_duration", "s", 1.0, 1.0, 0),
        (1, "denoise", None, "step_duration", "s", 1.0, 1.0, 0),
    ]
    columns = (
        "run INTEGER, path VARCHAR, rank BIGINT, measure VARCHAR, unit VARCHAR, value DOUBLE, mean_value DOUBLE, "
        "max_rank BIGINT"
    )
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE compared ({columns})")
        connection.executemany("INSERT INTO compared VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        yield connection


@pytest.mark.parametrize(
    ("text", "path", "rank", "is_mean", "measure", "comparison", "is_change", "amount", "unit"),
    [
        ("peak_device_used > +2%", None, None, False, "peak_device_used", ">", True, 2.0, "%"),
        ("a>1", None, None, False, "a", ">", False, 1.0, ""),
        (" denoise.peak >= +100 MiB ", "denoise", None, False, "peak", ">=", True, 100.0 * MIB, "bytes"),
        ("encode.text.duration<-0.5s", "encode.text", None, False, "duration", "<", True, -0.5, "s"),
        ("rank3.peak_reserved > 16 GiB", None, 3, False, "peak_reserved", ">", False, 16.0 * GIB, "bytes"),
        ("mean.a/b.c.duration <= 250 ms", "a/b.c", None, True, "duration", "<=", False, 0.25, "s"),
        ("rank0.my module.duration > 2 min", "my module", 0, False, "duration", ">", False, 120.0, "s"),
        ("x > - 1.5 %", None, None, False, "x", ">", True, -1.5, "%"),
        ("x > 16 GB", None, None, False, "x", ">", False, 16e9, "bytes"),
    ],
)  # fmt: skip
def test_what_a_limit_says(
    text: str,
    path: str | None,
    rank: int | None,
    is_mean: bool,
    measure: str,
    comparison: str,
    is_change: bool,
    amount: float,
    unit: str,
) -> None:
    limit = parse(text)
    assert (limit.path, limit.rank, limit.is_mean, limit.measure) == (path, rank, is_mean, measure)
    assert (limit.comparison, limit.is_change, limit.amount, limit.unit) == (
        comparison,
        is_change,
        amount,
        unit,
    )
    assert limit.text == text.strip()


EXAMPLE = (
    "[WHERE.]MEASURE > [+]AMOUNT, as in 'peak_device_used > +2%', 'denoise.peak_allocated > +100 MiB', "
    "'rank0.peak_reserved > 16 GiB'"
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "peak",
        "peak >",
        "> 3",
        "peak = 3",
        "peak > x",
        "peak > +-3",
        "peak > 3 %%",
        "peak > 1e3",
        "a > 1 > 2",
    ],
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert (str(caught.value), caught.value.hint) == (f"--fail-if {text!r} is no limit", EXAMPLE)


def test_a_percentage_without_a_sign_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("peak_allocated > 2.5%")
    assert str(caught.value) == "--fail-if 'peak_allocated > 2.5%': 2.5% of what? A change has a sign"
    assert caught.value.hint == "+2.5%"


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("peak_allocated > +3 XiB")
    assert str(caught.value) == "--fail-if 'peak_allocated > +3 XiB': there is no unit 'XiB'"
    assert (
        caught.value.hint == "%, B, KiB, MiB, GiB, KB, MB, GB, ms, s, min, h, or none for a count or a ratio"
    )


@pytest.mark.parametrize(
    ("text", "bound", "is_exceeded"),
    [
        ("peak_allocated > +2%", 102.0 * MIB, False),
        ("peak_allocated >= +2%", 102.0 * MIB, True),
        ("peak_allocated > +1.5%", 101.5 * MIB, True),
        ("peak_allocated > +1 MiB", 101.0 * MIB, True),
        ("peak_allocated > 1 GiB", 1.0 * GIB, False),
        ("peak_allocated < -1%", 99.0 * MIB, False),
        ("rank0.peak_allocated > +50%", 90.0 * MIB, True),
        ("mean.peak_allocated > +2 MiB", 82.0 * MIB, False),
        ("mean.encode.text.duration > +0%", 1.5, False),
        ("encode.text.duration > +400 ms", 2.4, True),
        ("imbalance > 1", 1.0, False),
        ("imbalance < +0", 1.25, True),
        ("num_retries > +0%", 0.0, True),
        ("num_retries > +300%", 0.0, True),
        ("unexplained > +10%", -3.6 * MIB, True),
        ("unexplained > +30%", -2.8 * MIB, False),
        ("nccl > 512 MiB", 512.0 * MIB, True),
    ],
)
def test_a_limit_is_held_against_the_figure(
    compared: "duckdb.DuckDBPyConnection", text: str, bound: float, is_exceeded: bool
) -> None:
    found = check(compared, parse(text), 1, LABELS)
    assert (found.bound, found.is_exceeded) == (pytest.approx(bound, rel=1e-12), is_exceeded)


def test_a_check_has_both_values_and_whose_it_is(compared: "duckdb.DuckDBPyConnection") -> None:
    assert check(compared, parse("peak_allocated > +1 MiB"), 1, LABELS) == Check(
        limit="peak_allocated > +1 MiB",
        run=1,
        is_exceeded=True,
        unit="bytes",
        base_value=100.0 * MIB,
        value=102.0 * MIB,
        bound=101.0 * MIB,
        rank=0,
    )
    assert check(compared, parse("nccl > 2 GiB"), 1, LABELS).base_value is None
    assert check(compared, parse("mean.peak_allocated > +1%"), 1, LABELS).rank is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "peak_alocated > +1%",
            "there is no measure 'peak_alocated'",
            "did you mean peak_allocated?",
        ),
        (
            "zzz > 1",
            "there is no measure 'zzz'",
            "there are duration, imbalance, nccl, num_retries, peak_allocated, step_duration, unexplained",
        ),
        ("encode.txt.duration > +1%", "after has no duration in 'encode.txt'", "did you mean encode.text?"),
        (
            "zzz.duration > 1 s",
            "after has no duration in 'zzz'",
            "ray-memprof compare --format csv lists every span",
        ),
        # Known, but not of this run: no silent pass.
        (
            "decode.duration > +1%",
            "after has no duration in 'decode'",
            "a limit needs a figure that both runs have",
        ),
        (
            "rank1.peak_allocated > 1 B",
            "after has no peak_allocated of rank 1",
            "a limit needs a figure that both runs have",
        ),
        ("nccl > +1%", "before has no nccl", "a limit needs a figure that both runs have"),
        (
            "mean.imbalance > 1",
            "after has no imbalance as a mean over ranks",
            "it is of all ranks together: leave out `mean.`",
        ),
        ("step_duration > 1 s", "after has no step_duration", "there is denoise.step_duration"),
    ],
)
def test_a_limit_without_its_figure_is_an_error(
    compared: "duckdb.DuckDBPyConnection", text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compared, parse(text), 1, LABELS)
    assert (str(caught.value), caught.value.hint) == (f"--fail-if {text!r}: {message}", hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("peak_allocated > 3", "gives no unit", "peak_allocated needs a size (100 MiB), or +2%"),
        ("peak_allocated > +3 s", "gives a time", "peak_allocated needs a size (100 MiB), or +2%"),
        ("encode.text.duration > 3 MiB", "gives a size", "duration needs seconds (0.5 s), or +2%"),
        ("imbalance > 3 s", "gives a time", "imbalance needs a bare number, or +2%"),
    ],
)
def test_a_unit_that_does_not_fit_is_an_error(
    compared: "duckdb.DuckDBPyConnection", text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compared, parse(text), 1, LABELS)
    assert (str(caught.value), caught.value.hint) == (f"--fail-if {text!r} {message}", hint)


def late(*ranks: int) -> Certainty:
    """What these ranks held before their first event is not known."""
    return Certainty(lower_bounds=frozenset(ranks))


def rough(**mib: int) -> Certainty:
    """The replays of these ranks may be off by so many MiB."""
    return Certainty({int(rank.removeprefix("rank")): size * MIB for rank, size in mib.items()})


UNKNOWN = {1: late(0)}


@pytest.mark.parametrize(
    ("text", "certainty", "is_exceeded", "is_unknown"),
    [
        ("peak_allocated > +3%", UNKNOWN, True, True),
        ("peak_allocated > 1 GiB", UNKNOWN, True, True),
        ("peak_allocated > +1%", UNKNOWN, True, False),
        ("rank0.peak_allocated > 1 GiB", UNKNOWN, True, True),
        ("rank0.peak_allocated > 1 GiB", {1: late(1)}, False, False),
        ("mean.peak_allocated > 1 GiB", UNKNOWN, True, True),
        # More than what is known is not less, and may be more than the bound.
        ("peak_allocated < 1 MiB", UNKNOWN, False, False),
        ("peak_allocated < 1 GiB", UNKNOWN, True, True),
        ("num_retries > 9", UNKNOWN, False, False),
        # 102 MiB in the second run: the base had 100 MiB or more, so it grew by 2 % or less.
        ("peak_allocated > +3%", {0: late(1)}, False, False),
        ("peak_allocated > +1%", {0: late(1)}, True, True),
        ("peak_allocated < -3%", {0: late(1)}, True, True),
        ("peak_allocated > 1 GiB", {0: late(1)}, False, False),
        # The replay of the second run may be off by 3 MiB: 99 to 105 MiB.
        ("peak_allocated > 104 MiB", {1: rough(rank0=3)}, True, True),
        ("peak_allocated > 100 MiB", {1: rough(rank0=3)}, True, True),
        ("peak_allocated > 105 MiB", {1: rough(rank0=3)}, False, False),
        ("peak_allocated >= 105 MiB", {1: rough(rank0=3)}, True, True),
        ("peak_allocated > 98 MiB", {1: rough(rank0=3)}, True, False),
        ("peak_allocated < 99 MiB", {1: rough(rank0=3)}, False, False),
        ("peak_allocated < 100 MiB", {1: rough(rank0=3)}, True, True),
        ("peak_allocated < 106 MiB", {1: rough(rank0=3)}, True, False),
        ("mean.peak_allocated > 84 MiB", {1: rough(rank0=3)}, True, True),
        ("rank0.peak_allocated > 104 MiB", {1: rough(rank1=3)}, False, False),
        ("nccl > 1025 MiB", {1: rough(rank0=3)}, False, False),
        # The base as well: 98 to 102 MiB, so that +5 % are 102.9 to 107.1 MiB.
        ("peak_allocated > +5%", {0: rough(rank1=2), 1: rough(rank0=3)}, True, True),
        ("peak_allocated > +5%", {0: rough(rank1=2)}, False, False),
        ("peak_allocated > +3%", {0: rough(rank1=2)}, True, True),
        ("peak_allocated > +8%", {0: rough(rank1=2), 1: rough(rank0=3)}, False, False),
        # The largest peak and the mean: (102 +- 1) / (82 -+ 1).
        ("imbalance > 1.25", {1: rough(rank0=1)}, True, True),
        ("imbalance > 1.28", {1: rough(rank0=1)}, False, False),
        ("imbalance > 1.2", UNKNOWN, True, True),
        ("imbalance < 1", UNKNOWN, False, False),
    ],
)
def test_a_limit_does_not_hold_where_nobody_knows(
    compared: "duckdb.DuckDBPyConnection",
    text: str,
    certainty: dict[int, Certainty],
    is_exceeded: bool,
    is_unknown: bool,
) -> None:
    found = check(compared, parse(text), 1, LABELS, certainty)
    assert (found.is_exceeded, found.is_unknown) == (is_exceeded, is_unknown)
    assert check_line(found, "after").startswith("limit not known: ") == is_unknown


def test_a_line_says_why_a_verdict_is_not_known(compared: "duckdb.DuckDBPyConnection") -> None:
    lines = [
        check_line(check(compared, parse(text), 1, LABELS, certainty), "after")
        for text, certainty in (
            ("rank0.peak_allocated > 104 MiB", {1: rough(rank0=3)}),
            ("peak_allocated > +3%", {0: rough(rank0=2), 1: late(0)}),
        )
    ]
    assert lines == [
        "limit not known: rank0.peak_allocated > 104 MiB: 60.0 MiB -> 102 MiB (+42.0 MiB, +70.0%) on rank 0 in after, "
        "bound 104 MiB; it may be off by 3,145,728 bytes: the replay is right only within them",
        "limit not known: peak_allocated > +3%: 100 MiB -> 102 MiB (+2.00 MiB, +2.0%) on rank 0 in after, bound "
        "103 MiB; one of them is a lower bound: what was held before the first event is not known; one of them may be "
        "off by 2,097,152 bytes: the replay is right only within them",
    ]


def test_the_verdict_counts_what_is_not_known(compared: "duckdb.DuckDBPyConnection") -> None:
    def verdict(*texts: str) -> str:
        return verdict_text([check(compared, parse(text), 1, LABELS, UNKNOWN) for text in texts])

    sure, unsure, holds = "peak_allocated > +1%", "peak_allocated > +3%", "nccl > 2 GiB"
    assert verdict(holds) == ""
    assert verdict(holds, sure) == "1 of 2 limits exceeded"
    assert verdict(holds, unsure) == "1 of 2 limits not known"
    assert verdict(unsure, sure, sure) == "2 of 3 limits exceeded, 1 not known"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("run", [0, 1])
def test_a_figure_that_is_no_number_is_none(
    compared: "duckdb.DuckDBPyConnection", value: float | None, run: int
) -> None:
    compared.execute("UPDATE compared SET value = ?, mean_value = ? WHERE run = ?", [value, value, run])
    for text in ("peak_allocated > +2%", "peak_allocated < -2%", "mean.peak_allocated > +2%"):
        with pytest.raises(ConfigError, match=f"{LABELS[run]} has no peak_allocated"):
            check(compared, parse(text), 1, LABELS)


def test_a_line_has_both_values_and_the_bound(compared: "duckdb.DuckDBPyConnection") -> None:
    lines = [
        check_line(check(compared, parse(text), 1, LABELS), "after")
        for text in ("peak_allocated > +1 MiB", "nccl > 2 GiB", "mean.encode.text.duration > +1%")
    ]
    assert lines == [
        "limit exceeded: peak_allocated > +1 MiB: 100 MiB -> 102 MiB (+2.00 MiB, +2.0%) on rank 0 in after, "
        "bound 101 MiB",
        "limit holds: nccl > 2 GiB: 1.00 GiB on rank 0 in after, bound 2.00 GiB",
        "limit holds: mean.encode.text.duration > +1%: 1.500 s -> 1.500 s (=) in after, bound 1.515 s",
    ]


@pytest.mark.parametrize(
    ("change", "base", "unit", "text"),
    [
        (None, None, "bytes", "-"),
        (0.0, 5.0, "bytes", "="),
        (1.5 * GIB, 1.0 * GIB, "bytes", "+1.50 GiB, +150.0%"),
        (-3.0 * MIB, 0.0, "bytes", "-3.00 MiB"),
        (512.0, 1.0 * GIB, "bytes", "+512 B, +0.0%"),
        (99.0, 1.0, "s", "+99.000 s, x 100"),
        (-0.05, 1.05, "", "-0.05, -4.8%"),
        (1.0 * MIB, -4.0 * MIB, "bytes", "+1.00 MiB, +25.0%"),
    ],
)
def test_a_change_in_words(change: float | None, base: float | None, unit: str, text: str) -> None:
    assert change_text(change, base, unit) == text
