"""The reader of snapshots: what pickle and C++ write, one by one or by the thousand; whatever is none is refused."""

import errno
import gzip
import io
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_c10 import dumps as dumps_c10
from snapshots import FRAMES, Simulation, snapshot, write

from ray_memprof.formats.torch_snapshot.event_shapes import Run
from ray_memprof.formats.torch_snapshot.pickle_reader import PickleStream
from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot

MIB = 2**20
Events = list[tuple[int, dict[str, Any]]]


def event(
    action: str, address: int, size: Any, time_us: int = 1, text: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": time_us, "user_metadata": text, **more
    }  # fmt: skip


def read(data: bytes) -> tuple[dict[str, Any], Events]:
    """One by one; the segments as they were written."""
    events: Events = []
    found = PickleStream(
        io.BytesIO(data), "x.pickle", lambda device, one: events.append((device, dict(one)))
    ).read()
    for segment in found.get("segments", ()):
        segment["blocks"] = list(segment["blocks"])
    return found, events


def read_in_runs(data: bytes) -> tuple[Events, int]:
    """All events with the frames of their stacks, and how many of them came in runs."""
    events: Events = []
    num_in_runs = 0

    def take(device: int, one: dict[str, Any]) -> None:
        number = stream.stack_number(one.get("frames"))
        events.append((device, {**plain(one), "frames": number}))

    def take_run(device: int, run: Run) -> None:
        nonlocal num_in_runs
        num_in_runs += len(run.action)
        for index in range(len(run.action)):
            stack, text = int(run.stacks[index]), int(run.texts[index])
            one = {
                "action": run.actions[run.action[index]],
                **{name: int(column[index]) for name, column in run.columns.items()},
                "user_metadata": stream.objects[text] if text >= 0 else "",
                "frames": stream.stack_number(stream.objects[stack] if stack >= 0 else None),
            }
            pool = run.pools[run.action[index]]
            events.append((device, one if pool is None else {**one, "pool_id": pool}))

    stream = PickleStream(io.BytesIO(data), "x.pickle", take, take_run)
    stream.read()
    stacks = list(stream.stacks)
    for _, one in events:
        one["frames"] = [] if one["frames"] < 0 else [line[0] for line in stacks[one["frames"]]]
    return events, num_in_runs


def plain(one: dict[str, Any]) -> dict[str, Any]:
    """What of an event is asked for, but its frames."""
    names = ("action", "size", "stream", "time_us", "user_metadata", "pool_id")
    addr = one["addr"] if "addr" in one else one["device_free"]
    return {**{name: one[name] for name in names if name in one}, "addr": addr % 2**64}


def told(events: Events) -> Events:
    """As read_in_runs() tells them."""
    return [
        (device, {**plain(one), "frames": [line["name"] for line in one.get("frames", [])]})
        for device, one in events
    ]


# --------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_stream_reads_what_pickle_wrote(protocol: int) -> None:
    content = Simulation(3, expandable=False, operations=1200).snapshot()
    content["device_traces"] = [
        [],
        content["device_traces"][0],
        [event("alloc", 2**63, 2**33, text="\u00e9" * 300)],
    ]
    expected = [(device, one) for device, trace in enumerate(content["device_traces"]) for one in trace]
    assert len(expected) > 1000  # more than one batch

    found, events = read(pickle.dumps(content, protocol=protocol))

    assert events == expected
    assert found == {
        "segments": content["segments"],
        "device_traces": [[], [], []],
        "allocator_settings": content["allocator_settings"],
    }


def various(seed: int, num_events: int, *, shared: bool) -> dict[str, Any]:
    """Events of all actions, widths and kinds that torch writes; `shared`: texts are the same objects."""
    chance = random.Random(seed)
    texts = [f"step {number}" for number in range(5)]
    # Each stack is a list of its own, as torch makes one for each place in the program.
    stacks = [[{"name": f"f{number}", "filename": "a.py", "line": number}] * 3 for number in range(4)]
    events = []
    for number in range(num_events):
        action = chance.choice(("alloc", "free_completed", "oom"))
        text = texts[number * 5 // num_events]
        one = {
            "action": action,
            "device_free" if action == "oom" else "addr": chance.choice((2**40 + 512, 2**63 + 512)),
            "size": chance.choice((200, 2**15, 2**33)),
            "stream": chance.choice((7, 2**47)),
            "time_us": 2**50 + number,
            "compile_context": "N/A" if shared else "".join(("N/", "A")),
            "user_metadata": text if shared else "".join(list(text)),
            "frames": chance.choice((*stacks, [], [])),
        }
        if seed % 2:
            one["pool_id"] = (0, chance.randrange(2))
        events.append(one)
    return {**snapshot([], []), "device_traces": [events[: num_events // 3], [], events[num_events // 3 :]]}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, "c10"])
def test_events_that_come_in_runs_are_those_that_were_written(protocol: int | str, shared: bool) -> None:
    for seed in range(2):
        content = various(seed, 6000, shared=shared)
        data = dumps_c10(content) if protocol == "c10" else pickle.dumps(content, protocol=int(protocol))
        events, num_in_runs = read_in_runs(data)
        assert events == told(
            [(device, one) for device, trace in enumerate(content["device_traces"]) for one in trace]
        )
        # C++ writes stacks out each time: such events come one by one.
        assert num_in_runs > (300 if protocol == "c10" else 4000)


def test_an_address_of_the_upper_half_comes_as_cpp_writes_it() -> None:
    """C++ has no numbers above 2^63: below zero, in eight bytes."""
    content = {**snapshot([], []), "device_traces": [[event("alloc", -512, 512, n) for n in range(200)]]}
    events, num_in_runs = read_in_runs(dumps_c10(content))
    assert {one["addr"] for _, one in events} == {2**64 - 512}
    assert num_in_runs > 100


def test_a_stack_of_any_depth_is_read() -> None:
    frames = [{"name": f"f{n}", "filename": "a.py", "line": n} for n in range(2500)]
    content = snapshot([event("alloc", 0, 512, frames=frames), event("alloc", 512, 512, frames=frames)], [])
    for data in (pickle.dumps(content), dumps_c10(content)):
        events, _ = read_in_runs(data)
        assert [one["frames"] for _, one in events] == [[f"f{n}" for n in range(2500)]] * 2


def test_stacks_that_blocks_had_first_are_those_of_events() -> None:
    """torch writes the segments first: the lists of frames lie in them, and events refer to them."""
    block = {"address": 0, "size": 512, "requested_size": 5, "state": "active_allocated", "frames": FRAMES[0]}
    segment = {"device": 0, "address": 0, "total_size": 512, "frames": FRAMES[1], "blocks": [block]}
    content = snapshot([], [segment])
    content["device_traces"] = [
        [event("alloc", 0, 512, frames=FRAMES[1]), event("alloc", 0, 512, frames=FRAMES[0])]
    ]
    events, _ = read_in_runs(pickle.dumps(content))
    assert [one["frames"] for _, one in events] == [["step"], ["forward", "main"]]


def test_a_name_that_is_no_utf_8_is_kept_with_replacement() -> None:
    content = snapshot([event("alloc", 0, 512, text="XX-YY", frames=FRAMES[1])], [])
    data = pickle.dumps(content).replace(b"XX-YY", b"X\xff-\xfeY").replace(b"adam.py", b"ad\xc3\x28.py")
    _, ((_, one),) = read(data)
    assert one["user_metadata"] == "X\ufffd-\ufffdY"
    stream = PickleStream(io.BytesIO(data), "x", lambda device, one: stream.stack_number(one["frames"]))
    stream.read()
    assert [[line[1] for line in stack] for stack in stream.stacks] == [["ad\ufffd(.py"]]


def test_what_newer_versions_add_is_passed_over() -> None:
    """GIVEN keys of versions to come, of all kinds, around what is known and inside of it."""
    block = {
        "address": 0,
        "size": 512,
        "state": "inactive",
        "history": [{"addr": 0, "frames": FRAMES[0]}],
        "x": {},
    }
    segment = {
        "device": 0,
        "address": 0,
        "total_size": 512,
        "blocks": [block],
        "new": [[1], {"a": (1, (2,))}],
    }
    content = {
        "host_segments": [{"address": 1, "blocks": [dict(block)]}],
        "host_traces": [[event("alloc", 0, 512)]],
        **snapshot([event("alloc", 0, 512, compile_context={"id": [1]}, new=None)], [segment]),
        "external_annotations": [{"stage": "START", "name": "step", "device": 0, "time_us": 1}] * 3,
        "new": {"segments": [], "device_traces": [[event("alloc", 0, 512)]]},
    }
    for protocol in (2, 4):
        found, events = read(pickle.dumps(content, protocol=protocol))
        assert [(device, one["action"]) for device, one in events] == [(0, "alloc")]
        assert [one["address"] for one in found["segments"]] == [0]
        assert found["segments"][0]["blocks"] == [
            {"address": 0, "size": 512, "requested_size": 512, "state": "inactive"}
        ]


def test_settings_of_one_entry_are_kept() -> None:
    content = snapshot([event("alloc", 0, 512)], [])
    for kept in ({"roundup_power2_divisions": {"1": 4}}, {}, {"a": {}, "b": {"c": [1, 2]}}):
        content["allocator_settings"] = kept
        for protocol in (2, 4):
            assert read(pickle.dumps(content, protocol=protocol))[0]["allocator_settings"] == kept


def test_a_thousand_devices() -> None:
    content = {"device_traces": [[event("alloc", 0, 512)]] * 0 + [[] for _ in range(2100)]}
    content["device_traces"][2050].append(event("alloc", 0, 512))
    assert [device for device, _ in read(pickle.dumps(content))[1]] == [2050]


# --------------------------------------------------------------------------------
# Memory


BY_TRACE = "import tracemalloc; tracemalloc.start(); peak = lambda: tracemalloc.get_traced_memory()[1]\n"
"""To the byte, and ten times as slow."""
BY_PROCESS = (
    "peak = lambda: 1024 * int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
)


def memory_of(path: Path, meter: str) -> tuple[int, str]:
    """Most bytes that a whole reading takes, and how it ends."""
    code = (
        "import sys; from pathlib import Path; from contextlib import ExitStack\n"
        "from ray_memprof.formats.torch_snapshot import read as t\n"
        f"{meter}before = peak(); end = 'read'\n"
        "with ExitStack() as closing:\n"
        "    try:\n"
        "        snapshot, _ = t._read(Path(sys.argv[1]), Path(sys.argv[1]).parent, {}, closing)\n"
        "        t._segments(Path(sys.argv[1]), snapshot)\n"
        "    except t.NotASnapshot as error: end = str(error)\n"
        "print(peak() - before, end)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    taken, end = done.stdout.strip().split(" ", 1)
    return int(taken), end


def test_events_do_not_stay_in_memory(tmp_path: Path) -> None:
    """What stays is the window and the memo's table; pickle would keep five times the file."""
    events = [
        event(("alloc", "free_completed")[i % 2], 2**40 + i % 64, 2**20 + i, 2**50 + i)
        for i in range(150_000)
    ]
    path = write(tmp_path / "rank0.pickle", snapshot(events, []))
    assert path.stat().st_size > 2 * MIB
    taken, end = memory_of(path, BY_TRACE)
    assert (taken < path.stat().st_size * 0.6 + 12 * MIB, end) == (True, "read")


def laughs() -> bytes:
    """Small: it refers to one segment and one block many times over."""
    block = {"address": 0, "size": 512, "state": "active_allocated"}
    segment = {"device": 0, "address": 0, "total_size": 2**21, "blocks": [block] * 8000}
    return pickle.dumps(snapshot([event("alloc", 0, 512)], [segment] * 8000))


BOMBS = {
    "laughs": laughs(),
    "dictionaries": b"\x80\x04](" + b"}" * 1_500_000 + b"e.",
    "lists": b"\x80\x04}(\x8c\x12allocator_settings}(\x8c\x01a](" + b"]" * 1_500_000 + b"eu.",
    "numbers": b"\x80\x04}(\x8c\x12allocator_settings}(\x8c\x01a](" + b"M\x00\x02" * 1_000_000 + b"euu.",
    "texts": b"\x80\x04](" + b"".join(b"\x8c\x03%c%c%c" % (i >> 14 & 127, i >> 7 & 127, i & 127)
                                     for i in range(700_000)) + b"e.",
    "memo": b"\x80\x04K\x01" + b"\x94" * 3_000_000,
    "stacks": b"\x80\x04](" + b"\x8c\x06frames]" + b"\x8c\x06frames]" * 600_000 + b"e.",
    "tuples": b"\x80\x04K\x01" + b"\x85" * 3_000_000 + b".",
    "events": b"\x80\x04}\x8c\x0ddevice_traces](](" + b"}" * 1_500_000 + b"ees.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_takes_no_more_than_its_size_allows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(BOMBS[name])
    taken, end = memory_of(path, BY_PROCESS)
    assert taken <= 8 * len(BOMBS[name]) + 64 * MIB
    assert end.startswith(f"{path} ")  # refused, in one line


def test_many_blocks_with_deep_stacks_are_read(tmp_path: Path) -> None:
    frames = [{"name": f"f{i}", "filename": "m.py", "line": i} for i in range(400)]
    blocks = [
        {"address": 512 * i, "size": 512, "requested_size": 512, "state": "active_allocated",
         "frames": [frames[(i * 7 + j) % 400] for j in range(140)]}
        for i in range(4_000)
    ]  # fmt: skip
    segment = {"device": 0, "address": 0, "total_size": 512 * len(blocks), "blocks": blocks}
    path = write(tmp_path / "x.pickle", snapshot([event("alloc", 0, 512)], [segment]))
    taken, end = memory_of(path, BY_TRACE)
    assert (taken <= 8 * path.stat().st_size + 8 * MIB, end) == (True, "read")


# --------------------------------------------------------------------------------
# What is refused


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def _deep(levels: int) -> bytes:
    return b"\x80\x04" + b"](" * levels + b"e" * levels + b"."


_GOOD = pickle.dumps(snapshot([event("alloc", 0, 512)], []))
_TOUCH = f"touch {os.devnull}.never"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is cut off after 0 bytes"),
        (b"garbage, all of it", "is no pickle of protocol 2 or later"),
        (b"\x80\x06N.", "is a pickle of protocol 6; 2 to 5 are known"),
        (pickle.dumps({}, protocol=0), "is no pickle of protocol 2 or later: it is one of protocol 0 or 1"),
        (gzip.compress(b"x", mtime=0), "is no pickle of protocol 2 or later: it is compressed (gzip)"),
        (b"PK\x03\x04", "is no pickle of protocol 2 or later: it is a zip archive"),
        (pickle.dumps(None), "has no device_traces"),
        (pickle.dumps([1, 2]), "has no device_traces"),
        (pickle.dumps({"segments": []}), "has no device_traces"),
        (pickle.dumps({"device_traces": 3}), "has no device_traces"),
        (pickle.dumps({"device_traces": [[7]]}), "has a int where an event should be"),
        (_GOOD[:-1], "is cut off after"),
        (_GOOD[: len(_GOOD) // 2], "is cut off after"),
        (_GOOD[:40], "is cut off after"),
        (pickle.dumps(_Call(os.system, _TOUCH)), "asks for 'posix.system'"),
        (pickle.dumps(_Call(os.system, _TOUCH), protocol=2), "asks for 'posix.system'"),
        (pickle.dumps({"device_traces": [[_Call(eval, "1")]]}), "asks for 'builtins.eval'"),
        (pickle.dumps({"device_traces": [[event("alloc", 0, _Call(eval, "1"))]]}), "asks for 'builtins.eval'"),
        (pickle.dumps({"device_traces": [], "x": _Call(getattr, "", "join")}), "asks for 'builtins.getattr'"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "has opcode 0x53"),
        (b"\x80\x02(ios\nsystem\n.", "asks for 'os.system'"),
        (b"\x80\x04K\x01\x81.", "asks for 'an object (opcode NEWOBJ)'"),
        (b"\x80\x04K\x01R.", "asks for 'an object (opcode REDUCE)'"),
        (b"\x80\x04K\x01Q.", "asks for 'an object (opcode BINPERSID)'"),
        (b"\x80\x04\x82\x01.", "asks for 'an object (opcode EXT1)'"),
        (b"\x80\x04}}b.", "asks for 'an object (opcode BUILD)'"),
        (pickle.dumps(b"bytes"), "has opcode 0x43"),
        (pickle.dumps({1, 2}), "has opcode 0x8f"),
        (_deep(100_000), "is nested more than 64 deep"),
        (b"\x80\x04" + b"]" * 100 + b"a" * 99 + b".", "has no device_traces"),
        (b"\x80\x04" + b"K\x01" * 3_000_000, "is nested or filled as no snapshot is"),
        (b"\x80\x04K\x01" + b"\x94" * 3_000_000, "refers to more objects than a snapshot has"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", "refers to more objects than a snapshot has"),
        (b"\x80\x04h\x05.", "is damaged"),
        (b"\x80\x04X\xff\xff\xff\xff", "has a text or number of 4,294,967,295 bytes"),
        (b"\x80\x04\x8c\x02\xff\xfe.", "has no device_traces"),
        (b"\x80\x04}(]K\x01u.", "is damaged: unhashable"),
        (b"\x80\x04}(K\x01u.", "is damaged"),
        (b"\x80\x04K\x01K\x02a.", "is damaged: it adds to a int"),
        (b"\x80\x04(.", "is damaged: it stops inside a list"),
        (b"\x80\x04e.", "is damaged"),
        (b"\x80\x04.", "is damaged"),
    ],
)  # fmt: skip
def test_refused(data: bytes, told: str) -> None:
    with pytest.raises(NotASnapshot) as caught:
        read(data)
    assert f"x.pickle {told}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("cut", range(2, len(_GOOD), 7))
def test_a_file_that_ends_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(NotASnapshot, match="cut off"):
        read(_GOOD[:cut])


def test_a_file_that_cannot_be_read_is_told_as_such() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(NotASnapshot, match=r"^a\.pickle cannot be read: Input/output error$"):
        PickleStream(Broken(), "a.pickle", lambda device, event: None).read()


_SEEDS = [
    pickle.dumps(various(1, 30, shared=False), protocol=4),
    pickle.dumps(
        Simulation(4, expandable=True, operations=20).snapshot(3, ["a", "b"], stacks=True), protocol=2
    ),
    dumps_c10(Simulation(5, expandable=False, operations=20).snapshot(0, ["a"], stacks=True)),
]


def end_of(data: bytes) -> str:
    try:
        read_in_runs(data)
    except NotASnapshot as error:
        text = str(error)
        assert "\n" not in text and len(text) < 500
        return text
    except (KeyError, TypeError):  # told of the event by whoever takes it: see test_import_snapshot.py
        return "an event that is none"
    return "read"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_snapshot_or_none(data: bytes) -> None:
    assert end_of(data)
    assert end_of(b"\x80\x04" + data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_SEEDS), st.data())
def test_a_snapshot_of_which_bytes_were_changed_is_one_or_none(seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        many = data.draw(st.integers(0, 9))
        changed[at : at + many] = data.draw(st.binary(max_size=9))
    assert end_of(bytes(changed))
