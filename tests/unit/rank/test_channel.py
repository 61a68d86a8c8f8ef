"""Messages between two processes, here between two threads."""

import os
import threading

import pytest

from ray_memprof.rank.channel import Channel, pair


def test_nothing_comes() -> None:
    mine, theirs = pair()
    assert mine.receive(0.01) is None
    theirs.close()
    with pytest.raises(EOFError):
        mine.receive(0.01)
    with pytest.raises(OSError):
        mine.send({})


def test_messages_arrive_whole_and_in_order() -> None:
    mine, theirs = pair()
    sent = [{"text": "a\nb \ud800 \u00e9"}, {"long": "x" * 500_000}, {"list": [1, None, 0.5]}]

    def send() -> None:
        for message in sent:
            theirs.send(message)

    thread = threading.Thread(target=send)
    thread.start()
    assert [mine.receive() for _ in sent] == sent
    thread.join()


def test_a_message_that_comes_in_two_pieces_is_kept_until_it_is_whole() -> None:
    mine, theirs = pair()
    os.write(theirs.fileno(), b'{"a"')
    assert mine.receive(0.01) is None
    os.write(theirs.fileno(), b': 1}\n{"a": 2}\n')
    assert [mine.receive(1), mine.receive(0)] == [{"a": 1}, {"a": 2}]


def test_shutting_ends_a_wait_and_loses_no_message() -> None:
    mine, theirs = pair()
    threading.Timer(0.1, mine.shut).start()
    with pytest.raises(EOFError):
        mine.receive()  # else for ever
    mine, theirs = pair()
    theirs.send({"last": 1})
    mine.shut()
    mine.shut()
    assert mine.receive() == {"last": 1}
    with pytest.raises(EOFError):
        mine.receive()


def test_an_inherited_end_is_not_inherited_further() -> None:
    mine, theirs = pair()
    copy = os.dup(theirs.fileno())
    os.set_inheritable(copy, True)
    end = Channel.of(copy)
    assert not os.get_inheritable(end.fileno())
    end.send({"a": 1})
    assert mine.receive() == {"a": 1}
    end.close()
