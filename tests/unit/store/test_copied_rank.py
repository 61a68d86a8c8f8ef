"""A rank's records once more, as those of another rank."""

from pathlib import Path

from run_tables import event, make_run, span

from ray_memprof.store.copied_rank import copy_rank
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import log_name, table_dir


def test_the_other_rank_has_the_same_rows_and_a_log_that_says_so(tmp_path: Path) -> None:
    rows = {
        "spans": [span(1, "denoise", (0, 9))],
        "allocs": [event(1, "alloc", 5), event(2, "free_requested", 5)],
    }
    make_run(tmp_path, {1: rows})
    (tmp_path / "logs").mkdir()
    copy_rank(tmp_path, 1, 2)
    gathered = gather(tmp_path, [1, 2])
    assert not gathered.problems
    assert gathered.ranks[1].rows == gathered.ranks[2].rows == {"spans": 1, "allocs": 2}
    parts = [sorted(table_dir(tmp_path, "allocs", rank).glob("*.parquet")) for rank in (1, 2)]
    assert [one.read_bytes() for one in parts[0]] == [one.read_bytes() for one in parts[1]]
    assert (tmp_path / log_name(2)).read_text(encoding="utf-8") == f"as rank 1: see {log_name(1)}\n"
