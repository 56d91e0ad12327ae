"""A model asked for five times what it can do, in virtual time: what is answered in time, and what becomes of the rest."""

import pytest
from stagemesh.services.router.admission.priority import Priority

from .overload import Model, offer

TOKENS = 32
OVERLOAD_S = 40.0
SATURATES = Model(alone_s=0.01, each_s=0.005)
"""A session alone gets a token in 15 ms; many together get 200 a second."""
PEAK = SATURATES.peak(TOKENS)


def five_times(peak=PEAK, until=OVERLOAD_S):
    """Five times the peak, and then half of it."""
    return lambda at: 5 * peak if at < until else peak / 2


@pytest.mark.parametrize(("deadline_s", "at_once"), [(2.0, 5), (5.0, 16), (10.0, 35), (120.0, 64)])
def test_goodput_stays_at_its_peak_and_comes_back_when_it_is_over(deadline_s, at_once):
    result = offer(SATURATES, five_times(), OVERLOAD_S + 20, deadline_s=deadline_s, max_active=64)
    # Deadlines that allow few at once cost a little: it is faster with many.
    possible = at_once / (SATURATES.alone_s + SATURATES.each_s * at_once) / TOKENS
    assert result.goodput(OVERLOAD_S / 2, OVERLOAD_S) >= 0.9 * possible
    assert len(result.late) <= 0.02 * len(result.answered), "next to nothing is computed in vain"
    # Ten seconds later what comes is answered, but where a few at the same moment are too many for the deadline.
    assert result.goodput(OVERLOAD_S + 10, OVERLOAD_S + 20) >= 0.8 * PEAK / 2
    refused = sum(at > OVERLOAD_S + 10 for at in result.refused)
    assert refused <= (0.2 * 10 * PEAK / 2 if deadline_s < 5 else 0)


def test_short_requests_run_where_long_ones_would_run_in_vain():
    result = offer(SATURATES, five_times(), OVERLOAD_S, tokens=lambda rng: rng.choice([4, 16, 76]))
    assert result.goodput(OVERLOAD_S / 2, OVERLOAD_S) >= PEAK
    assert len(result.late) <= 0.05 * len(result.answered)


def test_answers_that_end_earlier_than_they_may_are_expected_to():
    """All may have 320 tokens and have 32: after a while as many run as if they had said so."""
    told = offer(SATURATES, five_times(), OVERLOAD_S, deadline_s=5.0)
    result = offer(SATURATES, five_times(), OVERLOAD_S, deadline_s=5.0, allowed=320)
    assert result.goodput(OVERLOAD_S / 2, OVERLOAD_S) >= 0.9 * told.goodput(OVERLOAD_S / 2, OVERLOAD_S)


def test_a_stage_without_memory_for_all_of_them_does_not_refuse_many():
    result = offer(Model(0.01, 0.005, room=12), five_times(), OVERLOAD_S, deadline_s=20.0)
    assert result.goodput(OVERLOAD_S / 2, OVERLOAD_S) >= 0.9 * 12 / (0.01 + 0.005 * 12) / TOKENS
    assert sum(at > 10 for at in result.full) <= 0.05 * len(result.answered)


def test_where_the_machine_is_shared_what_it_has_at_the_moment_is_used():
    """Every second it is between 0.4 and 1 times as fast: 0.7 on average."""
    result = offer(
        SATURATES, five_times(), OVERLOAD_S, deadline_s=10.0, speed=lambda rng: rng.uniform(0.4, 1.0)
    )
    assert result.goodput(OVERLOAD_S / 2, OVERLOAD_S) >= 0.8 * 0.7 * PEAK
    assert len(result.late) <= 0.1 * len(result.answered)


def test_who_is_refused_is_nearly_always_told_so_at_once():
    result = offer(SATURATES, five_times(), OVERLOAD_S, deadline_s=10.0)
    assert len(result.in_vain) <= 0.03 * len(result.refused)


def test_long_requests_that_leave_each_other_alone_are_not_served_one_by_one():
    """Each takes two thirds of its time whether it is alone or not: in the end many run at once."""
    flat = Model(alone_s=0.1, each_s=0.001)
    result = offer(flat, lambda at: 20.0, 120.0, deadline_s=5.0, max_active=64)
    assert result.goodput(90.0, 120.0) >= 3.0, "one by one it would be 0.3"


def test_a_stall_costs_about_what_it_lasts():
    result = offer(SATURATES, five_times(), OVERLOAD_S, deadline_s=10.0, stalls=[(20, 22)])
    assert result.goodput(24, OVERLOAD_S) >= 0.75 * PEAK
    assert not [at for at in result.refused if at < 1.0]


def test_under_overload_high_ones_are_answered_and_low_ones_wait_or_go():
    classes = [Priority.HIGH] + [Priority.NORMAL] * 4 + [Priority.LOW] * 5
    result = offer(
        SATURATES, five_times(), OVERLOAD_S, deadline_s=5.0, priority=lambda rng: rng.choice(classes)
    )
    offered = 5 * PEAK * OVERLOAD_S
    high = sum(each is Priority.HIGH for each in result.classes)
    low = sum(each is Priority.LOW for each in result.classes)
    assert high >= 0.75 * offered / 10
    assert low <= 0.1 * offered / 2


def test_below_the_peak_nobody_waits_or_is_refused():
    result = offer(SATURATES, lambda at: PEAK / 2, OVERLOAD_S, deadline_s=5.0)
    assert not result.refused
    assert not result.late
    assert max(result.waits) == 0.0


def test_a_burst_with_time_enough_begins_at_once():
    """Sixty-four at the same moment, at a model that nothing is known of."""
    result = offer(SATURATES, lambda at: 6400.0 if at < 0.015 else 0.0, 15.0, deadline_s=40.0)
    assert len(result.answered) >= 50
    assert not result.refused
    assert not result.late
    assert max(result.waits) <= 0.5
