"""Whole stages in virtual time: who is ejected, what share is left to it, and when it comes back."""

import heapq
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.router.health.replica import CANARY_SHARE, TERMS
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.routing import Routing

from stagemesh.v1.stage_pb2 import ReplicaLoad

from .specs import listing, model, replica

STEPS = 10
"""Steps of a session."""


class World:
    """One stage of `names`; sessions arrive at random, each runs `STEPS` passes on the replica chosen for it."""

    def __init__(self, names, *, seed=0, rate=20.0, step_ms=10.0, **records):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.rate = rate
        self.step_ms = dict.fromkeys(names, step_ms)
        self.fails = dict.fromkeys(names, 0.0)
        self.noise = 0.2
        # Of a replica: which part of its passes, and how many times longer these take. It reports an average, as replicas do.
        self.stutters = dict.fromkeys(names, (0.0, 1.0))
        self._average = dict.fromkeys(names, step_ms)
        self.loads, membership = Loads(), Membership(grace_s=5.0)
        membership.snapshot(listing(*(replica(name, 0, 1, **records.get(name, {})) for name in names)), 0.0)
        self.spec = model(stages=1)
        self.routing = Routing(membership, self.loads, default_policy="p2c_ewma")
        self.notices, self.routed = [], []
        self.loads.health.notice = self.notices.append
        self._events, self._order = [], itertools.count()

    def run(self, seconds, policy=""):
        """Let time pass; sessions that break are routed again."""
        end = self.now + seconds
        arrival = self.now + self.rng.expovariate(self.rate)
        while True:
            if self._events and self._events[0][0] < min(arrival, end):
                self.now, _, act = heapq.heappop(self._events)
                act()
            elif arrival < end:
                self.now = arrival
                arrival += self.rng.expovariate(self.rate)
                self._begin(policy)
            else:
                self.now = end
                return

    def until_well(self, name, seconds, policy=""):
        """Let time pass until it is well, and see that it gets its share again."""
        late = self.now + seconds
        while self.loads.health.words(name, self.now) != "well":
            assert self.now < late, self.loads.health
            self.run(5, policy)
        since = self.now
        self.run(5, policy)
        assert self.share(name, since) > 0.2

    def share(self, name, since):
        """The part of the sessions begun after `since` that went to it."""
        picks = Counter(chosen for at, chosen in self.routed if at >= since)
        return picks[name] / sum(picks.values())

    def ejections(self, name):
        return [notice.reason for notice in self.notices if notice.replica_id == name and notice.reason]

    def _begin(self, policy, avoid=()):
        hop = self.routing.choose(self.spec, self.now, self.rng, override=policy, avoid=avoid)[0]
        self.routed.append((self.now, hop.replica_id))
        self.loads.begin([hop.replica_id])
        fails_at = self.rng.randrange(STEPS) if self.rng.random() < self.fails[hop.replica_id] else -1
        self._step(hop.replica_id, 0, fails_at, policy)

    def _step(self, name, step, fails_at, policy):
        ms = self.step_ms[name] * self.rng.lognormvariate(0, self.noise)
        part, longer = self.stutters[name]
        if part and self.rng.random() < part:
            ms *= longer

        def done():
            if step == fails_at:
                self.loads.failed(name, self.now)
                self.loads.end([name])
                self._begin(policy, {name})
                return
            self._average[name] += 0.2 * (ms - self._average[name])
            told = self._average[name] if part else ms
            self.loads.report([ReplicaLoad(replica_id=name, sessions=1, step_ms=told)], self.now)
            if step + 1 < STEPS:
                self._step(name, step + 1, fails_at, policy)
            else:
                self.loads.succeeded([name], self.now)
                self.loads.end([name])

        heapq.heappush(self._events, (self.now + ms / 1000, next(self._order), done))


@pytest.mark.parametrize("policy", ["p2c_ewma", "round_robin", "weighted"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_that_becomes_ten_times_slower_loses_its_share_and_gets_it_back_when_well(policy, seed):
    world = World("abc", seed=seed, rate=10.0)
    world.run(20, policy)
    assert world.share("a", 0) > 0.2
    assert not world.notices
    world.step_ms["a"] = 100.0
    world.run(10, policy)
    assert "slow" in world.ejections("a")
    world.run(30, policy)
    assert world.share("a", 30.0) < 0.05
    assert world.loads.health.words("a", world.now).startswith("ejected (slow)")
    assert all(notice.reason for notice in world.notices), (
        "its canaries were slow as well: it did not come back"
    )
    world.step_ms["a"] = 10.0
    world.until_well("a", 90, policy)
    assert not world.ejections("b") + world.ejections("c")


def test_one_that_is_slow_in_some_passes_only_does_not_come_back_by_a_lucky_canary():
    """By its last report one canary lets it back in more than every other time within these forty seconds."""
    returns = 0
    for seed in range(12):
        world = World("abc", seed=seed, rate=10.0)
        world.run(20)
        world.stutters["a"] = (0.2, 50.0)
        world.run(50)
        assert "slow" in world.ejections("a")
        assert world.share("a", 30.0) < 0.05
        returns += sum(not notice.reason for notice in world.notices)
    assert returns <= 1


def test_one_that_fails_one_session_in_twenty_loses_its_share_and_gets_it_back_when_well():
    """When it is found out is a matter of luck, and so is whether it fails again soon: the average counts."""
    shares = []
    for seed in range(6):
        world = World("abc", seed=seed, rate=30.0)
        world.run(10)
        world.fails["a"] = 0.05
        world.run(50)
        assert {"errors", "failing"} >= set(world.ejections("a")) != set()
        shares.append(world.share("a", 20.0))
        world.fails["a"] = 0.0
        world.until_well("a", 150)
        assert not world.ejections("b") + world.ejections("c")
    assert sum(shares) / len(shares) < 0.05, shares


def test_one_that_fails_always_gets_but_canaries():
    world = World("abc", rate=60.0)
    world.fails["a"] = 1.0
    world.run(30)
    canaries = sum(chosen == "a" for at, chosen in world.routed if at > 2)
    assert canaries <= 6
    assert world.share("a", 0) < 1 / CANARY_SHARE


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 7), st.integers(0, 7), st.booleans(), st.integers(0, 2**32))
def test_never_more_than_half_of_a_stage_is_ejected(replicas, bad, slow, seed):
    names = "abcdefg"[:replicas]
    world = World(names, seed=seed, rate=15.0)
    world.run(5)
    for name in names[:bad]:
        if slow:
            world.step_ms[name] = 300.0
        else:
            world.fails[name] = 1.0
    ejected, most = set(), 0

    def notice(what):
        nonlocal most
        (ejected.add if what.reason else ejected.discard)(what.replica_id)
        most = max(most, len(ejected))

    world.loads.health.notice = notice
    # A session that breaks everywhere is given up in the end.
    world._begin, begin = (lambda policy, avoid=(): begin(policy) if not avoid else None), world._begin
    world.run(25)
    assert most <= replicas // 2
    if replicas > 1 and 0 < bad <= replicas // 2 and not slow:
        assert most == bad


def test_a_whole_stage_that_slows_down_has_no_outlier():
    world = World("abc", rate=5.0)
    world.run(10)
    world.step_ms = dict.fromkeys("abc", 200.0)
    world.run(20)
    assert not world.notices


def test_hardware_that_was_always_slower_is_a_matter_of_balance_not_of_health():
    slow = {"canary_ms": 80.0}
    world = World("abc", rate=10.0, a=slow, b={"canary_ms": 10.0}, c={"canary_ms": 10.0})
    world.step_ms["a"] = 80.0
    world.run(60)
    assert not world.notices
    assert 0 < world.share("a", 20) < 0.2


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_a_noisy_machine_is_no_ill_health(seed):
    world = World("abc", seed=seed)
    world.noise = 0.8  # one pass in six takes twice as long, or half
    world.run(30)
    assert not world.notices


def test_a_canary_is_not_a_session_that_broke_before():
    world = World("ab", rate=1.0)
    for _ in range(6):
        world.loads.failed("a", 0.0)
    rng = random.Random(0)
    for _ in range(CANARY_SHARE + 1):
        world.routing.choose(world.spec, 1.0, rng)
    late = TERMS["failing"].eject_s + 1
    assert world.routing.choose(world.spec, late, rng, avoid={"c"})[0].replica_id == "b"
    assert world.routing.choose(world.spec, late, rng)[0].replica_id == "a", "the canary"
    assert world.routing.choose(world.spec, late, rng)[0].replica_id == "b"


def test_after_three_good_canaries_it_comes_back_bit_by_bit():
    world = World("ab")
    for _ in range(6):
        world.loads.failed("a", 0.0)
    rng = random.Random(0)

    def taken(at, times=200):
        picks = [world.routing.choose(world.spec, at, rng, override="round_robin") for _ in range(times)]
        return sum(route[0].replica_id == "a" for route in picks)

    assert taken(1.0) == 0
    for second in (11.0, 12.0, 13.0):
        assert taken(second) == 1, "a canary"
        world.loads.succeeded(["a"], second + 0.5)
    assert [notice.reason for notice in world.notices] == ["failing"]
    assert 1 <= taken(14.0) <= 30
    assert not world.notices[-1].reason
    assert 25 <= taken(20.0) <= 60
    assert taken(35.0) == 100


def test_the_ejected_one_is_taken_where_there_is_no_other():
    world = World("ab")
    for _ in range(6):
        world.loads.failed("a", 0.0)
    rng = random.Random(0)
    assert {world.routing.choose(world.spec, 1.0, rng)[0].replica_id for _ in range(20)} == {"b"}
    world.loads.failed("b", 1.0)
    chosen = {world.routing.choose(world.spec, 1.1, rng)[0].replica_id for _ in range(20)}
    assert chosen == {"b"}, "rather one held back for a moment than one ejected"
    assert world.routing.choose(world.spec, 1.1, rng, avoid={"b"})[0].replica_id == "a"


def test_a_lone_replica_is_never_ejected():
    world = World("a")
    for _ in range(20):
        world.loads.failed("a", 0.0)
    assert world.routing.choose(world.spec, 1.0, random.Random(0))[0].replica_id == "a"
    assert not world.notices


def test_who_is_gone_is_forgotten_and_its_gauge_with_it():
    world = World("ab")
    for _ in range(6):
        world.loads.failed("a", 0.0)
    world.routing.choose(world.spec, 1.0, random.Random(0))
    assert [(each.replica_id, each.reason) for each in world.notices] == [("a", "failing")]
    assert "a" in repr(world.loads.health)
    world.loads.begin(["a"])
    world.loads.end(["a"])
    world.loads.forget({"b"})
    assert world.notices[-1].gone
    assert world.loads.health.words("a", 2.0) == "well"
    assert "'a'" not in repr(world.loads.health)
