"""Output that finds no room on the disk."""

import io
import os
from pathlib import Path

import pytest

from ray_memprof.rank.log import log_writer


def test_nothing_to_write_to() -> None:
    assert log_writer(None) is None
    held = io.StringIO()
    assert log_writer(held) is held
    held.close()
    assert log_writer(held) is held


def test_what_is_written_arrives(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", encoding="utf-8") as file:
        writer = log_writer(file)
        assert writer is not None
        writer.write("one\ntwo \u00e9")
        assert (tmp_path / "log").read_bytes() == b"one\ntwo \xc3\xa9"
        writer.flush()
        assert writer.fileno() == file.fileno()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_no_error_of_who_prints() -> None:
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        with pytest.raises(OSError, match="No space left"):
            full.write("x\n")
        writer = log_writer(full)
        print("a line", file=writer, flush=True)
        print("x" * 100_000, file=writer, flush=True)
        # What is left in the first stream's own buffer is its business.
        with pytest.raises(OSError, match="No space left"):
            full.close()


def test_other_errors_stay(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as broken:
        stream = log_writer(broken)
        assert stream is not None
        with pytest.raises(BrokenPipeError):
            stream.write("x\n")
        with pytest.raises(BrokenPipeError):
            stream.close()
