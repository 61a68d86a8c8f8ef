"""What Ray says of a rank that is gone, in the words of Ray 2.60, and what is made of it."""

import pytest

from ray_memprof.driver.ray_errors import exit_detail, host_memory, in_one_line, tells_of_node

GONE = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Rank\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) ..."
)
EXITED = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with an exit code 17. Some common causes: x"
FULL = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, ID: b8) was "
    "14.10GB used / 15.00GB limit (0.94)\nmore\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
    "12063\t9.25\tray::Rank\n11949\t0.40\tpython\nRefer to the documentation"
)


def test_nothing_is_made_of_nothing() -> None:
    assert (exit_detail(""), host_memory(""), tells_of_node("")) == ("", "", False)


@pytest.mark.parametrize(("text", "detail"), [(GONE, ""), (EXITED, "Worker exits with an exit code 17")])
def test_end_of_a_process(text: str, detail: str) -> None:
    assert exit_detail(text) == detail


def test_host_that_is_full() -> None:
    assert host_memory(FULL) == "14.10GB of 15.00GB in use, most by ray::Rank (pid 12063): 9.25GB"
    assert host_memory("low on memory\nmore") == "low on memory"


def test_end_that_is_put_down_to_the_node() -> None:
    assert not tells_of_node(GONE)
    assert tells_of_node("The actor died because its node has died. Node Id: b8")


def test_an_error_over_several_lines() -> None:
    assert in_one_line(RuntimeError()) == "RuntimeError"
    text = "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.1\nThis process with:\n"
    assert in_one_line(RuntimeError(text)) == (
        "Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.10.1 This process with:"
    )
    quoted = (
        "Failed to start GCS.  Last connection error: Traceback (most recent call last):\n  File x\nE: no\n"
    )
    assert in_one_line(RuntimeError(quoted)) == "Failed to start GCS. Last connection error: E: no"
    assert in_one_line(RuntimeError("word " * 100)) == ("word " * 60).rstrip() + " ..."
