"""Which rank a process is, by the environment of its starter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_memprof.errors import ConfigError
from ray_memprof.rank.starters import Start, start_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "77",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [(TORCHRUN, (5, 8, 1)), (OPEN_MPI, (2, 4, 0)), (MPICH, (1, 2, 1)), (SLURM, (3, 16, 3)), ({}, (0, 1, 0))],
)
def test_every_starter_says_which_rank_this_is(
    environ: dict[str, str], expected: tuple[int, int, int]
) -> None:
    start = start_of({"PATH": "/bin", **environ})
    assert (start.rank, start.num_ranks, start.local_rank) == expected
    assert bool(start.key) == bool(environ)


def test_torchrun_inside_a_job_counts_and_a_shell_of_a_job_is_no_rank() -> None:
    assert start_of({**SLURM, **TORCHRUN}).rank == 5
    shell = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert start_of(shell) == Start()


def test_a_starter_that_names_no_local_rank_is_one_all_the_same() -> None:
    assert start_of({"RANK": "1", "WORLD_SIZE": "2"}).local_rank == 0
    assert start_of({**SLURM, "PMI_RANK": "9", "PMI_SIZE": "16"}).rank == 3


def test_one_rank_of_torchrun_needs_nobody_else() -> None:
    assert start_of({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}).key == ""


def test_the_key_is_alike_for_all_ranks_of_a_start_and_for_no_other_start() -> None:
    key = start_of(TORCHRUN).key
    assert start_of({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "HOSTNAME": "other"}).key == key
    others = [
        {**TORCHRUN, "MASTER_PORT": "29501"},
        {**TORCHRUN, "MASTER_ADDR": "10.0.0.2"},
        {**TORCHRUN, "TORCHELASTIC_RUN_ID": "b"},
        {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"},
        {**TORCHRUN, "WORLD_SIZE": "9"},
        {**TORCHRUN, "SLURM_JOB_ID": "78"},
    ]
    assert len({key, *(start_of(one).key for one in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"WORLD_SIZE": None}, "environment variable WORLD_SIZE is not set, and RANK is '5'"),
        ({"LOCAL_RANK": "x"}, "environment variable LOCAL_RANK is 'x', and RANK is '5'"),
        ({"RANK": "one"}, "environment variable RANK is 'one', and RANK is 'one'"),
        ({"RANK": "-1"}, "environment variable RANK is '-1', and RANK is '-1'"),
        ({"WORLD_SIZE": "5"}, "environment variable RANK is 5, and WORLD_SIZE is 5"),
    ],
)
def test_what_is_missing_or_no_number_is_named(changes: dict[str, str | None], line: str) -> None:
    environ = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as raised:
        start_of(environ)
    assert str(raised.value) == line
    assert raised.value.hint


@given(st.dictionaries(st.sampled_from([*TORCHRUN, *OPEN_MPI, *MPICH, *SLURM]), st.text(max_size=4)))
def test_any_environment_is_a_rank_or_one_line(environ: dict[str, str]) -> None:
    try:
        start = start_of(environ)
    except ConfigError:
        return
    assert 0 <= start.rank < start.num_ranks


@pytest.mark.parametrize(
    ("environ", "leads"),
    [
        (TORCHRUN, False),
        (TORCHRUN | {"LOCAL_RANK": "0"}, True),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, False),  # it has rank 0 itself
        (OPEN_MPI, True),
        (MPICH | {"MPI_LOCALRANKID": "0"}, True),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, False),  # the starter does not say
        ({}, False),
    ],
)
def test_the_first_rank_of_another_host_than_that_of_rank_0(environ: dict[str, str], leads: bool) -> None:
    assert start_of(environ).leads_host == leads


def test_what_the_starter_calls_a_start_is_kept_for_later() -> None:
    assert start_of(TORCHRUN).variables == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert start_of(SLURM).variables == {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77"}
    assert start_of(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}).variables == {}
