"""A claim finds the allocation that held a storage at its moment, although the clocks differ a little."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.allocator.replay import Columns
from ray_memprof.recorder.owners import SLACK_US, Claims, OwnerRows, Owners
from ray_memprof.recorder.rows import Claim, Owner

WEIGHT, GRADIENT = Owner("Net.a", "Net", "weight"), Owner("Net.a", "Net", "gradient")


def columns(*events: tuple[int, str, int, int], first: int = 0) -> Columns:
    """Events as (microsecond, action, address, bytes asked for)."""
    found = Columns()
    for seq, (time_us, action, address, size) in enumerate(events, start=first):
        found.note(action, address, size, size, 0)
        found.seq.append(seq)
        found.t_ns.append(time_us * 1000)
    return found


def pairs(rows: OwnerRows) -> list[tuple[int, str]]:
    return list(zip(rows.seq, rows.category, strict=True))


def followed(owners: Owners, events: Columns, claims: list[Claim], shift_us: int = 0) -> OwnerRows:
    return owners.follow(events, claims, shift_us, lambda: None)


def test_a_claim_names_the_allocation_that_was_alive_at_its_moment() -> None:
    events = columns(
        (10, "alloc", 7, 64), (20, "free_requested", 7, 64), (21, "free_completed", 7, 64), (5000, "alloc", 7, 64)
    )  # fmt: skip
    claims = [Claim(15, 7, 64, WEIGHT), Claim(6000, 7, 64, GRADIENT)]
    assert pairs(followed(Owners(), events, claims)) == [(0, "weight"), (3, "gradient")]


def test_a_claim_may_come_long_after_the_allocation_and_in_a_later_batch() -> None:
    owners = Owners()
    assert pairs(followed(owners, columns((10, "alloc", 7, 64)), [])) == []
    rows = followed(owners, Columns(), [Claim(10**9, 7, 64, WEIGHT)])
    assert (pairs(rows), rows.t_ns, rows.owner, rows.component) == (
        [(0, "weight")],
        [10**12],
        ["Net.a"],
        ["Net"],
    )


def test_what_was_held_before_the_first_event_is_found() -> None:
    owners = Owners()
    owners.prime(columns((1, "segment_alloc", 7, 2048), (1, "alloc", 7, 64), first=-2))
    assert pairs(followed(owners, Columns(), [Claim(5, 7, 64, WEIGHT)])) == [(-1, "weight")]


def test_the_same_claim_twice_is_one_row_and_another_owner_is_a_second() -> None:
    owners = Owners()
    followed(owners, columns((1, "alloc", 7, 64)), [])
    claims = [
        Claim(2, 7, 64, WEIGHT),
        Claim(3, 7, 64, Owner("Net.a", "Net", "weight")),
        Claim(4, 7, 64, GRADIENT),
    ]
    assert pairs(followed(owners, Columns(), claims)) == [(0, "weight"), (0, "gradient")]


@pytest.mark.parametrize("address", [8, 7])
def test_a_storage_of_other_bytes_or_at_another_address_is_not_named(address: int) -> None:
    rows = followed(Owners(), columns((1, "alloc", 7, 64)), [Claim(5, address, 65, WEIGHT)])
    assert pairs(rows) == []


def test_a_claim_that_seems_to_come_before_its_allocation_or_after_its_free_is_met_within_the_slack() -> None:
    late = columns((100, "alloc", 7, 64))
    assert pairs(followed(Owners(), late, [Claim(100 - SLACK_US, 7, 64, WEIGHT)])) == [(0, "weight")]
    assert pairs(followed(Owners(), late, [Claim(99 - SLACK_US, 7, 64, WEIGHT)])) == []
    gone = columns((1, "alloc", 7, 64), (2, "free_completed", 7, 64))
    assert pairs(followed(Owners(), gone, [Claim(2 + SLACK_US, 7, 64, WEIGHT)])) == [(0, "weight")]
    assert pairs(followed(Owners(), gone, [Claim(3 + SLACK_US, 7, 64, WEIGHT)])) == []


def test_the_shift_between_the_clocks_is_taken_into_account() -> None:
    events = columns(
        (1_000_000, "alloc", 7, 64), (1_000_010, "free_completed", 7, 64), (1_000_020, "alloc", 7, 64)
    )
    assert pairs(followed(Owners(), events, [Claim(5_000_005, 7, 64, WEIGHT)], 4_000_000)) == [(0, "weight")]


@pytest.mark.parametrize("shift_us", [-4_000_000, 4_000_000])
def test_the_slack_is_counted_by_one_clock(shift_us: int) -> None:
    """A claim after the free, and one before the allocation, of which a clock differs by seconds."""
    gone = columns((9_000_001, "alloc", 7, 64), (9_000_002, "free_completed", 7, 64))
    late = columns((9_000_100, "alloc", 7, 64))
    for events, limit_us, step in (
        (gone, 9_000_002 + SLACK_US + shift_us, 1),
        (late, 9_000_100 - SLACK_US + shift_us, -1),
    ):
        for time_us, expected in ((limit_us, [(0, "weight")]), (limit_us + step, [])):
            found = followed(Owners(), events, [Claim(time_us, 7, 64, WEIGHT)], shift_us)
            assert pairs(found) == expected


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_every_claim_on_a_living_storage_finds_it(data: st.DataObject) -> None:
    """Against a list of the storages that are alive, with events and claims cut into batches anywhere."""
    alive: dict[int, int] = {}
    events: list[tuple[int, str, int, int]] = []
    claims: list[Claim] = []
    expected: list[tuple[int, str]] = []
    seqs: dict[int, int] = {}
    named: set[int] = set()
    for time_us in range(10, 10 + 10 * data.draw(st.integers(1, 40)), 10):
        address = data.draw(st.integers(1, 6))
        if address not in alive:
            alive[address] = data.draw(st.sampled_from([64, 128]))
            seqs[address] = len(events)
            events.append((time_us, "alloc", address, alive[address]))
        elif data.draw(st.booleans()):
            claims.append(Claim(time_us, address, alive[address], WEIGHT))
            if seqs[address] not in named:
                named.add(seqs[address])
                expected.append((seqs[address], "weight"))
        else:
            events.append((time_us, "free_completed", address, alive.pop(address)))
    cut_us = data.draw(st.integers(0, 500))
    owners, found = Owners(), []
    first = [event for event in events if event[0] <= cut_us]
    for part, lo, hi in ((first, 0, cut_us), (events[len(first) :], cut_us, 10**9)):
        start = 0 if part is first else len(first)
        found += pairs(
            followed(owners, columns(*part, first=start), [one for one in claims if lo < one.time_us <= hi])
        )
    assert found == expected


def test_claims_are_taken_once_and_what_the_meter_does_not_know_is_left_out() -> None:
    class Meter:
        def locate(self, tensor: Any) -> Any:
            return tensor

    claims = Claims(Meter())  # type: ignore[arg-type]
    claims.add((5, 7, 64), WEIGHT)  # type: ignore[arg-type]
    claims.add(None, WEIGHT)  # type: ignore[arg-type]
    found: list[Claim] = []
    claims.move_to(found)
    claims.move_to(found)
    assert found == [Claim(5, 7, 64, WEIGHT)]
