"""scripts/check_program.py: a program without a recorder, then with one, side by side."""

import sys

from programs import MODEL, ROOT, Start

COMMAND = (sys.executable, ROOT / "scripts" / "check_program.py")
HEADER = "| way | rank | allocated | reserved | replay | known | NCCL | unexplained | peak in |"


def test_a_recording_explains_the_memory_of_a_program(start: Start) -> None:
    """GIVEN a program that refuses to start where it has been before."""
    once = f"""
import os, pathlib, sys
pathlib.Path("been" + os.environ["RANK"]).touch(exist_ok=False)
print("arguments", sys.argv[1:])
{MODEL}
train()
"""
    options = ("--ranks", 2, "--fresh", "--output-dir", "runs")
    done = start(*COMMAND, *options, "train.py", "--steps", 3, files={"train.py": once})

    assert (done.code, done.err) == (0, "")
    header, _, *rows = done.out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert header == HEADER
    assert [cell[:2] for cell in cells] == [["record", "0"], ["record", "1"]]
    for cell in cells:
        assert cell[2].endswith(", no control")  # on the CPU
        assert (cell[4], cell[7], cell[8].split("/")[0]) == ("exact", "0.000", "script")
        assert float(cell[5].rstrip("%")) > 99
    logs = [(done.folder / "runs" / way / "output.log").read_text() for way in ("control", "record")]
    assert [log.count("arguments ['--steps', '3']") for log in logs] == [2, 2]
    assert not (done.folder / "been0").exists()


def test_a_program_that_fails_is_told_by_its_exit_code(start: Start) -> None:
    done = start(
        *COMMAND,
        "--output-dir",
        "runs",
        "train.py",
        files={"train.py": f"{MODEL}\ntrain()\nraise SystemExit(3)"},
    )

    assert done.code == 0  # it was recorded all the same
    assert [line.partition(", see")[0] for line in done.err.splitlines()] == [
        "control: exit code 1",
        "record: exit code 1",
    ]
    assert "| record | 0 |" in done.out
