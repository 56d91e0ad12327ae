"""The analytic model against a simulation of the same pipeline, batch by batch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.pipeline_model import StageCost, batches_of, changes, fit_pass, predict

MS = 1e-3
costs = st.builds(
    StageCost,
    fixed_s=st.integers(1, 30).map(lambda n: n * MS),
    row_s=st.integers(0, 5).map(lambda n: n * MS),
    hop_s=st.integers(0, 20).map(lambda n: n * MS),
    replicas=st.integers(1, 3),
)
pipelines = st.lists(costs, min_size=1, max_size=5)


def simulated(stages: list[StageCost], batches: int, rows: float, rounds: int) -> float:
    """Mean seconds that a batch takes to come round, of the second half of the rounds."""
    free = [[0.0] * stage.replicas for stage in stages]
    arrives = [0.0] * batches
    marks = []
    for number in range(rounds * batches):
        batch = number % batches
        at = arrives[batch]
        for stage, replicas in zip(stages, free, strict=True):
            server = number % min(len(replicas), batches)  # they take turns
            at = replicas[server] = max(at, replicas[server]) + stage.pass_s(rows)
            at += stage.hop_s
        arrives[batch] = at
        if batch == 0:
            marks.append(at)
    half = len(marks) // 2
    return (marks[-1] - marks[half]) / (len(marks) - 1 - half)


@given(pipelines, st.integers(1, 24))
def test_the_formula_is_what_a_simulation_settles_at(stages: list[StageCost], streams: int) -> None:
    found = predict(stages, streams)
    rounds = 240
    # What is left of the start fades with the number of rounds.
    slack = sum(stage.pass_s(found.rows) + stage.hop_s for stage in stages) / (rounds / 2)
    assert simulated(stages, found.batches, found.rows, rounds) == pytest.approx(found.step_s, abs=slack)


@given(pipelines, st.integers(1, 64))
def test_no_stage_computes_for_more_than_all_of_the_time(stages: list[StageCost], streams: int) -> None:
    found = predict(stages, streams)
    assert all(0 <= bubble < 1 for bubble in found.bubbles)
    assert found.bubbles[found.bottleneck] == min(found.bubbles)
    assert (found.bound == "stage") == (found.bubbles[found.bottleneck] < 1e-9)
    assert found.batches * found.rows == pytest.approx(streams)
    assert found.tokens_per_s == pytest.approx(streams / found.step_s)


@given(pipelines, st.integers(1, 24), st.integers(0, 4))
def test_a_slower_part_never_makes_the_whole_faster(
    stages: list[StageCost], streams: int, index: int
) -> None:
    index %= len(stages)
    for slower in (
        replace(stages[index], fixed_s=stages[index].fixed_s * 2),
        replace(stages[index], hop_s=stages[index].hop_s + 0.01),
    ):
        worse = [*stages[:index], slower, *stages[index + 1 :]]
        assert predict(worse, streams).step_s >= predict(stages, streams).step_s - 1e-12


def test_one_stream_goes_round_and_leaves_the_others_idle() -> None:
    found = predict([StageCost(4 * MS, 0, MS), StageCost(6 * MS, 0, MS)], 1)
    assert found.step_s == pytest.approx(12 * MS)
    assert found.bound == "ring"
    assert found.bubbles == pytest.approx((8 / 12, 6 / 12))


def test_enough_streams_keep_the_slowest_stage_busy_and_a_replica_of_it_helps() -> None:
    stages = [StageCost(4 * MS, 0, MS), StageCost(4 * MS, 2 * MS, MS), StageCost(4 * MS, 0, MS)]
    found = predict(stages, 6)
    assert (found.batches, found.rows, found.bottleneck, found.bound) == (3, 2, 1, "stage")
    assert found.step_s == pytest.approx(24 * MS)
    found_changes = {change.what: round(change.tokens_per_s) for change in changes(stages, 6)}
    assert found_changes == {
        "12 streams instead of 6": 333,
        # Both bring the slowest stage down to where the ring, 19 ms, is what is left.
        "one more replica of stage 1": 316,
        "a cut that gives every stage the same work": 316,
        "hops that take half as long": 250,
    }
    assert [change.tokens_per_s for change in changes(stages, 6)] == sorted(
        (change.tokens_per_s for change in changes(stages, 6)), reverse=True
    )


@pytest.mark.parametrize(
    ("streams", "stages", "heads", "batches"),
    [(1, 2, 1, 1), (8, 2, 1, 2), (3, 2, 1, 2), (5, 4, 1, 3), (8, 2, 2, 4), (1, 4, 3, 1), (3, 2, 2, 3)],
)
def test_batches_are_those_of_the_heads_schedules(
    streams: int, stages: int, heads: int, batches: int
) -> None:
    assert batches_of(streams, stages, heads) == batches


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.lists(st.sampled_from([1, 2, 3, 8, 16, 50]), min_size=2, max_size=5),
)
def test_a_line_is_found_again(fixed: int, row: int, rows: list[int]) -> None:
    found = fit_pass([(count, fixed + row * count) for count in rows])
    for count in rows:
        assert found[0] + found[1] * count == pytest.approx(fixed + row * count, abs=1e-6)


@given(st.lists(st.tuples(st.floats(1, 64), st.floats(1e-6, 10)), min_size=1, max_size=6))
def test_a_fit_never_predicts_negative_time(points: list[tuple[float, float]]) -> None:
    fixed, row = fit_pass(points)
    assert fixed >= 0
    assert row >= 0
    assert fixed + row > 0


def test_nothing_measured_is_no_fit() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        fit_pass([])
    with pytest.raises(ValueError, match="a stage and a session"):
        predict([], 1)
