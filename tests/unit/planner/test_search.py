"""The search over made-up numbers: what is predicted, what is out and why, and what is nearest."""

import pytest
from choices import GIB, Told, asked, measured, predicted

from ray_memprof.planner.full import Predicted
from ray_memprof.planner.probe import Measured, Stage
from ray_memprof.planner.search import Plan, search
from ray_memprof.planner.space import Asked, Choice, choices


def plan_of(wanted: Asked, told: Told, num_rows: int = 3) -> Plan:
    return search(wanted, num_rows=num_rows, say=lambda _: None, tools=told)


def denoise_only(floor: float, fast: float) -> Told:
    """Denoising needs `floor` without slicing and half of it with, which takes longer."""

    def probe(choice: Choice, stage: Stage) -> Measured:
        if stage != "denoise":
            return measured(1)
        half = 2 if choice.attention_slicing else 1
        return measured(floor / half, seconds=fast * half)

    def predict(choice: Choice) -> object:
        return predicted(probe(choice, "denoise").floor_bytes / GIB, run_s=fast)

    return Told(probe, predict)  # type: ignore[arg-type]


def test_the_fastest_that_fits_is_the_first_row_and_has_no_lever_that_saves_nothing() -> None:
    plan = plan_of(asked(), denoise_only(8, 1.0), num_rows=1)
    assert [row.choice for row in plan.rows] == [Choice()]
    assert plan.num_predicted == 1 and plan.nearest is None


@pytest.mark.parametrize(("error", "num_rows"), [(0.25, 1), (0.26, 0)])
def test_a_row_has_the_stated_error_of_its_prediction_to_spare(error: float, num_rows: int) -> None:
    limit = asked().limit_bytes / GIB
    told = Told(lambda choice, stage: measured(1), lambda choice: predicted(limit - 0.25, error=error))
    plan = plan_of(asked(), told, num_rows=1)
    assert len(plan.rows) == num_rows


def test_what_is_over_the_limit_by_its_bound_is_never_predicted() -> None:
    told = denoise_only(12, 1.0)
    plan = plan_of(asked(), told)
    assert all(choice.attention_slicing for choice in told.predicted)
    assert plan.num_by_bound == plan.num_legal // 2
    assert [row.choice.way for row in plan.rows] == list(dict.fromkeys(row.choice.way for row in plan.rows))
    assert {row.choice.load_strategy for row in plan.rows} == {"block", "stream"}


def test_where_nothing_fits_the_nearest_is_told_with_what_it_misses_by() -> None:
    told = denoise_only(24, 1.0)
    plan = plan_of(asked(), told)
    assert plan.rows == [] and plan.nearest is not None
    assert plan.nearest.misses_by_bytes == 2 * GIB
    assert plan.nearest.choice.attention_slicing and plan.nearest.predicted is not None
    assert plan.num_by_bound == plan.num_legal


def test_weights_over_the_limit_take_all_levers_with_them() -> None:
    def probe(choice: Choice, stage: Stage) -> Measured:
        is_heavy = stage == "denoise" and choice.load_strategy != "stream"
        return measured(2, weights_bytes=(20 if is_heavy else 1) * GIB)

    told = Told(probe, lambda choice: predicted(2))
    plan = plan_of(asked(), told)
    assert plan.num_by_weights == 2 * plan.num_legal // 3
    assert {choice.load_strategy for choice in told.predicted} == {"stream"}
    assert sum(key[0] == "denoise" for key in told.probed) == 1 + 4


def test_a_prediction_over_the_limit_takes_along_what_shares_its_stage() -> None:
    def predict(choice: Choice) -> object:
        return predicted(6 if choice.attention_slicing else 11)

    def probe(choice: Choice, stage: Stage) -> Measured:
        return measured(4, used=9.8 if choice.attention_slicing else 9.9)

    told = Told(probe, predict)  # type: ignore[arg-type]
    plan = plan_of(asked(), told, num_rows=1)
    assert plan.rows[0].choice.attention_slicing
    assert plan.num_by_prediction > plan.num_predicted
    keys = [
        (one.attention_slicing, one.ffn_chunks, one.expandable_segments)
        for one in told.predicted
        if one.offload
    ]
    assert len(keys) == len(set(keys))


def test_host_memory_counts_pinned_weights_of_every_rank() -> None:
    def probe(choice: Choice, stage: Stage) -> Measured:
        pinned = 20 * GIB if stage == "denoise" and choice.load_strategy == "stream" else 0
        return measured(2, kept_host_bytes=pinned)

    wanted = asked(num_gpus=2, host_limit_bytes=32 * GIB)
    plan = plan_of(wanted, Told(probe, lambda choice: predicted(2)), num_rows=20)
    assert plan.rows and all(row.choice.load_strategy != "stream" for row in plan.rows)
    assert plan.num_by_host > 0
    streamed = [one for choice, one in plan.bounds.items() if choice.load_strategy == "stream"]
    assert {one.host_bytes for one in streamed} == {42 * GIB}


def test_one_lever_that_would_make_the_faster_one_fit_is_named() -> None:
    def probe(choice: Choice, stage: Stage) -> Measured:
        if stage != "denoise":
            return measured(1)
        if choice.cfg == 2:
            return measured(
                9 if choice.attention_slicing else 11, seconds=1.2 if choice.attention_slicing else 1
            )
        return measured(5, seconds=1.1)

    told = Told(probe, lambda choice: predicted(5 if choice.cfg == 1 else 12, run_s=5))
    plan = plan_of(asked(num_gpus=2), told, num_rows=1)
    assert plan.nearest is not None and plan.nearest.choice.cfg == 2
    assert plan.nearest.cure == ("attention_slicing",) and plan.nearest.cured is not None
    assert plan.nearest.misses_by_bytes == GIB


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 8])
def test_every_choice_is_legal_and_loads(num_gpus: int) -> None:
    from ray_memprof.planner.space import config_of

    wanted = asked(task="t2v-1.3B", num_gpus=num_gpus)
    found = choices(wanted)
    assert len(found) == len(set(found)) >= 1000
    for choice in found[:: len(found) // 40]:
        config = config_of(wanted, choice)
        assert config.num_ranks == num_gpus
        assert config.parallel.vae == (choice.vae if num_gpus > 1 else "rank0")


def test_a_key_of_the_user_stays_and_inexact_levers_are_only_tried_where_they_are_allowed() -> None:
    fixed = asked(num_gpus=2, overrides=("optimization.ffn_chunks=3", "parallel.cfg=2"))
    assert {(one.ffn_chunks, one.cfg) for one in choices(fixed)} == {(3, 2)}
    assert not any(one.is_inexact for one in choices(asked()))
    assert any(one.matmul == "fp8" for one in choices(asked(allows_inexact=True)))


def test_a_miss_teaches_how_much_more_than_its_estimate_a_way_needs() -> None:
    """GIVEN a prediction 2 GiB over its estimate THEN the next of its way has 2 GiB to spare, though it is slower."""
    estimates = {(False, 0): 9.5, (False, 4): 9.0, (True, 0): 7.9, (True, 4): 7.8}

    def probe(choice: Choice, stage: Stage) -> Measured:
        if stage != "denoise" or choice.load_strategy == "stream":
            return measured(1, seconds=9)
        size = estimates[choice.attention_slicing, choice.ffn_chunks]
        return measured(4, used=size, seconds=1.5 if choice.attention_slicing else 1.0)

    def predict(choice: Choice) -> Predicted:
        return predicted(estimates[choice.attention_slicing, choice.ffn_chunks] + 2)

    told = Told(probe, predict)
    plan = plan_of(asked(), told, num_rows=1)
    first, second = told.predicted
    assert not first.attention_slicing and second == Choice(attention_slicing=True)
    assert [row.choice for row in plan.rows] == [second]


@pytest.mark.parametrize("where", ["denoise", "load.dit", "residency.onload"])
def test_a_rank_without_memory_teaches_that_more_than_the_limit_is_needed(where: str) -> None:
    """GIVEN exit 11 at an estimate THEN choices with the same estimate or a higher one are not tried after it."""

    def probe(choice: Choice, stage: Stage) -> Measured:
        if stage != "denoise" or choice.load_strategy == "stream":
            return measured(1, seconds=9)
        return measured(4, used=7.5 if choice.ffn_chunks == 4 else 8, seconds=1 + choice.ffn_chunks / 1000)

    def predict(choice: Choice) -> Predicted:
        return predicted(6) if choice.ffn_chunks == 4 else predicted(3, exit_code=11, stage=where)

    told = Told(probe, predict)
    plan = plan_of(asked(), told, num_rows=1)
    assert [choice.ffn_chunks for choice in told.predicted] == [0, 4]
    assert [row.choice.ffn_chunks for row in plan.rows] == [4]
    assert plan.num_by_prediction > 1  # what has this stage in common is out with it


def test_a_way_that_misses_again_and_again_waits_for_the_others() -> None:
    def probe(choice: Choice, stage: Stage) -> Measured:
        is_slow = choice.load_strategy == "stream"
        return measured(1 + choice.attention_slicing / 8, seconds=9 if is_slow else 1)

    def predict(choice: Choice) -> Predicted:
        return predicted(2 if choice.load_strategy == "stream" else 11)

    told = Told(probe, predict)
    plan = plan_of(asked(), told, num_rows=1)
    assert [row.choice.load_strategy for row in plan.rows] == ["stream"]
    assert [choice.load_strategy == "stream" for choice in told.predicted] == [False] * 3 + [True]
