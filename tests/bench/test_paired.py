import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paired import FEWEST_PAIRS, MEANINGLESS, Ratio, Verdict, interleaved, paired_ratio, quartiles

rates = st.floats(min_value=1e-3, max_value=1e6)
pairs = st.lists(st.tuples(rates, rates), min_size=1, max_size=30)


@given(st.lists(st.integers(), min_size=1, max_size=5, unique=True), st.integers(0, 6))
def test_every_contender_runs_once_before_any_runs_again(contenders: list[int], rounds: int) -> None:
    order = list(interleaved(contenders, rounds))
    assert len(order) == rounds * len(contenders)
    for number in range(rounds):
        one_round = order[number * len(contenders) : (number + 1) * len(contenders)]
        assert {each for each, _ in one_round} == {number}
        assert sorted(contender for _, contender in one_round) == sorted(contenders)
    assert order == list(interleaved(contenders, rounds))
    assert [contender for number, contender in order if number == 0] == (contenders if rounds else [])


def test_everybody_follows_everybody() -> None:
    order = [contender for _, contender in interleaved("ABC", 30)]
    assert len(set(pairwise(order))) == 9


@given(pairs)
def test_the_median_is_of_the_ratios_and_lies_between_its_quartiles(
    measured: list[tuple[float, float]],
) -> None:
    ratio = paired_ratio([a for a, _ in measured], [b for _, b in measured])
    ratios = sorted(a / b for a, b in measured)
    middle = len(ratios) // 2
    expected = ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
    assert math.isclose(ratio.value, expected, rel_tol=1e-9)
    assert ratios[0] * (1 - 1e-9) <= ratio.low <= ratio.value * (1 + 1e-9)
    assert ratio.value <= ratio.high * (1 + 1e-9) <= ratios[-1] * (1 + 2e-9)


@given(
    st.lists(rates, min_size=FEWEST_PAIRS, max_size=20),
    st.lists(st.floats(0.5, 2.0), min_size=20, max_size=20),
    st.floats(0.1, 10),
)
def test_drift_that_both_feel_leaves_the_ratio_alone(
    base: list[float], drift: list[float], truth: float
) -> None:
    theirs = [value * factor for value, factor in zip(base, drift, strict=False)]
    ratio = paired_ratio([value * truth for value in theirs], theirs)
    assert math.isclose(ratio.value, truth, rel_tol=1e-9)
    assert ratio.meaningless == ""


def test_drift_that_only_one_feels_is_called_noise() -> None:
    ratio = paired_ratio([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert ratio.spread > MEANINGLESS
    assert "noise" in ratio.meaningless
    assert ratio.verdict(2.5) is Verdict.NOISE


def test_two_pairs_are_too_few() -> None:
    ratio = paired_ratio([1, 1], [1, 1])
    assert "only 2 pairs" in ratio.meaningless
    assert ratio.verdict(0.1) is Verdict.NOISE


def test_noise_far_from_the_bound_still_decides() -> None:
    ratio = Ratio(4.0, 3.0, 6.0, 9)
    assert ratio.meaningless
    assert ratio.verdict(1.0, at_most=True) is Verdict.SHORT


@given(st.floats(0.1, 10), st.floats(0, 0.1), st.floats(0.1, 10), st.booleans())
def test_a_verdict_is_never_given_across_the_noise(
    middle: float, width: float, bound: float, most: bool
) -> None:
    ratio = Ratio(middle, middle * (1 - width), middle * (1 + width), 9)
    verdict = ratio.verdict(bound, at_most=most)
    if ratio.low < bound < ratio.high:
        assert verdict is Verdict.NOISE
    else:
        good = middle <= bound if most else middle >= bound
        assert verdict is (Verdict.REACHED if good else Verdict.SHORT)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0]), ([1.0], [math.nan]), ([-1.0], [1.0])]
)
def test_what_cannot_be_compared_is_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratio(ours, theirs)


def test_quartiles_of_one_value() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
