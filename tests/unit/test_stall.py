"""Where a stack says that its thread is."""

from ray_memprof.stall import in_collective, last_frame

STACK = """  File "/x/torch/distributed/distributed_c10d.py", line 1, in run
    main()
{deep}  File "/x/model.py", line 9, in forward
    hang()
"""
DEEP = '  File "/x/a.py", line 1, in call\n    call()\n' * 10


def test_in_a_collective_by_the_inner_end_of_the_stack() -> None:
    assert not in_collective("")
    assert in_collective(STACK.format(deep=""))
    assert not in_collective(STACK.format(deep=DEEP))
    assert (last_frame(""), last_frame(STACK.format(deep=DEEP))) == (
        "no Python frame",
        'File "/x/model.py", line 9, in forward',
    )
