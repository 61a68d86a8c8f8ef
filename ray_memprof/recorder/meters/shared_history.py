"""torch's history of allocator events, recorded for the program and for us at once: neither sees what the other does.

    history = SharedHistory(index, has_stacks=False, problems=problems)
    history.hook()                        # before the program runs
    history.begin()                       # CUDA has started
    taken = history.take(may_empty=True)  # our new events; the program gets them too, if it records

torch has one ring of events for all that record. Its functions are called by name, so they can be replaced: calls of
the program are answered from here. So the program's snapshots have its own events, as many and with the stacks that it
asked for, and with the metadata that it set; when it stops recording, ours goes on. Each thread has one stamp, which
names our span.
"""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.meters.program_history import SEPARATOR, ProgramHistory, Request
from ray_memprof.recorder.meters.ring import MARKER, Events, RingReader, is_marker
from ray_memprof.recorder.problems import Problems

MAX_EVENTS = 2_000_000
"""Length of the ring after it was emptied, which takes memory only as it fills: more than come between two copies."""
MIN_EVENTS = 32_768
"""Least length of a ring that cannot be emptied: a copy of it takes 25 ms, and half of it may be new events."""
MOST_ROOM = 131_072
"""More room than this is not given to a ring that overflowed: a copy takes 0.1 s then."""
FRAMES_COST = 8
"""A copy of events that have stacks takes at least so many times as long."""
_TORN = "the allocator's events were overwritten, or emptied by somebody else, before they could be taken"
_CONTEXTS = (None, "state", "alloc", "all")
_HOOKED = (
    "_cuda_record_memory_history",
    "_cuda_record_memory_history_legacy",
    "_cuda_memorySnapshot",
    "_cuda_isHistoryEnabled",
    "_cuda_setMemoryMetadata",
    "_cuda_getMemoryMetadata",
)


@dataclass(frozen=True, slots=True)
class Taken:
    """The events since the last call of take()."""

    events: Events
    is_whole: bool
    """False: some were overwritten before they were taken."""
    before: Any
    after: Any
    """The allocator's counters before and after the copy: the same where no thread allocated meanwhile."""


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Switch Python's garbage collection off inside the block, which makes many objects and no garbage.

    Python counts new objects, and would search through all objects: 0.1 s where a program has imported much, in the
    middle of a span. torch holds Python's lock while it makes the objects, so no other thread misses a collection.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class SharedHistory:
    """Stands between torch's functions and their callers.

    Args:
        index: of the device whose events are ours.
        counters: reads the allocator's counters that change with every event.
        has_stacks: whether our events shall have Python stacks.
        problems: where to note what could not be kept.
    """

    def __init__(
        self, index: int, counters: Callable[[], Any], *, has_stacks: bool, problems: Problems
    ) -> None:
        self._index, self._counters = index, counters
        self._has_stacks, self._problems = has_stacks, problems
        self._program = ProgramHistory(problems)
        self._originals: dict[str, Callable[..., Any]] = {}
        self._readers: list[RingReader] = []
        self._most, self._least = MAX_EVENTS, 0
        self._arguments: tuple[Any, ...] = ()
        """Arguments of the program's last request, in the form in which this version of torch passes them."""
        self._events: Events = []
        self._is_ours = self._has_texts = self._is_child = False
        self._is_whole = True
        self._num_copies = 0
        self._annotations: list[Any] = []
        self._lock = threading.RLock()
        self._local = threading.local()
        self.settings: dict[str, Any] = {}
        """The allocator's settings at the last copy."""
        self.last_segments: list[Any] = []
        """Segments of all devices at the last copy."""
        silent_in_children(self)

    def forked(self) -> None:
        """In a forked child there is no CUDA: its calls go to torch's own functions."""
        self._is_child, self._lock = True, threading.RLock()

    @property
    def is_costly(self) -> bool:
        """Whether events have stacks, for us or for the program."""
        return self._has_stacks or self._program.has_frames

    # --------------------------------------------------------------------------------
    # Our recording

    def hook(self) -> None:
        """Replace torch's functions from now on."""
        # Typed by hand: type checkers find what the signatures have in common in one order, and not in another.
        answers: tuple[Callable[..., object], ...] = (
            self._record, self._record_legacy, self._snapshot, self._is_enabled, self._set_text, self._get_text
        )  # fmt: skip
        for name, answer in zip(_HOOKED, answers, strict=True):
            original = getattr(torch._C, name, None)
            if original is not None and name not in self._originals:
                self._originals[name] = original
                setattr(torch._C, name, answer)

    def unhook(self) -> None:
        """Give torch its functions back."""
        for name, original in self._originals.items():
            setattr(torch._C, name, original)
        self._originals = {}

    def begin(self) -> None:
        """Begin to record: CUDA has started, and nothing was allocated yet, or what was allocated is known."""
        with self._lock:
            enabled = self._originals.get("_cuda_isHistoryEnabled")
            if enabled is not None and enabled():
                self._adopt()
            self._is_ours, self._readers = True, []
            self._apply(MAX_EVENTS, clear=True)

    def segments(self) -> list[Any]:
        """What the allocator holds on all devices."""
        with self._lock:
            segments: list[Any] = self._copy()["segments"]
            return segments

    def _adopt(self) -> None:
        """The program records already: its events so far are kept for it, and are not ours."""
        if not self._program.is_on:
            self._problems.add(
                "the program recorded the allocator's history before this recording began: its options are not known, "
                "its history goes on with all events and stacks"
            )
            self._program.ask(Request("all", "all", "all"), clear=True)
        snapshot = self._originals["_cuda_memorySnapshot"](None)
        for device, trace in enumerate(snapshot["device_traces"]):
            self._program.add(device, trace)

    def end(self) -> None:
        """Record for the program alone, if it records; its history keeps its events."""
        with self._lock:
            if self._is_ours:
                self._is_ours, self._local.span = False, ""
                self._events = []
                self._put_stamp()
                self._apply(max(self._most, min(self._program.request.limit, sys.maxsize)), clear=False)
            if not self._program.is_on:
                self.unhook()

    def stamp(self, span_id: int) -> None:
        """Events of this thread from now on carry `span_id`, and the text that the program has set."""
        self._local.span = span = str(span_id)
        if self._has_texts:
            self._put_stamp()
        else:
            self._originals_of("_cuda_setMemoryMetadata")(span)

    def take(self, *, may_empty: bool) -> Taken:
        """Return our events since the last call.

        On the model's thread, the ring is emptied afterwards if no thread wrote into it during the copy. Other threads
        do not empty it, because the model may get Python's lock between the copy and the emptying. After a loss of
        events it is always emptied.

        Args:
            may_empty: whether this is the model's thread.
        """
        with self._lock:
            before = self._counters()
            self._copy()
            after = self._counters()
            events, self._events = self._events, []
            is_whole, self._is_whole = self._is_whole, True
            if not is_whole and any(reader.length >= self._most for reader in self._readers):
                self._least = min(2 * self._most, MOST_ROOM)  # it was too short
            if not is_whole or (may_empty and before == after):
                self._empty()
            else:
                self._fit()
            return Taken(events, is_whole, before, after)

    def _empty(self) -> None:
        self._program.annotations += self._annotations
        self._apply(MAX_EVENTS, clear=True)

    def _fit(self) -> None:
        """Let the ring grow no larger than it must: all of it is copied each time."""
        longest = max((reader.length for reader in self._readers), default=0)
        newest = max((reader.num_new for reader in self._readers), default=0)
        least = max(self._least, MIN_EVENTS // FRAMES_COST if self.is_costly else MIN_EVENTS)
        most = max(least, 2 * longest) if self._most == MAX_EVENTS else self._most
        if newest > most // 2:
            most *= 2
        most = min(most, MAX_EVENTS - 1)
        if most != self._most and most > longest:
            self._apply(most, clear=False)

    def _copy(self, arguments: tuple[Any, ...] = (None,), own: str = "") -> dict[str, Any]:
        """Take a snapshot of torch; its new events go to us, and to the program if it records.

        Args:
            arguments: of the snapshot.
            own: if the program asked for the snapshot: the metadata that it would find.
        """
        self._num_copies += 1
        marker = f"{MARKER}{self._num_copies}{own}"
        before = self._originals["_cuda_getMemoryMetadata"]()
        self._originals["_cuda_setMemoryMetadata"](marker)
        try:
            with _no_garbage():
                snapshot: dict[str, Any] = self._originals["_cuda_memorySnapshot"](*arguments)
        finally:
            self._originals["_cuda_setMemoryMetadata"](before)
        traces = snapshot["device_traces"]
        self._readers += [RingReader(self._most) for _ in range(len(self._readers), len(traces))]
        for device, (reader, trace) in enumerate(zip(self._readers, traces, strict=True)):
            new, is_whole = reader.take(trace, marker)
            self._program.add(device, new)
            if self._is_ours and device == self._index:
                self._events += self._as_we_see(new)
                self._is_whole = self._is_whole and is_whole
            if not is_whole:
                self._problems.add(_TORN)
        self.settings, self.last_segments = (
            snapshot.get("allocator_settings", {}),
            snapshot.get("segments", []),
        )
        self._annotations = snapshot.get("external_annotations", [])
        return snapshot

    def _as_we_see(self, events: Events) -> Events:
        # Done for every event while the model waits: a function call for each would take as long as all the rest.
        ours = [event for event in events if event["action"] != "snapshot" or not is_marker(event)]
        if self._has_texts:
            for event in ours:
                stamp = event["user_metadata"].partition(SEPARATOR)[0]
                event["user_metadata"] = stamp if stamp.isdecimal() else ""
        return ours

    def _apply(self, most: int, *, clear: bool) -> None:
        """Let torch record what the program and we need; stop it if neither records."""
        request = self._program.request
        if self._is_ours or self._program.is_on:
            self._call("all", self._context(request), request.stacks, most, clear)
        else:
            self._call(None, None, "python", 1, True)
        self._most = most
        for reader in self._readers:
            if clear or not (self._is_ours or self._program.is_on):
                reader.emptied(most)
            else:
                reader.resized(most)

    def _context(self, request: Request) -> str | None:
        """Return the wider one of our and the program's requests for stacks."""
        own = "alloc" if self._has_stacks and self._is_ours else None
        if request.context not in _CONTEXTS:
            return request.context  # torch refuses it
        return max(own, request.context, key=_CONTEXTS.index)

    def _call(self, enabled: str | None, context: str | None, stacks: str, most: int, clear: bool) -> None:
        if self._arguments:
            arguments = list(self._arguments)
            arguments[:5] = enabled, context, stacks, most, clear
            if len(arguments) > 7:
                arguments[7] = []  # skip nothing: we need what the program skips
            self._originals["_cuda_record_memory_history"](*arguments)
            return
        with self._passing():
            torch.cuda.memory._record_memory_history(
                enabled,  # type: ignore[arg-type] # a word of torch's own
                context=context,
                stacks=stacks,
                max_entries=most,
                clear_history=clear,
            )

    # --------------------------------------------------------------------------------
    # The program's recording

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Calls of this thread inside the block go to torch's own functions."""
        self._local.is_passing = True
        try:
            yield
        finally:
            self._local.is_passing = False

    def _passes(self) -> bool:
        return self._is_child or getattr(self._local, "is_passing", False)

    def _look_who_calls(self, name: str) -> None:
        caller = str(sys._getframe(2).f_globals.get("__name__", ""))
        if caller.partition(".")[0] != "torch":
            self._problems.add(f"{caller} calls torch._C.{name} itself: its own recording may lack events")

    def _record(self, *arguments: Any) -> Any:
        """For torch._C._cuda_record_memory_history."""
        if self._passes():
            return self._originals_of("_cuda_record_memory_history")(*arguments)
        self._look_who_calls("_cuda_record_memory_history")
        enabled, context, stacks, max_entries, clear = arguments[:5]
        if enabled not in (None, "state", "all"):
            return self._originals_of("_cuda_record_memory_history")(*arguments)  # which refuses it
        skipped = tuple(arguments[7]) if len(arguments) > 7 else ()
        request = Request(
            enabled, context, stacks, max_entries, skipped, bool(arguments[6:7] and arguments[6])
        )
        return self._ask(request, arguments, "_cuda_record_memory_history", clear=clear)

    def _record_legacy(
        self,
        enabled: bool,
        record_context: bool = True,
        max_entries: int = 1,
        record_context_of_allocs: bool = False,
        cpp: bool = False,
        clear: bool = False,
        *rest: Any,
    ) -> Any:
        """For torch._C._cuda_record_memory_history_legacy, the older form: booleans and numbers in place of words."""
        arguments = enabled, record_context, max_entries, record_context_of_allocs, cpp, clear, *rest
        if self._passes():
            return self._originals_of("_cuda_record_memory_history_legacy")(*arguments)
        self._look_who_calls("_cuda_record_memory_history_legacy")
        context = "alloc" if record_context_of_allocs else "state" if record_context else None
        stacks = "all" if cpp else "python"
        skipped = tuple(rest[2]) if len(rest) > 2 else ()
        request = Request("all" if enabled else None, context, stacks, max_entries, skipped)
        return self._ask(request, arguments, "_cuda_record_memory_history_legacy", clear=clear)

    def _ask(self, request: Request, arguments: tuple[Any, ...], name: str, *, clear: bool) -> Any:
        with self._lock:
            if not self._is_ours and not self._readers:
                # CUDA has not started, or nothing is recorded for us: torch gets the request, and may refuse it.
                result = self._originals_of(name)(*arguments)
                self._program.ask(request, clear=clear)
                return result
            is_quiet = False
            with self._problems.noting("events before the program's own recording could not be taken"):
                counters = self._counters()
                self._copy()
                is_quiet = counters == self._counters()
            before, form = self._program.request, self._arguments
            self._arguments = arguments if name == "_cuda_record_memory_history" else ()
            self._program.request = request
            try:
                # Only if no thread allocated during the copy can the ring be emptied, and be long again.
                self._apply(MAX_EVENTS if is_quiet else self._most, clear=is_quiet)
            except BaseException:  # torch refuses what the program asks for
                self._program.request, self._arguments = before, form
                raise
            self._program.ask(request, clear=clear)
            if not self._is_ours and not self._program.is_on:
                self.unhook()
            return None

    def _snapshot(self, *arguments: Any) -> Any:
        """For torch._C._cuda_memorySnapshot."""
        original = self._originals_of("_cuda_memorySnapshot")
        pool = arguments[0] if arguments else None
        has_no_traces = isinstance(pool, tuple) and len(pool) > 2 and not pool[2]
        if self._passes() or has_no_traces or not (self._is_ours or self._readers):
            return original(*arguments)
        self._look_who_calls("_cuda_memorySnapshot")
        with self._lock:
            snapshot = self._copy(arguments, own=SEPARATOR + getattr(self._local, "text", ""))
            snapshot["device_traces"] = self._program.traces(len(snapshot["device_traces"]))
            if self._program.annotations:
                snapshot["external_annotations"] = self._program.annotations + self._annotations
            return snapshot

    def _is_enabled(self) -> bool:
        """For torch._C._cuda_isHistoryEnabled."""
        if self._passes():
            return bool(self._originals_of("_cuda_isHistoryEnabled")())
        return self._program.is_on

    def _set_text(self, text: str) -> None:
        """For torch._C._cuda_setMemoryMetadata: the text of this thread."""
        if self._passes():
            self._originals_of("_cuda_setMemoryMetadata")(text)
            return
        self._local.text = text
        self._has_texts = self._has_texts or bool(text)
        self._put_stamp()

    def _get_text(self) -> str:
        """For torch._C._cuda_getMemoryMetadata."""
        if self._passes():
            return str(self._originals_of("_cuda_getMemoryMetadata")())
        return str(getattr(self._local, "text", ""))

    def _put_stamp(self) -> None:
        span, text = getattr(self._local, "span", ""), getattr(self._local, "text", "")
        is_both = self._is_ours and bool(text)
        self._originals_of("_cuda_setMemoryMetadata")(f"{span}{SEPARATOR}{text}" if is_both else span or text)

    def _originals_of(self, name: str) -> Callable[..., Any]:
        """Return torch's own function; a module may have imported ours by name, and call it after the end."""
        original = self._originals.get(name)
        return getattr(torch._C, name) if original is None else original
