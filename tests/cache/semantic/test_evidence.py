"""What is served follows from what was measured, and from nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.cache.semantic.evidence import EPOCH, Counts, Evidence, band_of, band_range
from stagemesh.services.cache.semantic.guards import Kind
from stagemesh.services.cache.semantic.monitor import ErrorAlarm, HitRate
from stagemesh.services.cache.semantic.settings import Settings, settings_of

from stagemesh.v1.registry_pb2 import Semantic

SETTINGS = Settings(allowed=0.05)


def test_nothing_is_served_without_evidence_and_a_band_only_by_its_own():
    evidence = Evidence()
    assert not evidence.serves(SETTINGS)
    for _ in range(81):
        assert evidence.bound(Kind.SAME, 0.97, SETTINGS) > 0.05
        evidence.add(Kind.SAME, 0.97, False)
    assert evidence.bound(Kind.SAME, 0.99, SETTINGS) <= 0.05
    assert evidence.serves(SETTINGS)
    for kind, similarity in ((Kind.SAME, 0.94), (Kind.SAME, 0.8), (Kind.LOOSE, 0.97)):
        assert evidence.bound(kind, similarity, SETTINGS) == 1.0
    evidence.add(Kind.SAME, 0.96, True)
    assert not evidence.serves(SETTINGS)


def test_loose_pairs_are_served_only_where_that_is_allowed():
    evidence = Evidence()
    for _ in range(100):
        evidence.add(Kind.LOOSE, 0.97, False)
    assert not evidence.serves(SETTINGS)
    assert evidence.serves(Settings(allowed=0.05, loose=True))


@given(st.floats(-1, 1.01, allow_nan=False))
def test_every_similarity_has_a_band(similarity):
    low, high = band_range(band_of(similarity))
    assert low < high
    assert low <= similarity < high or similarity < 0 or similarity >= 1


def test_what_is_long_ago_is_forgotten():
    counts = Counts()
    for _ in range(10):
        counts.add(True)
    for _ in range(2 * EPOCH):
        counts.add(False)
    samples, wrong = counts.total
    assert wrong == 0
    assert EPOCH <= samples <= 2 * EPOCH


def test_an_alarm_comes_soon_when_the_rate_is_past_and_hardly_ever_when_it_is_not():
    rng = random.Random(3)

    def until_alarm(rate, at_most):
        alarm = ErrorAlarm(0.05)
        for count in range(at_most):
            if alarm.add(rng.random() < rate):
                return count
        return at_most

    assert sum(until_alarm(0.4, 1000) for _ in range(50)) / 50 < 40
    assert sum(until_alarm(0.05, 2000) for _ in range(40)) / 40 > 1000
    assert until_alarm(0.0, 1000) == 1000


@settings(max_examples=50)
@given(allowed=st.floats(1e-5, 0.5), wrongs=st.lists(st.booleans(), max_size=200))
def test_the_level_is_within_its_range(allowed, wrongs):
    alarm = ErrorAlarm(allowed)
    for wrong in wrongs:
        rang = alarm.add(wrong)
        assert 0 <= alarm.level <= 1
        assert rang == (alarm.level == 1)


def test_a_drift_of_the_hit_rate_is_seen_in_both_directions_and_noise_is_not():
    rng = random.Random(5)

    def run(rates):
        rate, seen = HitRate(), []
        for each in rates:
            hits = sum(rng.random() < each for _ in range(100))
            seen.append(rate.add(100, hits))
        return seen

    assert not any(run([0.3] * 60))
    down = run([0.5] * 10 + [0.1] * 10)
    assert "down" in down[10:]
    assert "up" not in down
    assert "up" in run([0.1] * 10 + [0.5] * 10)[10:]


def test_a_large_report_counts_as_its_batches():
    rate = HitRate()
    assert rate.add(500, 250) == ""
    assert rate.known
    assert rate.add(1000, 0) == "down"


@pytest.mark.parametrize("bad", [float("nan"), -1.0, 0.9, float("inf")])
def test_settings_that_make_no_sense_are_the_defaults(bad):
    found = settings_of(Semantic(allowed_false_hit_rate=bad, verify_share=-bad, confidence=bad - 1))
    assert found.allowed == 0.01
    assert 0 <= found.verify_share <= 1
    assert found.confidence == 0.95


def test_a_rate_is_meant_as_it_was_written():
    assert settings_of(Semantic(allowed_false_hit_rate=0.01)).allowed == 0.01
    assert settings_of(Semantic(verify_share=0.0)).verify_share == 0.0
    assert settings_of(Semantic()).verify_share == 0.05
