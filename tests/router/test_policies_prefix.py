"""Prefix affinity: prompts go where their beginning is held, as long as waiting there takes less than that spares."""

import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.policies import Ask, Candidate, P2cEwma, PrefixAffinity
from stagemesh.services.router.policies.candidate import FRESH_S
from stagemesh.services.router.policies.expected import MOST_NEW, expected_ms

from stagemesh.prefix import BLOCK, digests

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN_MS, DECODE_MS = 0.5, 10.0
PROMPT = 64 * BLOCK

known = st.one_of(st.just(0.0), st.floats(0.01, 100))
replicas = st.lists(
    st.builds(
        Candidate,
        replica_id=st.sampled_from([f"r{i}" for i in range(12)]),
        ready=st.booleans(),
        active=st.integers(0, 20),
        told_at=st.sampled_from([-float("inf"), -5.0, 0.0]),
        told_sessions=st.integers(0, 20),
        steps_ms=st.floats(0, 1e3),
        prompts=st.integers(0, 10_000),
        others_prompts=st.integers(0, 10_000),
        token_ms=known,
        decode_ms=known,
        kv_free=st.integers(0, 3000),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each.replica_id,
)
holdings = st.dictionaries(st.sampled_from([f"r{i}" for i in range(12)]), st.integers(1, 64))


def told(name, **more):
    given_ = {"told_at": 0.0, "token_ms": TOKEN_MS, "decode_ms": DECODE_MS, **more}
    return Candidate(name, **given_)


def asking(held, new_tokens=0, tokens=PROMPT):
    return Ask(token_ids=range(tokens), new_tokens=new_tokens, held=held)


def choose(offered, ask, seed=0):
    return PrefixAffinity().choose(offered, 0.0, random.Random(seed), ask).replica_id


@RELAXED
@given(st.lists(st.integers(0, 2**32 - 1), min_size=33, max_size=100))
def test_digests_are_those_of_the_stages(tokens):
    assert list(Ask(token_ids=tokens).blocks) == digests(tokens)


@RELAXED
@given(replicas, st.integers())
def test_prompts_of_which_nobody_holds_anything_are_balanced_as_usual(offered, seed):
    assume(any(each.ready for each in offered))
    usual = P2cEwma().choose(offered, 0.0, random.Random(seed)).replica_id
    assert choose(offered, asking({}), seed) == usual
    assert choose(offered, asking({"somebody else": 9}), seed) == usual


@RELAXED
@given(replicas, holdings, st.integers(0, 500), st.integers())
def test_the_choice_is_never_expected_to_take_longer_than_the_balanced_one(offered, held, new, seed):
    assume(any(each.ready for each in offered))
    usual = P2cEwma().choose(offered, 0.0, random.Random(seed))
    name = choose(offered, asking(held, new), seed)
    compared = [each for each in offered if each.ready and each.replica_id in held]
    compared += [] if usual in compared else [usual]
    times = dict(
        zip(
            (each.replica_id for each in compared),
            expected_ms(compared, held, PROMPT, new, 0.0),
            strict=True,
        )
    )
    assert name in times, "the balanced choice, or one that holds something"
    assert times[name] == min(times.values())


@RELAXED
@given(replicas, holdings, st.integers(0, 64), st.integers())
def test_the_order_of_the_replicas_means_nothing(offered, held, active, seed):
    """With a balanced choice that is certain: one idle replica among busy ones."""
    offered = [each for each in offered if each.ready]
    assume(offered)
    idle, *others = offered
    fixed = [told(idle.replica_id)] + [told(each.replica_id, active=active + 1) for each in others]
    mixed = random.Random(seed).sample(fixed, len(fixed))
    one, other = choose(fixed, asking(held), seed), choose(mixed, asking(held), seed + 1)
    # Of those that are alike in everything it may be any.
    assert (one == idle.replica_id, held.get(one)) == (other == idle.replica_id, held.get(other))


def test_equals_share():
    offered = [told(name) for name in "abcd"]
    held = asking({"b": 3, "c": 3, "d": 2})
    assert {choose(offered, held, seed) for seed in range(40)} == {"b", "c"}


@RELAXED
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 64), min_size=1), st.integers())
def test_of_equals_the_longest_prefix_wins(held, seed):
    offered = [told(name) for name in "abcd"]
    assert held[choose(offered, asking(held), seed)] == max(held.values())


@RELAXED
@given(st.integers(1, 63), st.integers(0, 3000), st.integers())
def test_it_waits_there_only_as_long_as_that_spares(blocks, queue, seed):
    """Prompts that wait, against blocks that are there: tokens against tokens, where all are as fast."""
    offered = [told("here", prompts=queue, active=1), told("there")]
    chosen = choose(offered, asking({"here": blocks}), seed)
    assert chosen == ("here" if queue <= blocks * BLOCK else "there")


@RELAXED
@given(st.integers(1, 63), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 2000), st.integers())
def test_measured_times_decide_and_once_it_is_left_it_stays_so(blocks, here_ms, there_ms, steps_ms, seed):
    """Milliseconds, not tokens: a slow replica's prefix is worth what computing it there or elsewhere takes."""
    there = told("there", token_ms=there_ms)
    gone = False
    for queue in range(0, 4000, 250):
        here = told("here", token_ms=here_ms, others_prompts=queue, steps_ms=steps_ms, active=1)
        chosen = choose([here, there], asking({"here": blocks}), seed)
        waits = queue * here_ms + steps_ms
        spares = PROMPT * there_ms - (PROMPT - blocks * BLOCK) * here_ms
        if abs(waits - spares) > 1e-6 * max(waits, abs(spares)):
            assert chosen == ("here" if waits < spares else "there")
        assert not (gone and chosen == "here")
        gone = gone or chosen == "there"


def test_a_crowd_that_shares_a_beginning_is_spread_before_the_replica_that_has_it_says_a_word():
    """Sessions that stay: each takes its part of every pass, and what was told is from before they came."""
    active = {"has": 0, "has not": 0}
    for _ in range(40):
        offered = [told(name, active=count) for name, count in active.items()]
        active[choose(offered, asking({"has": 60}, new_tokens=5))] += 1
    assert active["has"] > active["has not"] > 10


def test_room_that_is_left_is_used_before_beginnings_are_given_up():
    full, empty = told("has", kv_free=0), told("empty", kv_free=PROMPT)
    one = [told("has", active=1), told("empty")]  # so that the balanced choice is certain
    for held, wanted in ((10, "empty"), (40, "has")):
        offered = [full, empty]
        assert choose(one, asking({"has": held})) == "has"
        assert choose([told("has", active=1, kv_free=0), one[1]], asking({"has": held})) == wanted
        times = expected_ms(offered, {"has": held}, PROMPT, 0, 0.0)
        assert times == [2 * (PROMPT - held * BLOCK) * TOKEN_MS, PROMPT * TOKEN_MS]


def test_slow_steps_count_for_long_answers_only():
    offered = [told("has", decode_ms=2 * DECODE_MS, active=1), told("has not")]
    assert choose(offered, asking({"has": 60}, new_tokens=4)) == "has"
    assert choose(offered, asking({"has": 60}, new_tokens=MOST_NEW)) == "has not"
    assert choose(offered, asking({"has": 60}, new_tokens=10**6), seed=1) == "has not"


def test_a_bad_moment_keeps_nobody_away_for_long():
    """Who measured slow times and was left alone for that is tried again, and measures again."""
    for age_s, wanted in ((0.0, "quick"), (10.0, "slow once")):
        slow = told("slow once", token_ms=3 * TOKEN_MS, decode_ms=4 * DECODE_MS, told_at=-age_s)
        quick = told("quick", prompts=200, active=1)
        assert choose([slow, quick], asking({"slow once": 1, "quick": 1}, new_tokens=9)) == wanted


def test_who_is_slow_beyond_doubt_is_not_tried_again_for_its_silence():
    slow = told("slow", token_ms=8 * TOKEN_MS, told_at=-60.0, mean_ms=80.0, doubt=1.2)
    quick = told("quick", mean_ms=10.0, doubt=1.2, prompts=2000, active=1)
    assert choose([slow, quick], asking({"slow": 1, "quick": 1})) == "quick"
    known = told("slow", told_at=0.0, mean_ms=80.0, doubt=1.2)
    assert expected_ms([known, quick], {}, PROMPT, 0, 0.0)[0] == PROMPT * TOKEN_MS, "its own time, just told"


def test_what_waited_long_ago_is_done():
    here = told("here", others_prompts=10**6, active=1, told_at=-FRESH_S)
    assert choose([here, told("there")], asking({"here": 1})) == "here"


@pytest.mark.parametrize("known", [{}, {"token_ms": 0.5}, {"decode_ms": 10.0}])
def test_who_told_nothing_yet_counts_as_fast_as_the_fastest(known):
    new = Candidate("new")
    old = Candidate("old", told_at=0.0, **known)
    times = expected_ms([new, old], {}, PROMPT, 100, 0.0)
    assert times[0] == times[1] > 0
    assert choose([new, old], asking({"old": 1})) == "old"
    assert choose([new, old], asking({"new": 1})) == "new"


def test_a_prompt_that_is_held_whole_still_costs_its_last_token():
    assert expected_ms([told("a")], {"a": 64}, PROMPT, 0, 0.0) == [TOKEN_MS]
