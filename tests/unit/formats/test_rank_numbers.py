"""Which rank a file is of: by its path, by its devices; what nobody can tell is refused."""

from pathlib import Path

import pytest

from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot
from ray_memprof.formats.torch_snapshot.rank_numbers import (
    check_files,
    files_by_rank,
    gaps,
    numbered,
    rank_in,
)


def test_no_file() -> None:
    with pytest.raises(NotASnapshot, match="no file to import"):
        files_by_rank([])
    assert numbered([], named=False) == []
    assert gaps([]) == ""


@pytest.mark.parametrize(
    ("path", "rank"),
    [
        ("a.pickle", None),
        ("rank.pickle", None),
        ("ranks_8.pickle", None),
        ("ranking3.pickle", None),
        ("8ranks/step_5.pickle", None),
        ("/home/frank3/a.pickle", None),
        ("rank3.pickle", 3),
        ("rank_3.pickle", 3),
        ("rank-3.pickle", 3),
        ("rank=3.pickle", 3),
        ("Rank 3.pickle", 3),
        ("RANK00012.pickle", 12),
        ("rank[3].pickle", 3),
        ("oom_rank4_pid4128_20260521-101501.pickle", 4),
        ("step_100-rank-2-of-8.pickle", 2),
        ("myRank5.pickle", 5),
        ("global_rank_6.pickle", 6),
        ("globalrank6.pickle", 6),
        ("rank12_local_rank4.pickle", 12),
        ("local_rank4_rank12.pickle", 12),
        ("local_rank4.pickle", 4),
        ("rank3_rank3.pickle", 3),
        ("rank7/dump_20.pickle", 7),
        ("rank7/node1/dump.pickle", 7),
        ("rank7/rank2.pickle", 2),  # the file before the folder
        ("rank7/rank5/dump.pickle", 5),  # the nearest folder
        ("rank999999.pickle", 999_999),
    ],
)
def test_the_rank_that_a_path_names(path: str, rank: int | None) -> None:
    assert rank_in(Path(path)) == rank


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("tp_rank0_pp_rank1.pickle", "names the ranks 0 and 1"),
        ("rank1000000.pickle", "names the rank 1000000: no run has so many"),
        ("rank99999999999999999999.pickle", "no run has so many"),
    ],
)
def test_a_path_that_names_no_rank_that_can_be(path: str, told: str) -> None:
    with pytest.raises(NotASnapshot, match=told):
        rank_in(Path(path))


@pytest.mark.parametrize(
    ("names", "files", "named"),
    [
        (["b", "a"], {0: "a", 1: "b"}, False),
        (["file10", "file2", "file1"], {0: "file1", 1: "file2", 2: "file10"}, False),
        (["run3/dump", "run20/dump", "run3/x"], {0: "run3/dump", 1: "run3/x", 2: "run20/dump"}, False),
        (["rank7", "rank3"], {3: "rank3", 7: "rank7"}, True),
        (["rank10/a", "rank2/a"], {2: "rank2/a", 10: "rank10/a"}, True),
    ],
)
def test_files_by_rank(names: list[str], files: dict[int, str], named: bool) -> None:
    found = files_by_rank([Path(name) for name in names])
    assert (list(found[0].items()), found[1]) == (
        [(rank, Path(name)) for rank, name in files.items()],
        named,
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "b/../a"], "is listed twice"),
        (["old/rank1", "new/rank_1"], "new/rank_1 and old/rank1 are both of rank 1"),
        (["rank1/a", "rank1/b"], "rank1/a and rank1/b are both of rank 1"),
        (["rank0", "x", "y"], "x, y: no number after the word rank in the path, but rank0 has one"),
        (["rank0", *"abcde"], "a, b, c and 2 more: no number"),
    ],
)
def test_files_whose_rank_nobody_can_tell(names: list[str], told: str) -> None:
    with pytest.raises(NotASnapshot) as caught:
        files_by_rank([Path(name) for name in names])
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good, folder = tmp_path / "good", tmp_path / "folder"
    good.write_bytes(b"x")
    folder.mkdir()
    empty = [tmp_path / name for name in ("e1", "e2", "e3", "e4")]
    for path in empty:
        path.touch()
    check_files([good])
    for paths, told in (
        ([folder], f"{folder} is a folder"),
        ([good, *empty], f"{empty[0]}, {empty[1]}, {empty[2]} and 1 more is empty (0 bytes)"),
        ([tmp_path / "rank*.pickle"], "rank*.pickle matches no file"),
        ([tmp_path / "absent"], "absent cannot be read: No such file or directory"),
        ([Path("a\0b")], "cannot be read"),
    ):
        with pytest.raises(NotASnapshot) as caught:
            check_files(paths)
        assert told in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("files", "named", "ranks"),
    [
        # one device each: whatever its number
        ([(3, {3: 9}), (7, {7: 9})], True, [{3: 3}, {7: 7}]),
        # a process with two: in the order of devices, whichever has more events
        ([(0, {0: 1, 1: 9})], False, [{0: 0, 1: 1}]),
        ([(5, {0: 9, 1: 1})], True, [{0: 5, 1: 6}]),
        ([(0, {0: 1, 1: 9}), (1, {2: 9}), (2, {0: 1, 3: 9})], False, [{0: 0, 1: 1}, {2: 2}, {0: 3, 3: 4}]),
        # a process a node
        ([(0, {0: 5, 1: 9}), (2, {0: 9, 1: 5})], True, [{0: 0, 1: 1}, {0: 2, 1: 3}]),
        # every rank left something on cuda:0: it stays itself
        ([(0, {0: 9}), (1, {0: 1, 1: 9}), (2, {0: 1, 2: 9})], True, [{0: 0}, {0: 3, 1: 1}, {0: 4, 2: 2}]),
        # no room between the numbers
        ([(0, {0: 1, 1: 9}), (1, {0: 9, 1: 1})], True, [{0: 2, 1: 0}, {0: 1, 1: 3}]),
    ],
)
def test_a_rank_for_each_device(
    files: list[tuple[int, dict[int, int]]], named: bool, ranks: list[dict[int, int]]
) -> None:
    assert numbered(files, named=named) == ranks


@pytest.mark.parametrize(
    ("ranks", "missing"), [([0, 1], ""), ([3, 7], "0-2, 4-6"), ([0, 2], "1"), ([4, 0, 1], "2-3")]
)
def test_gaps(ranks: list[int], missing: str) -> None:
    assert gaps(ranks) == missing
