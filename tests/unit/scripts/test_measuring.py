"""scripts/measuring.py: peaks are those of the whole block, and a case is measured in a process of its own."""

import threading
import time
from pathlib import Path

import pytest
from command_line import import_script

measuring = import_script("measuring")


def test_the_ends_of_a_block_are_seen_without_a_sample_inside() -> None:
    sizes = {"up": 1, "down": 5}
    with measuring.peaks(lambda: dict(sizes), every_s=1000) as most:
        assert most == {"up": 1, "down": 5}
        sizes.update(up=2, down=0)
    assert most == {"up": 2, "down": 5}


def test_what_comes_and_goes_inside_a_block_is_seen() -> None:
    sizes = {"here": 1}
    with measuring.peaks(sizes.copy) as most:
        sizes["here"] = 9
        while most["here"] < 9:
            time.sleep(0.001)
        sizes["here"] = 1
    assert most == {"here": 9}


def test_a_block_that_fails_leaves_no_thread() -> None:
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError), measuring.peaks(dict):
        raise ZeroDivisionError
    assert not set(threading.enumerate()) - set(before)


def test_the_kernel_tells_sizes_in_bytes() -> None:
    sizes = measuring.proc_bytes()
    assert sizes["VmHWM"] >= sizes["VmRSS"] >= sizes["RssFile"] > 2**20
    assert measuring.proc_bytes("smaps_rollup")["Pss"] > 2**20


def test_a_script_in_a_process_of_its_own_gets_its_arguments(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps({'given': sys.argv[1:]}))\n")
    found = measuring.in_process(str(script), "--folder", tmp_path, 3)
    assert found == {"given": ["--folder", str(tmp_path), "3"]}
