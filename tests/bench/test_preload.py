"""The comparison of policies: that all are charged alike, and what each does on streams that one can count by hand."""

import numpy as np
import pytest

from bench.hybrid_histogram import HybridHistogram, forecast
from bench.preload import dominated
from bench.preload_world import Curve, Streams, fixed, histogram, ours


def timers(every: float, count: int, models: int = 3) -> Streams:
    times = {f"m{nth}": [nth + every * beat for beat in range(count)] for nth in range(models)}
    return Streams.of(times, learn=0.0, load_s=10.0)


def test_a_fixed_keep_alive_is_charged_by_hand() -> None:
    found = fixed(timers(100.0, 11, models=1), [0.0, 50.0, 200.0])
    assert found.cold.tolist() == pytest.approx([1.0, 1.0, 1 / 11])
    assert found.memory_s.tolist() == pytest.approx([100.0, 500.0, 1000.0]), "a load is memory, too"


def test_the_histogram_loads_a_timer_just_before_it_comes() -> None:
    policy = HybridHistogram(3600.0)
    gap = None
    for _ in range(20):
        start, end = policy.window("m", gap)
        gap = 600.0
    assert 500 <= start <= 600
    assert 660 <= end <= 780
    assert policy.window("new", None) == (0.0, 3600.0)


def test_what_lies_beyond_the_histogram_is_forecast() -> None:
    policy = HybridHistogram(600.0)
    for _ in range(10):
        start, end = policy.window("m", 7200.0)
    assert start == pytest.approx(0.85 * 7200, rel=0.02)
    assert end == pytest.approx(1.15 * 7200, rel=0.02)
    assert forecast([100.0 * nth for nth in range(1, 12)]) == pytest.approx(1200, rel=0.05)


def test_ours_learns_a_timer_and_beats_the_keep_alive_at_its_memory() -> None:
    of = timers(300.0, 300)
    keep = [0.0, 16.0, 64.0, 128.0, 256.0, 512.0, 4096.0]
    plain, mine = fixed(of, keep), ours(of, keep)
    memory = float(plain.memory_s[keep.index(256.0)])
    assert plain.at(memory) == pytest.approx(1.0)
    assert mine.at(memory) < 0.5
    assert dominated(plain, mine) == 1.0


def test_ours_is_at_or_below_the_keep_alive_where_models_differ_and_where_they_do_not() -> None:
    """Poisson streams of ten rates, and of one: no tuning could know which it is given."""
    rng = np.random.default_rng(7)
    keep = [0.0, 16.0, 64.0, 256.0, 1024.0]
    for rates in (np.geomspace(1 / 30, 1 / 3000, 10), np.full(10, 1 / 200)):
        times = {
            f"m{nth}": np.cumsum(rng.exponential(1 / rate, int(12_000 * rate) + 1)).tolist()
            for nth, rate in enumerate(rates)
        }
        of = Streams.of(times, learn=0.25, load_s=10.0)
        plain, mine = fixed(of, keep), ours(of, keep)
        assert (mine.cold <= plain.cold + 0.005).all()
        assert (mine.memory_s <= 1.06 * plain.memory_s).all(), (
            "the price is found within a few thousand requests"
        )
        if rates[0] != rates[-1]:
            assert mine.at(float(plain.memory_s[2])) < plain.cold[2]


def test_nothing_kept_is_the_same_for_all() -> None:
    of = timers(50.0, 20)
    plain, mine, rival = fixed(of, [0.0]), ours(of, [0.0]), histogram(of, [3600.0])
    assert mine.memory_s[0] == pytest.approx(plain.memory_s[0])
    assert mine.cold[0] == plain.cold[0] == 1.0
    assert rival.cold[0] == pytest.approx(3 / 60), "the standard keep-alive"


def test_a_curve_is_read_at_any_memory() -> None:
    curve = Curve("c", [1, 2], np.array([10.0, 20.0]), np.array([0.5, 0.1]))
    assert curve.at(5) == 1.0
    assert curve.at(15) == pytest.approx(0.3)
    assert curve.at(99) == pytest.approx(0.1)
