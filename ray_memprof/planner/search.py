"""The search: from all legal choices to the fastest that fit, each of these predicted in full.

    plan = search(asked, num_rows=3, say=print)
    plan.rows                                    # Row: the choice, its bound, its prediction; the fastest first

1. One probe for each set of weights; choices whose weights alone are over the limit are out, with all their levers.
2. The other probes: every choice gets a lower bound of its memory, an estimate, and a time.
3. Choices over the limit by their bound are out: proven. Of the others, the fastest of each way to share the work is
   predicted in full. One that misses the limit takes along all that share the stage in which it does, and teaches how
   much more than its estimate a choice of this way needs.
4. The rest is slower than what was found, by the times of step 2, or at most a few percent faster than a choice whose
   estimate fits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Protocol

from ray_memprof.config.rules import check_files
from ray_memprof.planner import space
from ray_memprof.planner.full import Predicted, predict_all
from ray_memprof.planner.probe import STAGES, Measured, Probe, Stage, probe
from ray_memprof.planner.space import Asked, Choice, config_of
from ray_memprof.planner.stages import Bound, Key, bound_of, representative, stage_key, weights_key
from ray_memprof.predictor.processes import Processes
from ray_memprof.predictor.run import check

Say = Callable[[str], None]
Way = tuple[object, ...]
NEAR_FRACTION = 0.03
"""Choices whose times differ by less are as good as one another."""
MOST_PREDICTIONS = 4
"""Whole predictions for each row that is asked for."""
_SAME_FRACTION = 0.005
"""So near that the one with fewer levers is taken."""
_PATIENCE = 3
"""Predictions of a way that may miss the limit before all other ways come first."""


class Tools(Protocol):
    """What the search asks for numbers; tests have one of their own."""

    def probes(self, plans: Mapping[Key, tuple[Choice, Stage]], say: Say) -> dict[Key, Measured]:
        """Measure each of them."""

    def predictions(self, chosen: Sequence[Choice]) -> list[Predicted]:
        """Predict each of them in full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A choice that was predicted in full."""

    choice: Choice
    bound: Bound
    predicted: Predicted

    @property
    def run_s(self) -> float:
        """Seconds of the whole run."""
        return self.predicted.run_s + self.bound.cpu_s

    def fits(self, limit_bytes: int) -> bool:
        """Whether it ran, and no rank used more than that, with the stated error to spare."""
        return self.predicted.exit_code == 0 and self.predicted.most_bytes <= limit_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """A choice that misses a limit, the one that would be worth most."""

    choice: Choice
    bound: Bound
    predicted: Predicted | None
    """None: its bound alone is over the limit."""
    misses_by_bytes: int
    """What the device would need more; 0: it is host memory that is short."""
    misses_host_by_bytes: int
    cure: tuple[str, ...] = ()
    """The fields that would make it fit, each with its value: those of a choice that differs in no other."""
    cured: Choice | None = None


@dataclass(kw_only=True, slots=True)
class Plan:
    """What was found."""

    asked: Asked
    rows: list[Row] = field(default_factory=list)
    """One for each way to share the work and to keep weights, the fastest first."""
    nearest: Nearest | None = None
    bounds: dict[Choice, Bound] = field(default_factory=dict)
    """Every choice whose weights are not over the limit by themselves."""
    num_legal: int = 0
    num_by_weights: int = 0
    num_by_bound: int = 0
    num_by_host: int = 0
    num_by_prediction: int = 0
    """Out because a whole prediction misses the limit in a stage that they share."""
    num_predicted: int = 0
    num_left: int = 0
    """Neither predicted nor out when the search was given up, after MOST_PREDICTIONS for each row."""


def search(asked: Asked, *, num_rows: int, say: Say, tools: Tools) -> Plan:
    """The plan.

    Args:
        asked: what for.
        num_rows: the most rows.
        say: is told how far it is, a line each.
        tools: where the numbers come from: Predictions.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    found = space.choices(asked)
    if found:
        first = config_of(asked, found[0])
        check(first)
        check_files(first)
    plan = Plan(asked=asked, num_legal=len(found))
    say(f"{len(found):,} legal configurations")
    measured: dict[Key, Measured] = {}
    light = _without_heavy(plan, found, measured, tools, say)
    measured |= tools.probes(_missing(light, measured, STAGES), say)
    steps = config_of(asked, found[0]).generation.sample_steps or 1 if found else 1
    plan.bounds = {choice: bound_of(asked, choice, measured, steps) for choice in light}
    open_ = _Open(plan)
    say(f"{len(open_.left):,} may fit; {plan.num_legal - len(open_.left):,} cannot, by their bounds")
    _predict_ways(plan, open_, num_rows, tools, say)
    plan.nearest = _nearest(plan, tools)
    return plan


def _without_heavy(
    plan: Plan, found: Sequence[Choice], measured: dict[Key, Measured], tools: Tools, say: Say
) -> list[Choice]:
    """The choices whose weights are not over the limit by themselves; one probe for each set of weights."""
    firsts = {weights_key(choice): choice for choice in found}
    measured |= tools.probes(_missing(firsts.values(), measured, ("denoise",)), say)
    weights = {key: measured[stage_key(choice, "denoise")].weights_bytes for key, choice in firsts.items()}
    # Where nothing fits, what is nearest is still to be told.
    most = max(plan.asked.limit_bytes, min(weights.values(), default=0))
    light = [choice for choice in found if weights[weights_key(choice)] <= most]
    plan.num_by_weights = len(found) - len(light)
    return light


def _missing(
    chosen: Iterable[Choice], measured: Mapping[Key, Measured], stages: Sequence[Stage]
) -> dict[Key, tuple[Choice, Stage]]:
    """A probe for each key that is not measured yet."""
    plans: dict[Key, tuple[Choice, Stage]] = {}
    for choice in chosen:
        for stage in stages:
            key = stage_key(choice, stage)
            if key not in measured and key not in plans:
                plans[key] = (representative(choice, stage), stage)
    return plans


class _Open:
    """The choices that may still fit, in the order in which they are worth a prediction."""

    def __init__(self, plan: Plan) -> None:
        self._asked = plan.asked
        self.left: dict[Choice, Bound] = {}
        self._more: dict[tuple[Way, Stage], int] = {}
        """By way, how much more a stage of a prediction that missed the limit needed than its estimate."""
        self._num_missed: Counter[Way] = Counter()
        limit, host_limit = plan.asked.limit_bytes, plan.asked.host_limit_bytes
        for choice, bound in sorted(plan.bounds.items(), key=_by_time):
            if bound.floor_bytes > limit:
                plan.num_by_bound += 1
            elif host_limit is not None and bound.host_bytes > host_limit:
                plan.num_by_host += 1
            else:
                self.left[choice] = bound

    def best_of_ways(self) -> list[Choice]:
        """Of each way the choice to predict next, the fastest first.

        One whose estimate is over the limit is only worth it if it is faster than all whose estimate is not.
        """
        ways: dict[Way, list[Choice]] = {}
        for choice in self.left:
            ways.setdefault(choice.way, []).append(choice)
        best = [self._best(group) for group in ways.values()]
        return sorted(
            best,
            key=lambda one: (self._num_missed[one.way] >= _PATIENCE, *_by_time((one, self.left[one]))),
        )

    def _best(self, group: Sequence[Choice]) -> Choice:
        """Of one way. An estimate says little before a prediction of the way has missed the limit."""
        surely = [one for one in group if self._used(one) <= self._asked.limit_bytes]
        fastest = min(self.left[one].run_s for one in group)
        is_taught = self._num_missed[group[0].way] > 0
        near = [one for one in surely if is_taught or self.left[one].run_s <= fastest * (1 + NEAR_FRACTION)]
        if near:
            least = min(self.left[one].run_s for one in near)
            same = [one for one in near if self.left[one].run_s <= least * (1 + _SAME_FRACTION)]
            return min(same, key=lambda one: (len(one.changed()), self._used(one)))
        if is_taught:
            return min(group, key=lambda one: (self._used(one), *_by_time((one, self.left[one]))))
        # The fastest may fit, and nothing near it surely does.
        quick = [one for one in group if self.left[one].run_s <= fastest * (1 + _SAME_FRACTION)]
        return min(quick, key=lambda one: (self._used(one), len(one.changed())))

    def _used(self, choice: Choice) -> int:
        """The estimate, with what predictions of the same way have taught."""
        used = self.left[choice].stage_used_bytes
        return max(size + self._more.get((choice.way, stage), 0) for stage, size in used.items())

    def drop_way(self, choice: Choice) -> None:
        """The way has its row."""
        for other in [one for one in self.left if one.way == choice.way]:
            del self.left[other]

    def drop_like(self, row: Row, limit_bytes: int) -> int:
        """Drop what has a stage in common that is over the limit in a prediction; returns how many.

        Where networks are offloaded, a stage begins with an empty allocator and knows nothing of the one before.
        """
        self.left.pop(row.choice, None)
        self._num_missed[row.choice.way] += 1
        needed = _needed(row, limit_bytes)
        for stage, size in needed.items():
            more = size - row.bound.stage_used_bytes[stage]
            self._more[row.choice.way, stage] = max(self._more.get((row.choice.way, stage), 0), more)
        gone = [one for one in self.left if _shares(row.choice, one, needed)]
        for one in gone:
            del self.left[one]
        return 1 + len(gone)


_STAGE_OF: dict[str, Stage] = {
    "encode.text": "text",
    "load.dit": "denoise",
    "residency.onload": "denoise",  # those of other networks are in their stages
    "denoise": "denoise",
    "decode": "decode",
}


def _needed(row: Row, limit_bytes: int) -> dict[Stage, int]:
    """The stages in which a prediction misses the limit, with what they need, its stated error included."""
    predicted = row.predicted
    if predicted.exit_code:
        # It ended before it had all that it needs: that is more than the limit, nobody knows how much.
        sizes = {predicted.stage: limit_bytes + 1}
    else:
        error = predicted.error_bytes / max(1, predicted.device_used_bytes)
        sizes = {stage: ceil(size * (1 + error)) for stage, size in predicted.stage_bytes.items()}
    needed: dict[Stage, int] = {}
    for name, size in sizes.items():
        if size > limit_bytes and name in _STAGE_OF:
            stage = _STAGE_OF[name]
            needed[stage] = max(needed.get(stage, 0), size)
    return needed


def _shares(choice: Choice, other: Choice, stages: Iterable[Stage]) -> bool:
    """Whether one of these stages is the same in both, whatever comes before it."""
    if not choice.offload or choice.expandable_segments != other.expandable_segments:
        return False
    return any(stage_key(choice, stage) == stage_key(other, stage) for stage in stages)


def _by_time(pair: tuple[Choice, Bound]) -> tuple[float, int, int]:
    choice, bound = pair
    return bound.run_s, len(choice.changed()), bound.used_bytes


def _predict_ways(plan: Plan, open_: _Open, num_rows: int, tools: Tools, say: Say) -> None:
    limit, most = plan.asked.limit_bytes, MOST_PREDICTIONS * num_rows
    while len(plan.rows) < num_rows and plan.num_predicted < most and open_.left:
        chosen = open_.best_of_ways()[: num_rows - len(plan.rows)]
        say(f"predicting {len(chosen)} in full, {len(plan.rows)} of {num_rows} rows found")
        for choice, predicted in zip(chosen, tools.predictions(chosen), strict=True):
            row = Row(choice=choice, bound=plan.bounds[choice], predicted=predicted)
            plan.num_predicted += 1
            if row.fits(limit):
                plan.rows.append(row)
                open_.drop_way(choice)
            else:
                plan.num_by_prediction += open_.drop_like(row, limit)
    if len(plan.rows) < num_rows:
        plan.num_left = len(open_.left)
    plan.rows.sort(key=lambda row: row.run_s)


def _nearest(plan: Plan, tools: Tools) -> Nearest | None:
    """The choice that misses by least among those faster than what fits; without a row, among all."""
    asked = plan.asked
    fitting = {row.choice.way for row in plan.rows}
    best_s = min((row.bound.run_s for row in plan.rows), default=float("inf"))
    missing = [
        (choice, bound)
        for choice, bound in plan.bounds.items()
        if _over(asked, bound) != (0, 0) and bound.run_s < best_s and choice.way not in fitting
    ]
    if not missing:
        return None
    choice, bound = min(missing, key=lambda pair: (sum(_over(asked, pair[1])), _by_time(pair)))
    device, host = _over(asked, bound)
    found = Nearest(
        choice=choice, bound=bound, predicted=None, misses_by_bytes=device, misses_host_by_bytes=host
    )
    if not plan.rows:
        (predicted,) = tools.predictions([choice])
        plan.num_predicted += 1
        if not predicted.exit_code:
            device = max(device, predicted.most_bytes - asked.limit_bytes)
        found = replace(found, predicted=predicted, misses_by_bytes=device)
    return _cured(plan, found)


def _over(asked: Asked, bound: Bound) -> tuple[int, int]:
    """By how much an estimate is over the limits of the device and of the host."""
    host = 0 if asked.host_limit_bytes is None else bound.host_bytes - asked.host_limit_bytes
    used = max(bound.floor_bytes, bound.used_bytes)
    return max(0, used - asked.limit_bytes), max(0, host)


def _cured(plan: Plan, found: Nearest) -> Nearest:
    """With the one lever that would make it fit by its estimate, if there is one."""
    for other, bound in sorted(plan.bounds.items(), key=_by_time):
        differ = found.choice.differences(other)
        if len(differ) == 1 and _over(plan.asked, bound) == (0, 0):
            return replace(found, cure=differ, cured=other)
    return found


class Predictions:
    """Numbers from probes, and from whole predictions. Its processes end with the block.

    with Predictions(asked) as tools: ...
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._running: Processes | None = None

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)

    @property
    def _processes(self) -> Processes:
        """Begun when the first number is asked for: what cannot be is refused before."""
        if self._running is None:
            self._running = Processes()
        return self._running

    def probes(self, plans: Mapping[Key, tuple[Choice, Stage]], say: Say) -> dict[Key, Measured]:
        """Measure each, in processes of their own."""
        found: dict[Key, Measured] = {}
        waiting = {
            self._processes.call(probe, self._probe(choice, stage)): key
            for key, (choice, stage) in plans.items()
        }
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            if len(found) % 10 == 0 or len(found) == len(plans):
                say(f"{len(found)} of {len(plans)} bounds")
        return found

    def _probe(self, choice: Choice, stage: Stage) -> Probe:
        return Probe(config=config_of(self._asked, choice), stage=stage, gpu=self._asked.gpu)

    def predictions(self, chosen: Sequence[Choice]) -> list[Predicted]:
        """Predict each in full."""
        return predict_all(self._asked, chosen, self._processes)
