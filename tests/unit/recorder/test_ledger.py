"""Device memory outside the allocator is booked to the account that caused it, and to none where that is not known."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.recorder.ledger import Ledger, Where
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Entry


def reading(device_used: int, reserved: int = 0, t_ns: int = 5) -> Reading:
    return Reading(t_ns, 0, reserved, 0, device_used, 0, -1, -1, -1, 0, 0, 0)


def book(
    ledger: Ledger,
    device_used: int,
    *,
    reserved: int = 0,
    is_on: bool = True,
    span: tuple[int, str] = (0, ""),
    others: int | None = None,
    account: str = "",
    nccl: int | None = None,
) -> list[tuple[str, int]]:
    entries = ledger.book(
        reading(device_used, reserved), Where(is_on, *span, others), account=account, nccl=nccl
    )
    assert all((entry.t_ns, entry.span_id) == (5, span[0]) for entry in entries)
    return [(entry.account, entry.bytes) for entry in entries]


def started(used: int = 500) -> Ledger:
    """A ledger whose process has started the device, and is alone on it."""
    ledger = Ledger()
    book(ledger, 0, is_on=False)
    book(ledger, used)
    return ledger


def test_an_empty_device_has_no_entries() -> None:
    ledger = Ledger()
    assert book(ledger, 0, is_on=False) == []
    assert book(ledger, 0) == []


def test_an_entry_names_its_moment_and_its_span() -> None:
    entries = Ledger().book(reading(7, t_ns=3), Where(True, 2, "device.init"))
    assert entries == [Entry(t_ns=3, span_id=2, account="context", bytes=7)]


def test_what_is_in_use_before_cuda_starts_is_someone_elses() -> None:
    ledger = Ledger()
    assert book(ledger, 100, is_on=False) == [("others", 100)]
    assert book(ledger, 70, is_on=False) == [("others", -30)]
    # WHEN CUDA starts in a span of any name THEN the growth is its context
    assert book(ledger, 570, span=(1, "load.t5")) == [("context", 500)]


def test_reserved_bytes_are_the_allocators_and_no_entry() -> None:
    ledger = started()
    assert book(ledger, 1500, reserved=1000, span=(1, "denoise")) == []


def test_a_device_that_was_on_from_the_start_has_its_context_at_once() -> None:
    assert book(Ledger(), 500) == [("context", 500)]


def test_a_device_init_span_is_the_context_though_it_came_later() -> None:
    assert book(started(0), 500, span=(1, "device.init")) == [("context", 500)]


def test_a_collective_that_starts_cuda_brings_the_context_and_the_next_growth_is_not_it() -> None:
    ledger = Ledger()
    book(ledger, 0, is_on=False)
    assert book(ledger, 900, account="nccl") == [("context", 900)]
    assert book(ledger, 1000, account="nccl") == [("nccl", 100)]
    assert book(ledger, 1001) == []


def test_growth_across_a_collective_or_in_a_comm_span_is_nccls() -> None:
    ledger = started()
    assert book(ledger, 600, span=(1, "denoise"), account="nccl") == [("nccl", 100)]
    assert book(ledger, 650, span=(2, "denoise/dit.block/comm.ulysses")) == [("nccl", 50)]


def test_growth_in_a_path_that_runs_for_the_first_time_is_a_librarys() -> None:
    ledger = started()
    assert book(ledger, 520, span=(1, "denoise/dit.block")) == [("libraries", 20)]
    ledger.close("denoise/dit.block")
    # THEN growth in its second run has no account, and no later entry makes up for it
    assert book(ledger, 550, span=(2, "denoise/dit.block")) == []
    assert book(ledger, 560, span=(3, "decode")) == [("libraries", 10)]


def test_what_nccl_itself_reports_is_nccls_and_the_rest_is_booked_by_the_span() -> None:
    ledger = Ledger()
    book(ledger, 0, is_on=False)
    assert sorted(book(ledger, 900, nccl=360)) == [("context", 540), ("nccl", 360)]
    assert sorted(book(ledger, 1000, span=(1, "denoise"), nccl=30)) == [("libraries", 70), ("nccl", 30)]
    # more than the device has grown by, when something else has shrunk: no account holds what is not there
    assert book(ledger, 1010, span=(1, "denoise"), nccl=50) == [("nccl", 10)]
    assert book(ledger, 1050, nccl=0, account="nccl") == [("nccl", 40)]


def test_growth_outside_every_span_has_no_account() -> None:
    assert book(started(), 510) == []


def test_what_others_take_is_theirs_wherever_it_is_seen() -> None:
    ledger = started()
    assert book(ledger, 560, span=(1, "decode"), others=40) == [("others", 40), ("libraries", 20)]
    assert book(ledger, 520, span=(1, "decode"), others=0) == [("others", -40)]
    assert book(ledger, 520, span=(1, "decode")) == []


# --------------------------------------------------------------------------------
# What is given back


def test_what_nccl_gives_back_is_its_own_and_no_account_falls_below_zero() -> None:
    ledger = started()
    book(ledger, 600, others=0, account="nccl")
    assert book(ledger, 570, others=0, account="nccl") == [("nccl", -30)]
    # 70 bytes are left on its account: the rest had no account
    assert book(ledger, 400, others=0, account="nccl") == [("nccl", -70)]


def test_where_nobody_tells_of_others_what_they_held_before_is_what_shrinks() -> None:
    ledger = Ledger()
    book(ledger, 90, is_on=False)
    book(ledger, 590)
    book(ledger, 640, span=(1, "comm.init"))
    assert book(ledger, 560, span=(2, "comm.barrier")) == [("nccl", -50), ("others", -30)]
    assert book(ledger, 480, span=(3, "decode")) == [("others", -60)]


def test_a_device_that_is_reset_takes_all_that_was_ours_and_the_next_growth_is_a_context_again() -> None:
    ledger = started()
    book(ledger, 600, others=0, account="nccl")
    book(ledger, 620, others=0, span=(1, "decode"))
    assert dict(book(ledger, 7, others=7, span=(2, "save"))) == {
        "others": 7, "context": -500, "nccl": -100, "libraries": -20
    }  # fmt: skip
    assert book(ledger, 407, others=7, span=(3, "save")) == [("context", 400)]


KINDS = ("others", "nccl", "comm", "library", "nobody", "allocator")
MOVES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(-50, 200)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(MOVES, st.integers(0, 300))
def test_for_any_growth_each_account_holds_what_came_through_it_and_the_rest_is_unexplained(
    moves: list[tuple[str, int]], before: int
) -> None:
    """GIVEN a driver that reports others WHEN every account changes by itself THEN the books show exactly that."""
    ledger, entries = Ledger(), list[tuple[str, int]]()
    true = dict.fromkeys(("context", "nccl", "libraries", "others", "nobody"), 0)
    true["others"], reserved = before, 0

    def boundary(path: str = "seen", *, is_on: bool = True, account: str = "") -> None:
        span = (1, path) if path else (0, "")
        outside = sum(true.values())
        entries.extend(
            book(
                ledger,
                outside + reserved,
                reserved=reserved,
                is_on=is_on,
                span=span,
                account=account,
                others=true["others"],
            )  # fmt: skip
        )
        booked = sum(size for _, size in entries)
        assert booked + true["nobody"] == outside
        for name in ("context", "nccl", "libraries", "others"):
            assert sum(size for one, size in entries if one == name) == true[name]

    boundary("", is_on=False)
    true["context"] = 500
    boundary()
    ledger.close("seen")
    for number, (kind, size) in enumerate(moves):
        if kind == "others":
            true["others"] = max(0, true["others"] + size)
            boundary()
        elif kind in ("nccl", "comm"):
            true["nccl"] = max(0, true["nccl"] + size)
            boundary("seen/comm.x" if kind == "comm" else "seen", account="nccl" if kind == "nccl" else "")
        elif kind == "library":
            true["libraries"] = max(0, true["libraries"] + size)
            boundary(f"new.{number}")
        elif kind == "nobody":
            true["nobody"] += abs(size)
            boundary("")
        else:
            reserved += abs(size)
            boundary()
