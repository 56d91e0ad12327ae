"""Predictive preloading: what it learns, that it is causal, and that it never does worse than it has to."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.preload import Preloader
from stagemesh.services.registry.preload.grid import BINS, EDGES, bin_of, time_in_bins
from stagemesh.services.registry.preload.hazard import Hazards
from stagemesh.services.registry.preload.policy import Policy
from stagemesh.services.registry.preload.preloader import COMMON
from stagemesh.services.registry.preload.proof import Proof
from stagemesh.services.registry.preload.windows import loaded_bins, outcome, windows

SECONDS = st.floats(0, 3e5, allow_nan=False)
ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5000)), min_size=1, max_size=30)


@given(SECONDS, SECONDS)
def test_time_in_bins_is_all_the_time_that_the_grid_covers(one: float, other: float) -> None:
    start, end = sorted((one, other))
    first, spent = time_in_bins(start, end)
    covered = max(0.0, min(end, float(EDGES[-1])) - start)
    assert spent.sum() == pytest.approx(covered, abs=1e-6)
    assert (spent >= -1e-9).all()
    assert first + len(spent) <= BINS


def test_a_timer_is_unloaded_at_once_and_loaded_again_just_before_its_request() -> None:
    policy = Preloader(keep_s=300, load_s=10)
    now = 0.0
    for _ in range(200):
        now += 240.0
        policy.observe("timer", now)
        policy.observe("other", now + random.Random(now).uniform(0, 200))
    assert policy.keep_alive_s("timer", now) < 60
    assert "timer" not in policy.wanted(now + 100)
    reason = policy.wanted(now + 235)["timer"]
    assert "235 s ago" in reason


def test_a_model_that_falls_silent_is_let_go_of() -> None:
    policy = Preloader(keep_s=300, load_s=10)
    for second in range(0, 4000, 20):
        policy.observe("steady", float(second))
        policy.wanted(float(second))
    assert policy.keep_alive_s("steady", 4000) >= 100, "its requests come every 20 s"
    for second in range(4000, 200_000, 60):
        policy.wanted(float(second))
    assert policy.wanted(200_000.0) == {}
    assert policy.keep_alive_s("steady", 200_000.0) < 100_000


def test_while_nothing_is_proven_the_fixed_keep_alive_holds() -> None:
    policy = Preloader(keep_s=256.0)
    assert policy.keep_alive_s("never seen", 0) == 256
    policy.observe("new", 0.0)
    assert policy.keep_alive_s("new", 1) == pytest.approx(256)
    assert policy.wanted(100.0) == {}


@given(ARRIVALS, st.lists(st.floats(0.5, 90_000), min_size=1, max_size=4))
@settings(deadline=None, max_examples=12)
def test_what_comes_later_changes_nothing_of_what_was_decided(arrivals, probes) -> None:
    """The same beginning gives the same decisions, whatever follows: nothing looks ahead."""

    def decisions(times: list[tuple[str, float]]) -> list[object]:
        policy, out, now = Preloader(keep_s=300), [], 0.0
        for model, gap in times:
            now += gap
            policy.observe(model, now)
            out.append((policy.keep_alive_s(model, now), policy.wanted(now)))
        return out

    assert decisions([*arrivals, *(("a", probe) for probe in probes)])[: len(arrivals)] == decisions(arrivals)


@given(ARRIVALS)
@settings(deadline=None, max_examples=40)
def test_hazards_are_finite_and_positive_whatever_comes(arrivals) -> None:
    hazards, now = Hazards(), 0.0
    for model, gap in arrivals:
        now += gap
        hazards.observe(model, now)
        hazards.account(model, now + gap / 2)
        for curve in (hazards.curve(model), hazards.average()):
            assert curve.shape == (BINS,)
            assert np.isfinite(curve).all()
            assert (curve > 0).all()
        assert (np.diff(hazards.average()) <= 0).all(), "the average model is worth less the longer it idles"


def test_steady_poisson_requests_are_estimated_within_a_third() -> None:
    hazards, rng, now = Hazards(), random.Random(3), 0.0
    for _ in range(3000):
        now += rng.expovariate(1 / 100)
        hazards.observe("m", now)
    curve = hazards.curve("m")[bin_of(10) : bin_of(300)]
    assert np.exp(np.log(curve * 100).mean()) == pytest.approx(1, rel=0.33)


def test_days_are_learned() -> None:
    hazards, rng = Hazards(), random.Random(5)
    for day in range(6):
        now = day * 86_400 + 9 * 3600.0
        while now < day * 86_400 + 17 * 3600:
            hazards.observe("office", now)
            now += rng.expovariate(1 / 600)
    factors = hazards.models["office"].daily.factors()
    assert factors[9:17].mean() > 3 * factors[:8].mean()


@given(
    st.lists(st.floats(1e-7, 10), min_size=BINS, max_size=BINS),
    st.lists(st.floats(1, 1e5), min_size=1, max_size=3),
    st.floats(0.1, 100),
)
@settings(deadline=None, max_examples=60)
def test_windows_are_the_best_of_all_at_their_price(rates, keep, load_s) -> None:
    """Against every single change of one bin: the programme's choice is worth at least as much."""
    hazard = np.array(rates)
    average = np.minimum.accumulate(hazard)
    found = loaded_bins(hazard, average, keep, load_s, margin=1.0)
    prices = np.interp(keep, (EDGES[:-1] + EDGES[1:]) / 2, average)
    rng = random.Random(0)
    for row, price in zip(found, prices, strict=True):
        best = _worth(row, hazard, price, load_s)
        for _ in range(10):
            other = row.copy()
            place = rng.randrange(BINS)
            other[place] = not other[place]
            assert best >= _worth(other, hazard, price, load_s) - 1e-9


def _worth(loaded: np.ndarray, hazard: np.ndarray, price: float, load_s: float) -> float:
    """Cold starts spared less memory at its price, in the mean."""
    total, alive, before = 0.0, 1.0, True
    for place in range(BINS):
        stays = math.exp(-hazard[place] * (EDGES[place + 1] - EDGES[place]))
        if loaded[place]:
            total += alive * (1 - stays) * (1 - price / hazard[place])
            total -= 0 if before else alive * price * load_s
        before, alive = bool(loaded[place]), alive * stays
    return total


def test_no_keep_alive_is_no_memory() -> None:
    hazard = np.full(BINS, 1.0)
    assert not loaded_bins(hazard, hazard, [0.0], 10.0).any()


def test_outcome_counts_loads_that_were_not_of_use() -> None:
    loaded = (EDGES[:-1] >= 64) & (EDGES[:-1] < 128)
    assert windows(loaded) == [(64.0, 128.0)]
    rows = loaded[None, :]
    for idle, ready, used in ((10, False, 0), (60, False, 6), (70, True, 16), (500, False, 74)):
        is_ready, memory = outcome(rows, idle, 10.0)
        assert (bool(is_ready[0]), float(memory[0])) == (ready, pytest.approx(used))


def test_a_way_is_followed_once_it_is_ahead_by_more_than_chance_at_no_more_memory() -> None:
    proof = Proof(1, 2)
    fixed, better, spent = np.array([False]), np.array([True, True]), np.array([100.0])
    for _ in range(5):
        proof.learn(fixed, np.array([100.0]), better, np.array([50.0, 150.0]), spent)
    assert proof.best()[0] == -1, "five times may be luck"
    for _ in range(20):
        proof.learn(fixed, np.array([100.0]), better, np.array([50.0, 150.0]), spent)
    assert proof.best()[0] == 0, "the other one takes more memory"
    proof.learn(fixed, np.array([0.0]), better, np.array([0.0, 0.0]), np.array([1000.0]))
    assert proof.best()[0] == -1, "more was spent than the fixed keep-alive would have"


def test_the_next_leader_goes_on_with_what_was_learned() -> None:
    rng, now = random.Random(1), 0.0
    before = Preloader(keep_s=300, epoch_s=1.7e9)
    for _ in range(300):
        now += rng.choice([5, 240])
        before.observe(rng.choice(["a", "b"]), now)
    after = Preloader(keep_s=300, epoch_s=1.7e9 - 1000)
    items = before.dump()
    assert set(items) == {"a", "b", COMMON}
    assert after.load(items, now + 1000) == 0
    for model in "ab":
        assert after.keep_alive_s(model, now + 1000) == before.keep_alive_s(model, now)
    assert after.wanted(now + 1200) == before.wanted(now + 200)
    assert before.dump() == {}, "nothing new"
    assert set(before.dump(everything=True)) == {"a", "b", COMMON}


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"{}", b'{"version":2}', b"\xff", json.dumps({"version": 1, "last_unix_s": "x"}).encode()],
    ids=["empty", "list", "nothing", "newer", "bytes", "text"],
)
def test_state_that_makes_no_sense_is_counted_and_left_out(value: bytes) -> None:
    policy = Preloader()
    assert policy.load({"m": value, COMMON: value}, 0.0) == 2
    assert repr(policy).startswith("Preloader(keep_s=300, models=0")
    policy.observe("m", 5.0)


def test_state_of_hostile_numbers_is_refused_whole() -> None:
    good = Preloader()
    good.observe("m", 10.0)
    good.observe("m", 300.0)
    value = json.loads(good.dump()["m"])
    for field, wrong in (
        ("mean_s", math.nan),
        ("gaps", -1),
        ("own", {"999": [1, 1]}),
        ("daily", {"3": [-1, 1]}),
    ):
        other = Preloader()
        assert other.load({"m": json.dumps(value | {field: wrong}).encode()}, 400.0) == 1
        assert other.keep_alive_s("m", 400.0) == 300


def test_memory_is_bounded_and_the_longest_silent_goes_first() -> None:
    policy = Preloader(models=3)
    for nth, model in enumerate("abcd"):
        policy.observe(model, nth * 10.0)
    assert set(policy.dump(everything=True)) == {"b", "c", "d", COMMON}


def test_several_keep_alives_at_once_are_as_one_each() -> None:
    both, alone = Policy([64.0, 256.0], 10.0), Policy([256.0], 10.0)
    rng, now = random.Random(2), 0.0
    for _ in range(200):
        now += rng.expovariate(1 / 50)
        model = rng.choice("ab")
        assert (both.arrive(model, now)[1] == alone.arrive(model, now)[0]).all()


def test_silence_is_news_before_it_ends() -> None:
    hazards = Hazards()
    for second in range(0, 2000, 20):
        hazards.observe("m", float(second))
    before = hazards.curve("m")[bin_of(3000.0)]
    for second in range(2000, 40_000, 300):
        hazards.account("m", float(second))
    assert hazards.curve("m")[bin_of(3000.0)] < 0.5 * before
