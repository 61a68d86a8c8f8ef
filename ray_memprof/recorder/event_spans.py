"""The span of an event that another thread made: the one that was open on the model's thread at that moment.

    shift_us = give_spans(batch.events, parcel.stamps)

torch stamps an event with a text that was set for the thread that made it. Autograd's threads, and threads that a
program starts itself, have no such text. But all threads write into one ring, in the order of time. So an event between
two events of the model's thread belongs to the span of both, or to a span that was opened between them: then the clock
decides, to the microsecond. If the system's clock was set meanwhile, the model's own events show by how much.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray_memprof.recorder.restraint import paced

Stamp = tuple[int, int]
"""When the model's thread got a new stamp, in microseconds of the wall clock, and the id of its span; 0: no span."""
_NONE = ("", "0")
"""Stamps that name no span: "" is of another thread, "0" of the model's thread outside of all spans."""


def give_spans(events: Sequence[dict[str, Any]], stamps: Sequence[Stamp], pause: Callable[[], None]) -> int:
    """Give a span to the events whose stamp names none.

    Args:
        events: in the order of the ring; `user_metadata` of those without a span is set.
        stamps: given to the model's thread while these events happened, in order; the first one was given before them.
        pause: called again and again, where the work may stop for a while.

    Returns:
        Microseconds by which the events' clock is behind ours, as far as events without a span make it known; most
        often 0.
    """
    if not any(span_id for _, span_id in stamps):
        return 0
    texts = [event.get("user_metadata", "") for event in events]
    if not set(texts).intersection(_NONE):
        return 0
    times = [time_us for time_us, _ in stamps]
    numbers = _numbers(stamps)
    outside = numbers.pop("0", [])
    event_times = [event["time_us"] for event in events]
    # Each of these passes goes through all events, part by part.
    num = len(events)
    shift = _shift(paced(num, pause), texts, event_times, times, numbers)
    places = _own_places(paced(num, pause), texts, event_times, times, numbers, shift)
    limits = _next_places(paced(num, pause, backwards=True), places, len(stamps) - 1)
    place = 0
    for part in paced(num, pause):
        for event, stamp, time_us, own, limit in zip(
            events[part], texts[part], event_times[part], places[part], limits[part], strict=True
        ):
            if own is not None:
                place = own
            elif stamp in _NONE:
                now = time_us + shift
                # "0" is of the model's thread only if that can have been outside of all spans by then.
                ahead = outside[bisect_left(outside, place) : bisect_right(outside, limit)] if stamp else []
                if ahead:
                    place = _last_reached(ahead, times, now)
                else:
                    if place < limit:
                        place = max(place, min(bisect_right(times, now) - 1, limit))
                    event["user_metadata"] = str(stamps[place][1])
    return shift


def _numbers(stamps: Sequence[Stamp]) -> dict[str, list[int]]:
    """Return the numbers of each span's stamps: one when it begins, and one each time that a span inside it ends."""
    numbers: dict[str, list[int]] = {}
    for number, (_, span_id) in enumerate(stamps):
        numbers.setdefault(str(span_id), []).append(number)
    return numbers


def _last_reached(numbers: Sequence[int], times: Sequence[int], now: int) -> int:
    """Return the last of these stamps that was given by `now`; the first one where the clock says that none was."""
    reached = [number for number in numbers if times[number] <= now]
    return reached[-1] if reached else numbers[0]


def _shift(
    parts: Iterator[slice],
    texts: Sequence[str],
    event_times: Sequence[int],
    times: Sequence[int],
    numbers: dict[str, list[int]],
) -> int:
    """Return the microseconds to add to event times, so that the model's own events lie between their stamps."""
    least, most = -(2**62), 2**62
    alone = {text: found[0] for text, found in numbers.items() if len(found) == 1}
    for part in parts:
        for text, time_us in zip(texts[part], event_times[part], strict=True):
            number = alone.get(text)
            if number is not None:
                least = max(least, times[number] - time_us)
                if number + 1 < len(times):
                    most = min(most, times[number + 1] - time_us)
    return min(max(0, least), most) if least <= most else (least + most) // 2


def _own_places(
    parts: Iterator[slice],
    texts: Sequence[str],
    event_times: Sequence[int],
    times: Sequence[int],
    numbers: dict[str, list[int]],
    shift: int,
) -> list[int | None]:
    """Return the number of each event's own stamp; None: it is of another thread, or outside of all spans."""
    places: list[int | None] = []
    place = 0
    for part in parts:
        for text, time_us in zip(texts[part], event_times[part], strict=True):
            found = numbers.get(text)
            if found is None:
                places.append(None)
                continue
            if len(found) == 1:
                place = found[0]
            else:
                rest = found[bisect_left(found, place) :] or found[-1:]
                place = _last_reached(rest, times, time_us + shift)
            places.append(place)
    return places


def _next_places(parts: Iterator[slice], places: Sequence[int | None], last: int) -> list[int]:
    """Return for each event the stamp of the model's next event: its own stamp cannot be a later one."""
    limits: list[int] = []
    for part in parts:
        for place in reversed(places[part]):
            last = last if place is None else place
            limits.append(last)
    limits.reverse()
    return limits
