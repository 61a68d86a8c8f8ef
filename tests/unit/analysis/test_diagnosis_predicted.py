"""The rule about runs that differ from the prediction of themselves: what it says, and what is not its case."""

import pytest
from diagnosis_runs import unpredicted
from empty_run import GIB, MIB, EmptyRun

from ray_memprof.analysis.diagnosis.diagnose import Finding


def test_tensors_that_were_not_predicted_are_told_with_their_stage(empty: EmptyRun) -> None:
    assert unpredicted(empty) == [
        Finding(
            rule="unpredicted",
            severity="notable",
            is_peak=False,
            ranks=(0,),
            stage="denoise",
            component=None,
            bytes=GIB,
            sentence="Rank 0 has 1.00 GiB more in tensors in denoise than the 11.0 GiB that are predicted: "
            "unexpected, an allocation that the same code did not make when it was predicted.",
            knob="ray-memprof query alive_at_peak, and largest_allocations",
        )
    ]


def test_within_the_stated_errors_there_is_nothing_to_say(empty: EmptyRun) -> None:
    sizes = {"allocated": 100 * GIB, "reserved": 100 * GIB, "device_used": 100 * GIB}
    near = {"allocated": 98 * GIB, "reserved": 98 * GIB, "device_used": 102 * GIB}
    assert unpredicted(empty, {"denoise": sizes}, denoise=near) == []
    whole = {"allocated": int(99.6 * GIB), "reserved": int(98.6 * GIB), "device_used": int(101.4 * GIB)}
    assert unpredicted(empty, {"denoise": sizes}, denoise=near, whole=whole) == []
    small = {"allocated": 3 * MIB, "reserved": 22 * MIB, "device_used": 22 * MIB}
    assert unpredicted(empty, {"load": small}, load={"allocated": MIB, "reserved": 2 * MIB}) == []


def test_the_error_of_a_whole_run_is_smaller_than_that_of_a_stage(empty: EmptyRun) -> None:
    (one,) = unpredicted(
        empty,
        {"load": {"allocated": 50 * GIB}, "denoise": {"allocated": 100 * GIB}},
        denoise={"allocated": 99 * GIB},
        whole={"allocated": 99 * GIB},
    )
    assert (one.stage, one.bytes, one.is_peak) == ("denoise", GIB, True)


def test_the_first_account_that_differs_is_the_cause_of_the_others(empty: EmptyRun) -> None:
    held = {"load": {"reserved": 2 * GIB, "device_used": 3 * GIB}, "denoise": {"reserved": 8 * GIB}}
    found = unpredicted(
        empty, held, held, load={"reserved": GIB, "device_used": GIB}, denoise={"reserved": 6 * GIB}
    )
    (one,) = (each for each in found if each.rule == "unpredicted")
    assert (one.ranks, one.stage, one.bytes) == ((0, 1), "denoise", 2 * GIB)
    assert one.sentence == (
        "Ranks 0 and 1 have 2.00 GiB more reserved in denoise than the 6.00 GiB that are predicted, from "
        "load on: unexpected, the tensors are as predicted, but the allocator holds more for them."
    )
    assert "ray-memprof query fragmentation" in one.knob


@pytest.mark.parametrize("account", ["allocated", "device_used"])
def test_less_than_predicted_is_no_unexpected_allocation(empty: EmptyRun, account: str) -> None:
    (one,) = unpredicted(empty, {"denoise": {account: 8 * GIB}}, denoise={account: 10 * GIB})
    what = {"allocated": "in tensors", "device_used": "of the device"}[account]
    assert one.sentence == (
        f"Rank 0 has 2.00 GiB less {what} in denoise than the 10.0 GiB that are predicted: "
        "the prediction is too high there."
    )
    assert "ray-memprof query predicted_vs_measured" in one.knob
