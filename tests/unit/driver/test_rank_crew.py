"""The ranks as the driver calls them, with actors and a Ray that answer what the test says."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver import crew as crew_module
from ray_memprof.driver import ending
from ray_memprof.driver.crew import Crew
from ray_memprof.driver.interrupts import Interrupts
from ray_memprof.driver.live import Live
from ray_memprof.driver.run_state import RunState
from ray_memprof.rank.log import NOT_FOR_CONSOLE, lines_since
from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.recorder.status import Beat
from ray_memprof.supervision.verdict import Loss, Verdict

BEAT: dict[str, Any] = {
    **{"sequence": 1, "path": "denoise", "stage": "denoise", "num_steps": 3},
    **{"allocated_bytes": 0, "reserved_bytes": 0, "device_used_bytes": 0},
}
DIED = exceptions.ActorDiedError()


class Ref:
    """An answer, or an error, that is there from the start, once `is_ready` says so, or never."""

    def __init__(self, answer: Any, is_ready: Callable[[], bool] = lambda: True) -> None:
        self.answer, self.is_ready = answer, is_ready


def method(answer: Callable[..., Any]) -> Any:
    """A method of an actor: remote() asks at once and answers at once."""

    def remote(*args: Any, **named: Any) -> Ref:
        try:
            return Ref(answer(*args, **named))
        except exceptions.RayError as error:
            return Ref(error)

    return SimpleNamespace(remote=remote)


class FakeRay:
    """wait() and get() on Refs; a wait for what never comes takes the time that it is given."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, refs: Sequence[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if ref.is_ready()]
        if len(ready) < min(num_returns, len(refs)):
            self.now += timeout
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(crew_module, "ray", fake)
    monkeypatch.setattr(crew_module, "time", SimpleNamespace(monotonic=fake.monotonic))
    return fake


class Actor:
    """Rank 0 with a log; says what is in it until it dies."""

    def __init__(self, log: Path) -> None:
        self.log, self.is_dead, self.is_stuck = log, False, False
        log.touch()
        self.run = method(lambda address: self._alive(Outcome(rank=0, status="ok")))
        self.beat = method(lambda: self._alive(None))
        self.said = SimpleNamespace(remote=self._said)

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)

    def _alive(self, answer: Any) -> Any:
        if self.is_dead:
            raise DIED
        return answer

    def _said(self, offset: int, whole: bool = True) -> Ref:
        answer = DIED if self.is_dead else lines_since(self.log, offset, whole=whole)
        is_stuck = self.is_stuck
        return Ref(answer, lambda: not is_stuck)


@pytest.fixture
def actor(tmp_path: Path) -> Actor:
    return Actor(tmp_path / "rank0.log")


def started(actor: Actor, said: list[str], log: Path | None = None) -> Crew:
    crew = Crew([actor], said.append, log)
    crew.run(("127.0.0.1", 1))
    return crew


def test_a_rank_that_wrote_nothing_has_no_last_words(ray: FakeRay, actor: Actor) -> None:
    said: list[str] = []
    started(actor, said).last_words()
    assert (said, ray.now) == ([], 0.0)


def test_what_a_rank_wrote_after_it_was_last_asked_is_told(ray: FakeRay, actor: Actor) -> None:
    """GIVEN a question under way, asked before the last lines were written THEN they are asked for once more."""
    said: list[str] = []
    crew = started(actor, said)
    actor.write("begins\n")
    crew.beats()
    actor.write("done\nno newline")
    assert [one.status for one in crew.ended(0.2) if isinstance(one, Outcome)] == ["ok"]
    crew.last_words()
    assert said == ["[rank 0] begins", "[rank 0] done", "[rank 0] no newline"]
    crew.last_words()
    assert len(said) == 3


def test_a_run_is_not_over_before_its_first_rank_has_had_its_say(
    ray: FakeRay, actor: Actor, tmp_path: Path
) -> None:
    """GIVEN a rank that ends right after its last line, asked before it THEN the line comes before the verdict."""
    said: list[str] = []
    config = RunConfig(name="test", logging={"output_dir": tmp_path})
    live, state = Live(config, 1, plain=True), RunState.begin(config)
    cluster: Any = SimpleNamespace(crew=started(actor, said), nodes=("a",), home="a")
    cluster.crew.beats()
    actor.write("done\n")
    verdict = ending.supervise(cluster, state, live, Interrupts(live.say))

    assert (verdict.status, said) == ("ok", ["[rank 0] done"])


def test_the_first_step_is_told_when_a_rank_begins_it_and_once(
    ray: FakeRay, actor: Actor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN ranks that load, then one in step 0, then both in later steps."""
    config = RunConfig(name="test", logging={"output_dir": tmp_path})
    stages_s: dict[str, float] = {}
    live = Live(config, 2, plain=True, stages_s=stages_s)
    told: list[bool] = []

    def watch(crew: Any, *, show: Any, **_: Any) -> Verdict:
        for steps in ((-1, -1), (-1, 0), (1, 2)):
            show({rank: Beat(**BEAT, rank=rank, step=step) for rank, step in enumerate(steps)})
            told.append("first denoise step" in stages_s)
            stages_s.pop("first denoise step", None)
        return Verdict(status="ok")

    monkeypatch.setattr(ending, "watch", watch)
    cluster: Any = SimpleNamespace(crew=started(actor, []), nodes=("a",), home="a")
    ending.supervise(cluster, RunState.begin(config), live, Interrupts(live.say))
    assert told == [False, True, False]


def test_more_than_one_answer_carries_is_told(
    ray: FakeRay, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_memprof.rank.log._MAX_SAID_BYTES", 8)
    said: list[str] = []
    crew = started(actor, said)
    actor.write("".join(f"line {number}\n" for number in range(5)))
    crew.last_words()
    assert said == [f"[rank 0] line {number}" for number in range(5)]


@pytest.mark.parametrize(
    "beyond",
    ["Fatal Python error: Segmentation fault\n\nThread 0x1:\n", f"{NOT_FOR_CONSOLE}\nTraceback (most\n"],
)
def test_the_last_words_of_a_dead_rank_are_read_from_its_log(ray: FakeRay, actor: Actor, beyond: str) -> None:
    said: list[str] = []
    crew = started(actor, said, log=actor.log)
    actor.write("begins\n")
    crew.beats()
    crew.beats()
    actor.write(f"Traceback of the program's own\nlast\n{beyond}")
    actor.is_dead = True
    crew.last_words()
    assert said == ["[rank 0] begins", "[rank 0] Traceback of the program's own", "[rank 0] last"]


def test_the_log_of_a_dead_rank_on_another_disk_is_not_looked_for(ray: FakeRay, actor: Actor) -> None:
    said: list[str] = []
    crew = started(actor, said)
    actor.write("last\n")
    actor.is_dead = True
    crew.last_words()
    assert said == []


@pytest.mark.parametrize(("has_ended", "limit_s"), [(False, 0.5), (True, 10.0)])
def test_a_rank_that_does_not_answer_is_not_waited_for_longer_than_its_state_deserves(
    ray: FakeRay, actor: Actor, has_ended: bool, limit_s: float
) -> None:
    said: list[str] = []
    crew = started(actor, said)
    actor.is_stuck = True
    if has_ended:
        crew.ended(0.2)
    crew.last_words()
    assert (said, ray.now) == ([], limit_s)


def test_a_rank_is_lost_once_nobody_listens_where_its_raylet_did(ray: FakeRay, actor: Actor) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as there:
        gone = socket.create_server(("127.0.0.1", 0))
        places = {1: there.getsockname(), 2: gone.getsockname(), 3: gone.getsockname()}
        crew = Crew([actor], said.append, raylets=places)
        crew.run(("127.0.0.1", 1))
        assert crew.lost(1.0) == set()
        gone.close()
        assert crew.lost(1.0) == {2, 3}


def test_a_node_that_never_answered_is_not_lost(ray: FakeRay, actor: Actor) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = closed.getsockname()
    crew = Crew([actor], said.append, raylets={0: place})
    crew.run(("127.0.0.1", 1))
    assert crew.lost(1.0) == set()


def test_a_rank_that_does_not_say_where_it_is_is_not_asked_to_seal(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    place = Whereabouts(stack="a stack")
    actors = [Actor(tmp_path / f"rank{rank}.log") for rank in range(2)]
    for rank, actor in enumerate(actors):
        answer = Ref(place, lambda rank=rank: rank == 0)
        monkeypatch.setattr(
            actor, "where", SimpleNamespace(remote=lambda answer=answer: answer), raising=False
        )
        stop = method(lambda rank=rank: asked.append(rank))
        monkeypatch.setattr(actor, "stop", stop, raising=False)
    crew = Crew(actors, lambda line: None)
    crew.run(("127.0.0.1", 1))
    assert crew.where(1.0) == {0: place}
    crew.seal(1.0)
    assert (asked, ray.now) == ([0], 1.0)


def test_a_rank_that_tells_of_the_death_of_its_script_is_lost_and_still_asked_to_stop(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a rank whose script died, one that died itself, and one that runs THEN the one that died is not asked."""
    asked: list[int] = []
    actors = [Actor(tmp_path / f"rank{rank}.log") for rank in range(3)]
    died = Outcome(rank=0, status="died", exit_code=10, reason="killed by SIGSEGV")
    actors[0].run = method(lambda address: died)
    actors[1].is_dead = True
    actors[2].run = SimpleNamespace(remote=lambda address: Ref(None, lambda: False))
    for rank, actor in enumerate(actors):
        stop = method(lambda rank=rank: asked.append(rank))
        monkeypatch.setattr(actor, "stop", stop, raising=False)
    crew = Crew(actors, lambda line: None)
    crew.run(("127.0.0.1", 1))
    assert crew.ended(0.1) == [
        Loss(rank=0, kind="died", detail="killed by SIGSEGV"),
        Loss(rank=1, kind="died"),
    ]
    crew.seal(1.0)
    assert asked == [0, 2]
