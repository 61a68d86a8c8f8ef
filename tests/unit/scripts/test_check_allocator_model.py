"""scripts/check_allocator_model.py on runs whose events the model itself made, and on some that it did not make."""

import runpy
import sys
from pathlib import Path

import pytest
from recorded_runs import write_recorded

from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.settings import settings_of

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "check_allocator_model.py"
MIB = 2**20
Captured = pytest.CaptureFixture[str]


def run(
    captured: Captured, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[object, list[str], str]:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    code = runpy.run_path(str(SCRIPT), run_name="check")["main"]()
    out, err = captured.readouterr()
    return code, out.splitlines(), err


def program(rules: Rules) -> Columns:
    """Blocks of which many have the same size, in segments whose order matters."""
    allocator = CachingAllocator(rules)
    blocks = [allocator.alloc(size * MIB) for size in (20, 20, 30, 2, 2)]
    for index in (1, 0, 3):
        allocator.free(blocks[index])
    allocator.alloc(20 * MIB)
    allocator.empty_cache()
    allocator.alloc(3 * MIB)
    return allocator.take_events()


def test_a_run_that_the_model_can_follow_is_equal(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = "expandable_segments:True"
    folder = write_recorded(tmp_path, program(Rules(expandable_segments=True)), conf=conf)
    code, lines, _ = run(capsys, monkeypatch, folder)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(
        f"{folder} rank 0: 17 events, reserved 80 MiB recorded, 80 modelled: +0 bytes (+0.000%); "
        "curve 0 bytes apart; "
    )
    assert "same place" not in lines[0]


def test_segments_that_do_not_grow_are_compared_by_their_place(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_recorded(tmp_path, program(Rules()))
    code, lines, _ = run(capsys, monkeypatch, folder, "--orders", 2)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].endswith("same place: 100.0% told, 100.0% guessed; 2 random orders: at most +0.000%")


def test_where_only_the_addresses_are_others_that_is_the_cause(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rising:
        end = 0

        def take(self, size: int) -> int:
            self.end += size
            return self.end - size

        def give_back(self, address: int, size: int) -> None:
            pass

    allocator = CachingAllocator(addresses=Rising())
    first, _ = allocator.alloc(32 * MIB), allocator.alloc(2 * MIB)
    second = allocator.alloc(32 * MIB)
    allocator.free(first)
    allocator.free(second)
    # Of two equal segments the lower one is taken: the second for the model, the first for this device.
    allocator.alloc(24 * MIB)
    folder = write_recorded(tmp_path, allocator.take_events())
    code, lines, _ = run(capsys, monkeypatch, folder)
    assert code == 0
    assert "same place: 100.0% told, " in lines[0]
    assert "100.0% guessed" not in lines[0]


def test_a_peak_that_is_off_ends_in_exit_code_1_and_a_line_that_says_what_can_be(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Recorded with settings that run.json does not name.
    rules = Rules().under(settings_of("roundup_power2_divisions:2"))
    folder = write_recorded(tmp_path, program(rules))
    code, lines, _ = run(capsys, monkeypatch, folder)
    assert code == 1
    assert lines[1].startswith("  the curves part at event ")
    assert lines[1].endswith(
        "it can be not the addresses: a call of empty_cache() that left no event, a pool of its own, or a setting"
    )


def test_no_run_and_no_events_are_told(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines, err = run(capsys, monkeypatch, tmp_path / "none")
    assert (code, lines) == (2, [])
    assert err.startswith("error: ")
    folder = write_recorded(tmp_path, Columns())
    assert run(capsys, monkeypatch, folder) == (
        2, [], f"error: {folder} has no allocator events\nhint: logging.level event or stack records them\n",
    )  # fmt: skip


def test_settings_that_torch_refuses_are_told_with_their_variable(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_recorded(
        tmp_path, program(Rules()), conf="expandable_segments:yes", variable="PYTORCH_ALLOC_CONF"
    )
    code, _, err = run(capsys, monkeypatch, folder)
    assert code == 2
    assert err.startswith("error: PYTORCH_ALLOC_CONF: expandable_segments is 'yes'\n")
