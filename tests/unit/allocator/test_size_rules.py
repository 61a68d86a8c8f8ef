"""Sizes by the allocator's rules, against those of the settings' own documentation."""

import pytest

from ray_memprof.allocator.rules import SMALL_BYTES, Rules

MIB = 2**20


@pytest.mark.parametrize(
    ("requested", "size"), [(0, 512), (1, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512)]
)
def test_sizes_are_rounded_to_512(requested: int, size: int) -> None:
    assert Rules().rounded(requested) == size


@pytest.mark.parametrize(
    ("requested", "size"),
    [
        (1024, 1024),
        (2048, 2048),
        (2049, 2560),
        (1200 * 1024, 1280 * 1024),
        (4 * MIB, 4 * MIB),
        (5 * MIB + 1, 6 * MIB),
    ],
)
def test_divisions_are_steps_between_powers_of_two(requested: int, size: int) -> None:
    """As torch documents it: with 4 divisions 1,200 becomes 1,280."""
    assert Rules(divisions=(4,)).rounded(requested) == size


def test_each_power_of_two_has_its_own_division() -> None:
    rules = Rules().under({"roundup_power2_divisions": {"1": 1, "2": 2, "4": 4}})
    assert [rules.rounded(size * MIB + 1) for size in (1, 2, 4, 8)] == [
        MIB + 512, 3 * MIB, 5 * MIB, 10 * MIB,
    ]  # fmt: skip


def test_no_division_is_the_default() -> None:
    assert Rules().under({"roundup_power2_divisions": {"1": 0, "2": 1}}) == Rules()


def test_what_settings_do_not_name_stays_and_limits_below_one_are_none() -> None:
    rules = Rules(expandable_segments=True).under({"max_split_size": 8 * MIB})
    assert rules == Rules(expandable_segments=True, max_split_bytes=8 * MIB)
    assert rules.under({"expandable_segments": False}) == Rules()


@pytest.mark.parametrize(
    ("rules", "wanted", "rest", "splits"),
    [
        (Rules(), SMALL_BYTES, 512, True),
        (Rules(), SMALL_BYTES, 511, False),
        (Rules(), SMALL_BYTES + 512, SMALL_BYTES, False),
        (Rules(), SMALL_BYTES + 512, SMALL_BYTES + 512, True),
        (Rules(expandable_segments=True), SMALL_BYTES + 512, 512, True),
        (Rules(max_split_bytes=8 * MIB), 8 * MIB, 8 * MIB, False),
        (Rules(max_split_bytes=8 * MIB), 8 * MIB - 512, 8 * MIB, True),
    ],
)
def test_what_is_left_of_a_block_is_split_off_or_kept(
    rules: Rules, wanted: int, rest: int, splits: bool
) -> None:
    assert rules.splits(wanted, rest) is splits
