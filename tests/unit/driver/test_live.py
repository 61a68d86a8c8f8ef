"""What a person sees of a run: lines elsewhere, a table on a terminal, and the time left."""

import io
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.live import HALF, MOST_RANKS, Live, row, shown_ranks
from ray_memprof.driver.pace import Pace
from ray_memprof.recorder.status import Beat

GIB = 2**30


class Clock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def config(**sections: Any) -> RunConfig:
    return from_mapping({"name": "test", "model_config": {"task": "t2v-tiny"}, **sections}, source="test")


def beat(
    rank: int = 0, stage: str = "denoise", step: int = -1, num_steps: int = 50, gib: float = 1.0
) -> Beat:
    """A rank that holds `gib` GiB of tensors, as much again in the allocator, and half a GiB outside it."""
    return Beat(
        rank=rank, sequence=1, path=stage, stage=stage, step=step, num_steps=num_steps,
        allocated_bytes=int(gib * GIB), reserved_bytes=int(2 * gib * GIB),
        device_used_bytes=int((2 * gib + 0.5) * GIB),
    )  # fmt: skip


class Lines:
    """A Live that is no terminal, its clock, and what it wrote."""

    def __init__(
        self, num_ranks: int = 1, *, stages_s: dict[str, float] | None = None, **sections: Any
    ) -> None:
        self._out, self.clock = io.StringIO(), Clock()
        self.live = Live(
            config(**sections),
            num_ranks,
            plain=False,
            clock=self.clock,
            console=Console(file=self._out, width=60),
            stages_s=stages_s,
        )

    def said(self) -> list[str]:
        return self._out.getvalue().splitlines()


def test_a_run_without_beats_says_nothing() -> None:
    lines = Lines()
    with lines.live as live:
        live.update([])
        live.summary([])
    assert lines.said() == []


def test_a_reader_that_goes_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    live = Live(config(), 1, plain=True)
    live.say("one")
    live.say("two")


def test_a_file_has_no_edge() -> None:
    lines = Lines()
    lines.live.say(Text("word " * 20))
    assert lines.said() == ["word " * 20]


def test_a_rank_between_stages_says_nothing() -> None:
    lines = Lines()
    lines.live.update([beat(stage="")])
    assert lines.said() == []


def test_a_line_at_every_stage_of_rank_0() -> None:
    lines = Lines(num_ranks=2)
    for rank, stage in ((0, "load.t5"), (1, "load.dit"), (0, "load.t5"), (0, "encode.text")):
        lines.live.update([beat(rank, stage)])
        lines.clock.now += 2.0
    assert lines.said() == [
        "  load.t5: 1.00 GiB allocated, 2.00 GiB reserved, 2.50 GiB device used",
        "  encode.text: 1.00 GiB allocated, 2.00 GiB reserved, 2.50 GiB device used (rank 0, the most of 2)",
    ]


def test_a_line_names_the_rank_that_uses_most() -> None:
    lines = Lines(num_ranks=3)
    lines.live.update([beat(0), beat(1, gib=1.5), beat(2, gib=1.25)])
    assert lines.said() == [
        "  denoise: 1.50 GiB allocated, 3.00 GiB reserved, 3.50 GiB device used (rank 1, the most of 3)"
    ]


def test_steps_make_a_line_at_every_interval_with_the_pace_and_the_time_left() -> None:
    lines = Lines(logging={"log_interval": 20})
    for step in range(50):
        lines.live.update([beat(step=step)])
        lines.clock.now += 3.0
    held = "1.00 GiB allocated, 2.00 GiB reserved, 2.50 GiB device used"
    assert lines.said() == [
        f"  denoise step 1 of 50: {held}",
        f"  denoise step 21 of 50: {held}, 3.0 s a step, 1 min 30 s left in the steps",
        f"  denoise step 41 of 50: {held}, 3.0 s a step, 30 s left in the steps",
    ]


def test_at_most_one_line_a_second_and_what_was_held_back_is_told_later() -> None:
    lines = Lines()
    lines.live.update([beat(stage="load.t5")])
    lines.clock.now += 0.6
    lines.live.update([beat(stage="encode.text")])
    lines.clock.now += 0.6
    lines.live.update([beat(stage="encode.text")])
    lines.live.update([beat(stage="decode")])
    assert [line.split(":")[0] for line in lines.said()] == ["  load.t5", "  encode.text"]


def test_a_stage_of_the_launcher_is_timed_whether_it_ends_well_or_not() -> None:
    stages_s: dict[str, float] = {}
    lines = Lines(stages_s=stages_s)
    with lines.live.stage("start Ray"):
        lines.clock.now += 3.14
    with pytest.raises(RuntimeError), lines.live.stage("start ranks"):
        lines.clock.now += 1.0
        raise RuntimeError
    lines.live.reached("first step", 2.5, from_launch_s=7.12345)
    assert lines.said() == [
        "  start Ray: 3.1 s",
        "  start ranks: failed after 1.0 s",
        "  first step: after 2.5 s, 7.1 s from the launch",
    ]
    assert stages_s == {
        "start Ray": 3.14,
        "start ranks": 1.0,
        "first step": 2.5,
        "launch to first step": 7.123,
    }


def test_lines_are_written_as_they_are_and_not_folded() -> None:
    lines = Lines()
    lines.live.say("rank 2: [red]device[/] out of memory, " + 30 * "and more ")
    lines.live.summary(["report: a.html", "peak"])
    assert lines.said() == [
        "rank 2: [red]device[/] out of memory, " + 30 * "and more ", "report: a.html", "peak",
    ]  # fmt: skip


def test_lines_go_to_stderr_and_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with Live(config(), 1, plain=False) as live:
        live.update([beat()])
        live.summary(["done"])
    assert capsys.readouterr() == (
        "",
        "  denoise: 1.00 GiB allocated, 2.00 GiB reserved, 2.50 GiB device used\ndone\n",
    )


def test_a_row_of_a_rank_that_waits_and_of_one_at_work() -> None:
    assert row(3, None) == ("3", "waiting", "", "", "", "", "")
    assert row(1, beat(1, step=2)) == (
        "1", "denoise", "step 3 of 50", "1.00 GiB", "2.00 GiB", "2.50 GiB", "512 MiB",
    )  # fmt: skip


def test_a_row_of_a_script_knows_no_number_of_steps_and_on_the_cpu_nothing_lies_outside() -> None:
    one = Beat(
        rank=0, sequence=1, path="module", stage="module", step=2, num_steps=-1,
        allocated_bytes=GIB, reserved_bytes=GIB, device_used_bytes=0,
    )  # fmt: skip
    assert row(0, one) == ("0", "module", "step 3", "1.00 GiB", "1.00 GiB", "0 B", "0 B")


def test_a_terminal_shows_one_table_and_takes_it_away(capsys: pytest.CaptureFixture[str]) -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with Live(config(), 2, plain=False, clock=clock, console=console) as live:
        live.update([beat(step=0)])
        clock.now += 60.0
        live.update([beat(step=1)])
        console.print(live._draw())
        sys.stdout.write("for a pipe\n")
        live.summary(["done"])
    shown = out.getvalue()
    assert "rank  stage    step          allocated  reserved  device used  outside the allocator" in shown
    assert "   0  denoise  step 2 of 50   1.00 GiB  2.00 GiB     2.50 GiB                512 MiB" in shown
    assert "   1  waiting" in shown
    assert "60.0 s a step, 49 min 0 s left in the steps" in shown
    assert shown.endswith("done\n")
    assert capsys.readouterr() == ("for a pipe\n", "")


def test_a_few_ranks_have_a_row_each() -> None:
    assert shown_ranks([]) == []
    assert shown_ranks([None] * MOST_RANKS) == list(range(MOST_RANKS))


def many(num_ranks: int, behind: set[int], full: set[int], silent: set[int]) -> list[Beat | None]:
    """Ranks that got on as far as each other and hold as much, but for some."""
    beats: list[Beat | None] = []
    for rank in range(num_ranks):
        one = beat(rank, step=4 if rank in behind else 11, gib=3.0 if rank in full else 1.0)
        sequence = 100 if rank in behind else 1000 + rank
        beats.append(None if rank in silent else replace(one, sequence=sequence))
    return beats


def test_of_many_ranks_those_behind_and_the_fullest_are_shown_and_the_others_counted() -> None:
    behind, full, silent = {17, 501, 999}, {3, 998}, {77}
    beats = many(1000, behind, full, silent)
    shown = shown_ranks(beats)
    assert {0, *behind, *full, *silent} <= set(shown)
    assert len(shown) <= 1 + 2 * HALF
    assert shown == sorted(shown)

    out = io.StringIO()
    live = Live(config(), 1000, plain=True, clock=Clock(), console=Console(file=out, width=100))
    live.update([one for one in beats if one is not None])
    console = Console(file=out, width=100)
    out.truncate(out.seek(0))
    console.print(live._draw())
    _, *rows, counted, _ = out.getvalue().splitlines()
    assert [int(line.split()[0]) for line in rows] == shown
    assert counted == f"and {1000 - len(shown)} more ranks: denoise step 12 of 50 ({1000 - len(shown)})"


def test_the_others_are_counted_by_where_they_are() -> None:
    beats = [replace(beat(rank, stage=f"stage{rank % 5}"), sequence=rank) for rank in range(101)]
    out = io.StringIO()
    live = Live(config(), len(beats), plain=True, clock=Clock(), console=Console(file=io.StringIO()))
    live.update(beats)
    Console(file=out, width=100).print(live._draw())
    # Ranks 0 to 7 are furthest behind; all are equally full, and the first of them are shown.
    assert out.getvalue().splitlines()[-1] == (
        "and 93 more ranks: stage3 (19), stage4 (19), stage0 (19), elsewhere (36)"
    )


def test_names_of_a_script_are_no_markup_and_tell_a_terminal_nothing() -> None:
    lines = Lines()
    hostile = "[link=http://x]a[/link]:smile:\x1b[2J"
    lines.live.update([beat(stage=hostile)])
    (line,) = lines.said()
    assert line.startswith("  [link=http://x]a[/link]:smile:\\x1b[2J: 1.00 GiB")
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=True).print(lines.live._draw())
    assert "[link=http://x]a[/link]:smile:\\x1b[2J" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue() and "\x1b]8" not in out.getvalue()


def test_the_table_on_a_terminal_is_drawn_without_being_asked_for() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with Live(config(), 2, plain=False, clock=Clock(), console=console) as live:
        live.update([beat(step=0)])
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert "   1  waiting" in lines
    assert "   0  denoise  step 1 of 50   1.00 GiB  2.00 GiB     2.50 GiB                512 MiB" in lines


def test_plain_writes_lines_on_a_terminal_too() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Live(config(), 1, plain=True, clock=Clock(), console=console) as live:
        live.update([beat()])
    assert out.getvalue() == "  denoise: 1.00 GiB allocated, 2.00 GiB reserved, 2.50 GiB device used\n"


def pace_of(num_videos: int, *seen: tuple[float, int, int]) -> tuple[int, int, str]:
    """Steps done, steps in all and the words, after beats of (time, step, num_steps)."""
    clock = Clock()
    pace = Pace(num_videos, clock)
    for now, step, num_steps in seen:
        clock.now = now
        pace.see(beat(step=step, num_steps=num_steps))
    return pace.num_done, pace.num_total, pace.text()


def test_no_step_has_no_pace() -> None:
    assert pace_of(1) == (0, 0, "")
    assert pace_of(1, (0.0, -1, -1), (1.0, 3, -1)) == (0, 0, "")


def test_one_step_seen_has_no_pace_yet() -> None:
    assert pace_of(1, (0.0, 0, 4), (5.0, 0, 4)) == (0, 4, "")


def test_beats_that_miss_steps_and_come_between_steps_do_not_disturb_the_pace() -> None:
    seen = (0.0, 0, 8), (5.0, -1, 8), (10.0, 2, 8), (12.0, 2, 8), (20.0, 4, 8)
    assert pace_of(1, *seen) == (4, 8, "5.0 s a step, 20 s left in the steps")


def test_steps_start_again_with_every_video() -> None:
    first = (0.0, 0, 2), (5.0, 1, 2), (10.0, -1, 2)
    assert pace_of(3, *first) == (2, 6, "5.0 s a step, 20 s left in the steps")
    assert pace_of(3, *first, (100.0, 0, 2)) == (2, 6, "5.0 s a step, 20 s left in the steps")
    assert pace_of(3, *first, (100.0, 0, 2), (109.0, 1, 2)) == (3, 6, "9.0 s a step, 27 s left in the steps")


def test_videos_of_one_step_are_told_apart() -> None:
    assert pace_of(2, (0.0, 0, 1), (1.0, -1, 1), (2.0, 0, 1)) == (1, 2, "")


def test_hours_are_told_as_hours() -> None:
    assert pace_of(1, (0.0, 0, 50), (100.0, 1, 50)) == (1, 50, "100.0 s a step, 1 h 21 min left in the steps")
