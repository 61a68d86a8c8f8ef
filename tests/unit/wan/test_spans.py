"""Spans: free while nobody listens, in order and closed on every way out while somebody does."""

import pytest

from wan.spans import Attribute, listening, span


class Notebook:
    """A listener that writes down what it hears; `shared` notebooks write into one list."""

    def __init__(self, shared: list[tuple[object, ...]] | None = None, name: str = "") -> None:
        self.lines: list[tuple[object, ...]] = [] if shared is None else shared
        self._who = (name,) if name else ()

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.lines.append((*self._who, "enter", name, attributes))

    def exit(self, name: str, failed: bool) -> None:
        self.lines.append((*self._who, "exit", name, failed))


def test_without_a_listener_every_span_is_one_shared_object() -> None:
    first = span("denoise", step=1)
    assert first is span("decode")
    with first, first:  # so it must bear being open twice
        pass


def test_a_silent_span_lets_exceptions_through() -> None:
    with pytest.raises(KeyError, match="lost"), span("decode"):
        raise KeyError("lost")


def test_a_listener_without_spans_hears_nothing() -> None:
    notebook = Notebook()
    with listening(notebook):
        pass
    assert notebook.lines == []


def test_nested_spans_are_heard_in_order_with_their_attributes() -> None:
    notebook = Notebook()
    with listening(notebook), span("denoise", step=3, branch="cond"):
        with span("dit.block", index=0):
            pass
        with span("dit.block", index=1):
            pass
    assert notebook.lines == [
        ("enter", "denoise", {"step": 3, "branch": "cond"}),
        ("enter", "dit.block", {"index": 0}),
        ("exit", "dit.block", False),
        ("enter", "dit.block", {"index": 1}),
        ("exit", "dit.block", False),
        ("exit", "denoise", False),
    ]


def test_an_exception_marks_every_span_it_leaves_and_only_those() -> None:
    notebook = Notebook()
    with listening(notebook), span("encode.text"):
        with pytest.raises(RuntimeError, match="no room"), span("load.t5"), span("t5.block"):
            raise RuntimeError("no room")
    assert notebook.lines == [
        ("enter", "encode.text", {}),
        ("enter", "load.t5", {}),
        ("enter", "t5.block", {}),
        ("exit", "t5.block", True),
        ("exit", "load.t5", True),
        ("exit", "encode.text", False),
    ]


def test_two_listeners_close_in_reverse_order() -> None:
    lines: list[tuple[object, ...]] = []
    with listening(Notebook(lines, "first")), listening(Notebook(lines, "second")), span("save"):
        pass
    assert lines == [
        ("first", "enter", "save", {}),
        ("second", "enter", "save", {}),
        ("second", "exit", "save", False),
        ("first", "exit", "save", False),
    ]


def test_a_listener_that_leaves_inside_a_span_still_hears_it_close() -> None:
    notebook = Notebook()
    block = listening(notebook)
    block.__enter__()
    with span("denoise"):
        block.__exit__(None, None, None)
        with span("dit.block"):
            pass
    assert notebook.lines == [("enter", "denoise", {}), ("exit", "denoise", False)]


def test_a_listener_that_comes_inside_a_span_does_not_hear_that_span_close() -> None:
    notebook = Notebook()
    with span("denoise"):
        block = listening(notebook)
        block.__enter__()
    with span("decode"):
        pass
    block.__exit__(None, None, None)
    assert notebook.lines == [("enter", "decode", {}), ("exit", "decode", False)]


def test_listening_ends_with_its_block_also_on_an_exception() -> None:
    notebook = Notebook()
    with pytest.raises(RuntimeError), listening(notebook):
        raise RuntimeError
    with span("decode"):
        pass
    assert notebook.lines == []


def test_leaving_removes_one_listener_and_keeps_its_equals() -> None:
    """Listeners are told apart by identity: two that compare equal are still two."""

    class Equal(Notebook):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    outer, inner = Equal(), Equal()
    with listening(outer):
        with listening(inner):
            pass
        with span("decode"):
            pass
    assert (outer.lines, inner.lines) == ([("enter", "decode", {}), ("exit", "decode", False)], [])
