"""One replica's health, by what its sessions tell."""

import pytest
from stagemesh.services.router.health.replica import (
    CANARY_S,
    CANARY_SHARE,
    CANARY_WAIT_S,
    CONSECUTIVE,
    FIRST_SHARE,
    FORGIVEN_S,
    HOLD_S,
    LONGEST_EJECT_S,
    LONGEST_HOLD_S,
    PROVEN_S,
    TERMS,
    ReplicaHealth,
)

NEVER = float("-inf")
EJECT_S, REJOIN_S = TERMS["errors"].eject_s, TERMS["errors"].rejoin_s


def broken(*times):
    health = ReplicaHealth()
    for now in times:
        health.failed(now)
    return health


def test_it_begins_well():
    health = ReplicaHealth()
    assert health.usable()
    assert not health.troubled(0.0)
    assert (health.share(0.0), health.words(0.0)) == (1.0, "well")


def test_after_a_failure_it_is_held_back_and_then_one_session_at_a_time_tries_it():
    health = broken(10.0)
    assert not health.usable()
    assert not health.takes_canary(10 + HOLD_S - 0.1)
    assert health.words(11.0) == "held back"
    assert health.takes_canary(10 + HOLD_S)
    health.canary(12.0)
    assert health.words(12.0) == "on trial"
    assert not health.takes_canary(12.5), "one is under way"
    assert health.takes_canary(12 + CANARY_S), "it said nothing: another one may"
    health.settle(12.6, heard_at=11.9)
    assert not health.usable(), "what was told before it does not count"
    health.settle(12.6, heard_at=12.5)
    assert health.usable()
    assert health.share(12.6) == 1.0


def test_sessions_that_end_while_it_is_held_back_prove_nothing():
    health = broken(10.0)
    health.succeeded(11.0)
    health.settle(12.5, NEVER)
    assert not health.usable()
    health.succeeded(12.5)
    health.settle(12.5, NEVER)
    assert health.usable()


def test_each_failed_try_doubles_the_time_it_is_held_back_up_to_a_limit_and_a_good_one_ends_that():
    health, now, holds = broken(0.0), 0.0, []
    for _ in range(6):
        began = now
        while not health.takes_canary(now):
            now += 0.25
        holds.append(now - began)
        health.canary(now)
        for _ in range(3):
            health.failed(now)  # sessions that were there as well add nothing
    assert holds == [HOLD_S, 2 * HOLD_S, 4 * HOLD_S, 8 * HOLD_S, LONGEST_HOLD_S, LONGEST_HOLD_S]
    health.succeeded(now + LONGEST_HOLD_S)
    health.settle(now + LONGEST_HOLD_S, NEVER)
    health.failed(now + 100)
    assert health.takes_canary(now + 100 + HOLD_S)


def test_five_failures_in_a_row_are_due_however_many_sessions_run_beside_them():
    health = ReplicaHealth()
    for count in range(CONSECUTIVE):
        assert not health.due
        for _ in range(1000):
            health.began()
        health.failed(count / 10)
    assert health.due == "failing"


def test_a_success_in_between_or_a_long_time_starts_the_row_anew():
    health = ReplicaHealth()
    for count in range(3 * CONSECUTIVE):
        for _ in range(1000):
            health.began()
        health.failed(count / 10)
        if count % (CONSECUTIVE - 1) == 0:
            health.succeeded(count / 10)
    assert not health.due
    for count in range(3 * CONSECUTIVE):
        for _ in range(1000):
            health.began()
        health.failed(1000.0 + 31 * count)
    assert not health.due


@pytest.mark.parametrize(
    ("sessions", "seconds", "due"),
    [(0, 0, "errors"), (0, 20, "errors"), (30, 5, "errors"), (50, 1, ""), (0, 25, ""), (1000, 1, "")],
)
def test_two_failures_are_due_when_they_are_close_in_time_and_in_sessions(sessions, seconds, due):
    health = broken(100.0)
    assert not health.due
    for _ in range(sessions):
        health.began()
    health.failed(100.0 + seconds)
    assert health.due == due


def ejected(reason="errors", at=0.0):
    health = ReplicaHealth()
    health.eject(reason, at, 5.0)
    return health


def test_ejected_it_takes_no_canary_for_a_while_and_then_a_small_share_of_sessions():
    health = ejected()
    for _ in range(CANARY_SHARE * 3):
        health.passed_over()
    assert not health.takes_canary(EJECT_S - 0.1)
    assert health.takes_canary(EJECT_S)
    health.canary(EJECT_S)
    later = EJECT_S + CANARY_S + 0.1
    for _ in range(CANARY_SHARE - 1):
        health.passed_over()
    assert not health.takes_canary(later), "too soon after the last one"
    health.passed_over()
    assert health.takes_canary(later)


def test_where_little_goes_on_a_canary_is_due_all_the_same():
    health = ejected()
    health.passed_over()
    assert not health.takes_canary(EJECT_S + CANARY_WAIT_S - 0.1)
    assert health.takes_canary(EJECT_S + CANARY_WAIT_S)


def test_only_what_came_after_the_canary_proves_anything():
    health = ejected()
    health.succeeded(1.0)
    health.succeeded(EJECT_S + 1)
    assert not health.canary_ended(EJECT_S + 1, EJECT_S + 1)
    health.canary(20.0)
    assert not health.canary_ended(20.0, 30.0), "heard of before"
    assert not health.canary_ended(20.1, 20.9 + PROVEN_S - 1), "it may fail yet"
    assert health.canary_ended(20.1, 20.0 + PROVEN_S), "it is long and goes on well, or its client left"
    health.succeeded(20.3)
    assert health.canary_ended(NEVER, 20.3)


@pytest.mark.parametrize(("reason", "wanted"), [("errors", [3, 6, 12, 24, 24]), ("slow", [2, 2, 2])])
def test_each_time_more_canaries_have_to_do_well(reason, wanted):
    health, now = ReplicaHealth(), 0.0
    for count in wanted:
        health.eject(reason, now, 5.0)
        for left in range(count, 0, -1):
            health.canary(now)
            health.succeeded(now)
            assert health.canary_did_well() == (left == 1)
            assert not health.canary_ended(now, now + 10)
        health.rejoin(now)
        now += 1


def test_it_comes_back_with_a_share_that_grows():
    health = ejected()
    health.rejoin(20.0)
    assert health.usable()
    assert health.troubled(20.0)
    assert health.share(20.0) == FIRST_SHARE
    assert health.share(20 + REJOIN_S / 2) == 0.5
    assert health.words(20 + REJOIN_S / 2) == "rejoining at 50%"
    assert health.share(20 + REJOIN_S) == 1.0
    assert not health.troubled(20 + REJOIN_S)


def test_a_canary_that_fails_ejects_it_for_twice_as_long_and_time_forgives():
    health, now, waits = ejected(), 0.0, []
    for _ in range(5):
        waits.append(health.ejection.until - now)
        now = health.ejection.until + 1
        health.canary(now)
        health.failed(now)
    assert waits == [EJECT_S, 2 * EJECT_S, 4 * EJECT_S, LONGEST_EJECT_S, LONGEST_EJECT_S]
    assert health.ejection.normal_ms == 5.0
    health.rejoin(now)
    health.eject("errors", now + FORGIVEN_S - 1, 5.0)
    assert health.ejection.until == now + FORGIVEN_S - 1 + LONGEST_EJECT_S, "it broke again soon"
    health.rejoin(now)
    health.eject("errors", now + FORGIVEN_S + 1, 5.0)
    assert health.ejection.until == now + FORGIVEN_S + 1 + EJECT_S


def test_sessions_that_were_there_when_it_was_ejected_do_not_make_it_worse():
    health = ejected()
    for _ in range(20):
        health.failed(1.0)
    assert health.ejection.until == EJECT_S


def test_words():
    health = ejected("slow", 0.0)
    assert health.words(3.0) == "ejected (slow), 2 s left"
    assert health.words(5.0) == "ejected (slow), awaits a canary"
    health.canary(5.0)
    assert health.words(5.0) == "ejected (slow), canary runs"
    assert "slow" in repr(health)


def test_what_found_no_room_is_not_held_against_it_for_ever():
    health = broken(0.0, 1.0)
    assert health.due
    health.settle(25.0, NEVER)
    assert health.due
    health.settle(32.0, NEVER)
    assert not health.due
