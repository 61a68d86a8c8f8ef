"""Where segments lie, as recorded programs had it: the sizes and addresses of their segments."""

from ray_memprof.allocator.addresses import DriverAddresses

MIB = 2**20


def places(*sizes: int) -> list[float]:
    """Address of each segment of so many MiB, in MiB below where the first 32 MiB begin."""
    addresses = DriverAddresses()
    first = addresses.take(32 * MIB)
    return [(first - addresses.take(size * MIB)) / MIB for size in sizes]


def test_address_space_is_taken_downwards_in_steps_of_32_mib() -> None:
    assert places(20, 54, 72, 32) == [32, 96, 192, 224]


def test_a_segment_that_fits_goes_into_the_smallest_hole_at_the_lowest_address() -> None:
    # As recorded: 18 MiB behind the second of two segments of 72.
    assert places(36, 54, 36, 72, 72, 18, 7) == [64, 128, 192, 288, 384, 384 - 72, 128 - 54]


def test_addresses_that_were_given_back_are_taken_again() -> None:
    addresses = DriverAddresses()
    low, high = (addresses.take(64 * MIB) for _ in range(2))
    addresses.give_back(low, 64 * MIB)
    addresses.give_back(high, 64 * MIB)
    assert addresses.take(128 * MIB) == min(low, high)
