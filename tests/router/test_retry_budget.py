import math

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.admission.retry_budget import RetryBudget

MOVES = st.lists(
    st.tuples(st.sampled_from(["request", "retry"]), st.floats(0, 3), st.integers(1, 200)), max_size=60
)


def run(budget, moves, now=100.0):
    """(requests, retries allowed, retries denied, seconds) of `moves`, each after so long and so often."""
    requests = allowed = denied = 0
    began = now
    for what, after, times in moves:
        now += after
        for _ in range(times):
            if what == "request":
                budget.request(now)
                requests += 1
            elif budget.may_retry(now):
                allowed += 1
            else:
                denied += 1
    return requests, allowed, denied, now - began


@given(MOVES, st.floats(0, 1), st.floats(0, 20), st.floats(1, 20))
def test_never_more_than_the_share_and_what_time_gives(moves, share, per_s, window_s):
    budget = RetryBudget(100.0, share=share, per_s=per_s, window_s=window_s)
    requests, allowed, denied, seconds = run(budget, moves)
    assert allowed <= share * requests + per_s * (seconds + window_s) + 1e-6
    assert budget.denied == denied


@given(st.lists(st.floats(0.1, 5), max_size=50))
def test_a_retry_every_tenth_of_a_second_is_always_within_it(gaps):
    budget, now = RetryBudget(0.0), 0.0
    while budget.may_retry(now):  # what was kept is gone
        pass
    for gap in gaps:
        now += gap + 1e-6
        assert budget.may_retry(now)


def test_a_steady_stream_of_requests_that_all_fail_gets_a_fifth_of_them_retried():
    budget, per_s, seconds = RetryBudget(0.0), 1000, 60
    allowed = 0
    for index in range(per_s * seconds):
        now = index / per_s
        budget.request(now)
        allowed += budget.may_retry(now)
    expected = 0.2 * per_s * seconds + 10 * seconds + 100
    assert math.isclose(allowed, expected, rel_tol=0.02)
    assert budget.denied == per_s * seconds - allowed


def test_requests_of_long_ago_are_no_reason_to_retry_now():
    budget = RetryBudget(0.0, per_s=1.0, window_s=10.0)
    for _ in range(1000):
        budget.request(0.0)
    assert sum(budget.may_retry(20.0) for _ in range(300)) == 10
    assert "0.0 retries left, 290 denied" in repr(budget)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    budget = RetryBudget(50.0, per_s=1.0, window_s=5.0)
    assert sum(budget.may_retry(50.0) for _ in range(9)) == 5
    assert not budget.may_retry(40.0)
    assert budget.may_retry(51.0)
