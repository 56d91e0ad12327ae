"""Bounds that hold at every moment: against exact values, and by simulation of somebody who always looks."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.cache.semantic.bounds import interval, upper


def test_nothing_seen_says_nothing():
    assert upper(0, 0, confidence=0.95) == 1.0
    assert interval(0, 0, confidence=0.95) == (0.0, 1.0)


@given(samples=st.integers(1, 3000), data=st.data(), confidence=st.sampled_from([0.5, 0.8, 0.95, 0.999]))
def test_it_holds_what_was_seen_and_tightens_with_evidence(samples, data, confidence):
    wrong = data.draw(st.integers(0, samples))
    low, high = interval(samples, wrong, confidence=confidence)
    assert 0 <= low <= wrong / samples <= high <= 1
    bound = upper(samples, wrong, confidence=confidence)
    assert wrong / samples <= bound <= 1
    # A wrong one more never lowers it, and a right one more never raises it by more than rounding.
    assert upper(samples + 1, wrong + 1, confidence=confidence) >= bound - 1e-9
    assert upper(samples, wrong, confidence=(1 + confidence) / 2) >= bound - 1e-9


@pytest.mark.parametrize(("allowed", "samples"), [(0.01, 409), (0.05, 81), (0.001, 4104)])
def test_how_much_evidence_a_rate_takes(allowed, samples):
    assert upper(samples, 0, confidence=0.95, around=allowed) <= allowed
    assert upper(samples - 1, 0, confidence=0.95, around=allowed) > allowed
    # No fewer than one look with an exact interval would take.
    assert samples > math.log(0.05) / math.log(1 - allowed)


def test_who_looks_after_every_sample_is_wrong_no_more_often_than_said():
    rng = random.Random(7)
    allowed, confidence, runs = 0.1, 0.9, 400
    # As few samples as it ever takes, for each number of wrong ones: looked up once.
    first = {}
    for wrong in range(60):
        samples = first.get(wrong - 1, wrong + 1)
        while upper(samples, wrong, confidence=confidence, around=allowed) > allowed and samples < 1200:
            samples += 1
        first[wrong] = samples
    fooled = 0
    for _ in range(runs):
        wrong = 0
        for samples in range(1, 1200):
            wrong += rng.random() < allowed * 1.0001
            if wrong < 60 and samples >= first[wrong]:
                fooled += 1
                break
    assert fooled / runs <= (1 - confidence) + 3 * math.sqrt(0.09 / runs)
    assert fooled > 0  # it is a bound that is used, not one that never lets anything pass
