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
from stagemesh.services.registry.preload.hazard import Hazards, never_rising
from stagemesh.services.registry.preload.policy import MARGINS, Policy
from stagemesh.services.registry.preload.preloader import COMMON
from stagemesh.services.registry.preload.proof import SHARE, Proof
from stagemesh.services.registry.preload.windows import loaded_bins, used, waits, windows

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
    keeps = np.array(keep)
    prices = np.interp(keeps, (EDGES[:-1] + EDGES[1:]) / 2, np.minimum.accumulate(hazard))
    found = loaded_bins(hazard, prices, keeps, load_s, np.ones(keeps.size))
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
    assert not loaded_bins(hazard, np.zeros(1), np.zeros(1), 10.0, np.ones(1)).any()


def test_rows_of_several_models_are_as_one_each() -> None:
    rng = np.random.default_rng(1)
    hazards = rng.exponential(0.01, (3, BINS))
    price, keep, margin = rng.exponential(0.01, 3), np.array([10.0, 100.0, 1000.0]), np.array([1.0, 2.0, 8.0])
    together = loaded_bins(hazards, price, keep, 10.0, margin)
    for nth in range(3):
        row = slice(nth, nth + 1)
        assert (loaded_bins(hazards[nth], price[row], keep[row], 10.0, margin[row])[0] == together[nth]).all()


def test_equal_hazards_are_kept_as_by_a_fixed_keep_alive() -> None:
    """The price that an average model has after T keeps it for T, whatever the margin, if hazards fall."""
    hazard = never_rising(np.ones(BINS), np.diff(EDGES))
    for keep in (16.0, 256.0, 4096.0):
        price = np.interp([keep], (EDGES[:-1] + EDGES[1:]) / 2, hazard)
        for margin in MARGINS:
            found = loaded_bins(hazard, price, np.array([keep]), 10.0, np.array([margin]))
            assert windows(found[0]) == [(0.0, pytest.approx(keep, rel=0.27))]


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 1e4)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_pooled_rates_never_rise_and_lose_no_arrival(cells: list[tuple[float, float]]) -> None:
    seen, idle = np.array(cells).T
    found = never_rising(seen, idle)
    assert (np.diff(found) <= 1e-9 * (1 + found[1:])).all()
    assert float(found @ idle) == pytest.approx(float(seen.sum()), rel=1e-6, abs=1e-9)
    # The hull: what is found up to any bin is at least what came up to there.
    assert (np.cumsum(found * idle) >= np.cumsum(seen) * (1 - 1e-6) - 1e-9).all()


def test_memory_counts_loads_that_were_not_of_use() -> None:
    loaded = (EDGES[:-1] >= 64) & (EDGES[:-1] < 128)
    assert windows(loaded) == [(64.0, 128.0)]
    rows, warm, cold = loaded[None, :], np.zeros(1), np.full(1, 10.0)
    for idle, wait, memory in ((10, 10, 0), (60, 4, 6), (70, 0, 16), (500, 10, 74)):
        assert waits(rows, idle, 10.0, warm)[0] == pytest.approx(wait)
        assert used(rows, 0.0, idle, 10.0, warm)[0] == pytest.approx(memory)
    assert waits(rows, 3.0, 10.0, cold)[0] == pytest.approx(7), "the load of the request before goes on"
    assert used(rows, 0.0, 70.0, 10.0, cold)[0] == pytest.approx(26)


@given(
    st.lists(st.booleans(), min_size=BINS, max_size=BINS),
    st.lists(SECONDS, min_size=1, max_size=5),
    st.floats(0, 30),
)
@settings(deadline=None, max_examples=60)
def test_memory_is_the_same_in_one_piece_or_in_several(bins, stops, loading_s) -> None:
    rows, loading = np.array([bins]), np.array([loading_s])
    at, total = 0.0, 0.0
    for stop in sorted(stops):
        total += used(rows, at, stop, 10.0, loading)[0]
        at = stop
    assert total == pytest.approx(used(rows, 0.0, at, 10.0, loading)[0], abs=1e-6)


def _learn(proof: Proof, times: int, ready: list[bool], used_s: list[float], *, fixed: bool = False) -> None:
    for _ in range(times):
        now_s = 600.0 * float(proof.count[0])
        proof.learn(np.array([fixed]), np.array([ready]), now_s)
        proof.spend(np.array([100.0]), np.array([used_s]), np.array([100.0]))


def test_a_way_is_followed_once_it_is_ahead_by_more_than_chance_at_no_more_memory() -> None:
    proof = Proof(1, 2)
    _learn(proof, 5, [True, True], [50.0, 150.0])
    assert proof.best()[0] == -1, "five times may be luck"
    _learn(proof, 20, [True, True], [50.0, 150.0])
    assert proof.best()[0] == 0, "the other one takes more memory"
    dear = Proof(1, 1)
    _learn(dear, 25, [True], [150.0])
    assert dear.best()[0] == -1, "nor is it followed where it is the only one"
    _learn(proof, 40, [False, True], [50.0, 150.0], fixed=True)
    assert proof.best()[0] == -1, "it has lost what it was ahead"


def test_what_ends_in_one_half_hour_is_no_independent_evidence() -> None:
    """Twice as many spared as lost, in turn by the half hour or all at once: only the first is beyond chance."""
    steady, bursts = Proof(1, 1), Proof(1, 1)
    for nth in range(360):
        now_s = 60.0 * nth
        spared = nth % 3 != 0
        steady.learn(np.array([not spared]), np.array([[spared]]), now_s)
        spared = (nth // 30) % 3 != 0
        bursts.learn(np.array([not spared]), np.array([[spared]]), now_s)
        for proof in (steady, bursts):
            proof.spend(np.ones(1), np.full((1, 1), 0.5), np.ones(1))
    assert abs(steady.ahead + steady.lately - bursts.ahead - bursts.lately) < 20
    assert (steady.best()[0], bursts.best()[0]) == (0, -1)


@given(st.integers(0, 2**32 - 1), st.floats(0.4, 20))
@settings(deadline=None, max_examples=15)
def test_a_way_takes_the_memory_of_the_keep_alive_however_dear_it_begins(seed: int, factor: float) -> None:
    """Its memory falls with its price, by a law that nobody tells it."""
    rng, proof = np.random.default_rng(seed), Proof(1, 1)
    fixed_s = used_s = 0.0
    for nth in range(6000):
        one = rng.exponential(100.0, 1)
        other = one * factor * np.exp(-0.7 * proof.moved)
        proof.learn(np.array([True]), np.array([[True]]), 10.0 * nth)
        proof.spend(one, other, one * 0.9)
        if nth >= 2000:
            fixed_s, used_s = fixed_s + float(one[0]), used_s + float(other[0, 0])
    assert used_s / fixed_s == pytest.approx(SHARE, rel=0.05)


def test_the_next_leader_goes_on_with_what_was_learned() -> None:
    rng, now = random.Random(1), 0.0
    before = Preloader(keep_s=300, epoch_s=1.7e9)
    for _ in range(300):
        now += rng.choice([5, 240])
        before.observe(rng.choice(["a", "b"]), now)
    for model in "ab":
        now += 100
        before.observe(model, now)
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
