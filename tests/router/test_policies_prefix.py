"""Prefix affinity: prompts go where their beginning was computed, as long as waiting there is not dearer."""

import random
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.policies import Ask, Candidate, PrefixAffinity

from stagemesh.prefix import digests

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

RNG = random.Random(0)


def ask(*words):
    """A prompt of one block for each word."""
    return Ask(token_ids=[token for word in words for token in struct.pack("<16s", word.encode())])


def three(**active):
    return [Candidate(name, active=active.get(name, 0)) for name in "abc"]


def choose(policy, asked, **active):
    return policy.choose(three(**active), 0.0, RNG, asked).replica_id


@RELAXED
@given(st.lists(st.integers(0, 2**32 - 1), min_size=33, max_size=100))
def test_digests_are_those_of_the_stages_so_that_they_may_tell_theirs(tokens):
    assert list(Ask(token_ids=tokens).blocks) == digests(tokens)


@RELAXED
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=30), st.integers(1, 6))
def test_the_longest_known_prefix_wins_and_its_last_owner(history, length):
    policy, owner = PrefixAffinity(), {}
    for replica, words in history:
        blocks = ask(*"prompt"[:words]).blocks
        policy.learned("abc"[replica], blocks)
        owner.update(dict.fromkeys(blocks, "abc"[replica]))
    asked = ask(*"prompt"[:length])
    known = [owner[block] for block in asked.blocks if block in owner]
    chosen = choose(policy, asked)
    assert not known or chosen == known[-1]


def test_it_goes_back_there_only_while_the_wait_is_shorter_than_what_it_spares():
    long, short = [f"w{i}" for i in range(16)], ["w0"]  # 256 tokens: four steps; 16: a quarter of one
    for words, ahead, back in [(long, 4, True), (long, 5, False), (short, 0, True), (short, 1, False)]:
        policy = PrefixAffinity()
        policy.learned("b", ask(*words).blocks)
        chosen = choose(policy, ask(*words, "more"), a=3, b=3 + ahead, c=3)
        assert (chosen == "b") == back, (len(words), ahead)
        assert choose(policy, ask(*words, "more"), a=3, b=3, c=3) == chosen, "whoever got it is preferred now"


def test_it_goes_elsewhere_when_the_owner_left():
    policy = PrefixAffinity()
    policy.learned("gone", ask("x", "y").blocks)
    policy.learned("c", ask("x").blocks)
    assert choose(policy, ask("x", "y")) == "c", "the longest prefix that somebody present has"


def test_what_a_replica_dropped_is_not_gone_back_for():
    policy = PrefixAffinity()
    policy.learned("b", ask("x", "y").blocks)
    policy.forgotten("a", ask("x", "y").blocks)
    assert choose(policy, ask("x", "y"), b=0, a=0, c=0) == "b", "it was not that one's"
    policy.forgotten("b", ask("x", "y").blocks)
    assert "blocks=0/" in repr(policy)


@RELAXED
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=16, max_size=64), min_size=10, max_size=20, unique_by=tuple)
)
def test_memory_is_bounded(prompts):
    policy = PrefixAffinity(most_blocks=5)
    for tokens in prompts:
        policy.choose(three(), 0.0, RNG, Ask(token_ids=tokens))
        assert int(repr(policy).split("=")[1].split("/")[0]) <= 5


def test_the_longest_unused_goes_first():
    policy, long = PrefixAffinity(most_blocks=8), list("wxyz")
    policy.learned("b", ask(*long).blocks)
    policy.learned("a", ask(*"1234").blocks)
    policy.learned("b", ask(*long).blocks)
    policy.learned("c", ask(*"5678").blocks)
    assert choose(policy, ask(*long), b=1) == "b", "it spares more than the one session there costs"
    assert choose(policy, ask(*"1234"), a=1) != "a", "forgotten"
