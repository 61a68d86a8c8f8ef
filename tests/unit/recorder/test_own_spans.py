"""Spans and steps that a program opens itself."""

import threading
from contextlib import ExitStack

import pytest

import ray_memprof
from ray_memprof.recorder.spans import Attribute, Relay, counting_steps, end_step, listening, span, step
from wan import spans as wan_spans


class Notebook:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.lines.append(" ".join([f"+{name}", *(f"{key}={value}" for key, value in attributes.items())]))

    def exit(self, name: str, failed: bool) -> None:
        self.lines.append(f"-{name}" + (" failed" if failed else ""))


def test_the_package_offers_both() -> None:
    assert (ray_memprof.span, ray_memprof.step) == (span, step)


def test_a_span_is_heard_from_its_beginning_to_its_end() -> None:
    notebook = Notebook()
    with span("unheard"), listening(notebook), span("outer", step=3), pytest.raises(KeyError), span("inner"):
        raise KeyError
    assert notebook.lines == ["+outer step=3", "+inner", "-inner failed", "-outer"]


def test_who_heard_a_span_open_hears_it_close_and_nobody_else() -> None:
    early, late = Notebook(), Notebook()
    with ExitStack() as stack:
        stack.enter_context(listening(early))
        one = span("one")
        one.__enter__()
    with listening(late):
        one.__exit__(None, None, None)
    assert (early.lines, late.lines) == (["+one", "-one"], [])


def test_a_decorated_function_opens_a_span_at_each_call_and_may_call_itself() -> None:
    notebook = Notebook()

    @span("down", index=1)
    def down(number: int) -> int:
        return number if number == 0 else down(number - 1)

    with listening(notebook):
        assert down(1) == 0
        assert down(0) == 0
    assert notebook.lines == ["+down index=1", "+down index=1", "-down", "-down", "+down index=1", "-down"]


def test_a_step_ends_when_the_next_begins_and_the_last_with_the_recording() -> None:
    notebook = Notebook()
    step()
    for _ in range(2):
        with listening(notebook), counting_steps():
            step()
            with span("forward"):
                pass
            step()
            end_step()
            with span("save"):
                pass
            step()
    once = [*("+step step=0", "+forward", "-forward", "-step", "+step step=1", "-step"), "+save", "-save"]
    assert notebook.lines == 2 * [*once, "+step step=2", "-step"]


def test_a_step_ends_with_the_span_in_which_it_began() -> None:
    notebook = Notebook()
    with listening(notebook), counting_steps():
        with span("train"):
            for _ in range(2):
                step()
                with span("forward"):
                    pass
        with span("evaluate"):
            pass
        step()
        with span("inside"):
            pass
    once = ["+forward", "-forward", "-step"]
    assert notebook.lines == [
        *("+train", "+step step=0", *once, "+step step=1", *once, "-train"),
        *("+evaluate", "-evaluate", "+step step=2", "+inside", "-inside", "-step"),
    ]


def test_a_span_of_another_thread_ends_no_step() -> None:
    notebook = Notebook()

    def work() -> None:
        with span("other"):
            begun.set()
            stepped.wait(10)

    begun, stepped = threading.Event(), threading.Event()
    with listening(notebook), counting_steps():
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(10)
        step()
        stepped.set()
        thread.join()
        assert notebook.lines == ["+other", "+step step=0", "-other"]


def test_spans_of_another_package_are_relayed() -> None:
    notebook = Notebook()
    with listening(notebook), wan_spans.listening(Relay()):
        with wan_spans.span("denoise", step=1), pytest.raises(KeyError), wan_spans.span("dit.block"):
            raise KeyError
    assert notebook.lines == ["+denoise step=1", "+dit.block", "-dit.block failed", "-denoise"]


def test_spans_that_were_open_before_the_relay_and_ends_out_of_order_are_no_error() -> None:
    notebook, relay = Notebook(), Relay()
    with listening(notebook):
        relay.exit("before", failed=False)
        relay.enter("first", {})
        relay.enter("second", {})
        relay.exit("first", failed=False)
        relay.exit("second", failed=True)
    assert notebook.lines == ["+first", "+second", "-first", "-second failed"]
