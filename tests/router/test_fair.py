"""Fair shares between tenants and models: of the queue alone, and of admission in virtual time."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.admission.fair import Clock, FairQueue, Share
from stagemesh.services.router.admission.priority import Priority
from stagemesh.services.router.admission.queue import Admission, Ending, Ticket

from stagemesh.errors import ResourceExhausted

NORMAL = Priority.NORMAL
SIZES = st.integers(1, 50)


def ticket(tenant, weight=1.0, size=1.0, now=0.0, model="m", priority=NORMAL, model_weight=1.0):
    return Ticket(
        model, priority, now, now + 1e9, size=float(size), tenant=tenant, weight=weight, model_weight=model_weight
    )  # fmt: skip


def serve(queue):
    """Let the one go whose turn it is."""
    [found] = queue.first_few(1)
    queue.remove(found)
    queue.charge(found, found.size)
    return found


@given(
    st.lists(st.tuples(st.sampled_from("ab"), SIZES), min_size=300, max_size=300),
    st.sampled_from([1, 2, 3, 7]),
)
def test_two_that_always_wait_are_given_units_by_their_weights(asked, times):
    """At no moment are they further apart than by the largest request of each."""
    weights, sizes, given_to = {"a": 1.0, "b": float(times)}, {"a": [], "b": []}, {"a": 0.0, "b": 0.0}
    for tenant, size in asked:
        sizes[tenant].append(size)
    queue = FairQueue()
    for tenant, weight in weights.items():
        for size in sizes[tenant]:
            queue.add(ticket(tenant, weight, size))
    left = {tenant: len(found) for tenant, found in sizes.items()}
    while all(left.values()):
        went = serve(queue)
        left[went.tenant] -= 1
        given_to[went.tenant] += went.size
        apart = abs(given_to["a"] / weights["a"] - given_to["b"] / weights["b"])
        assert apart <= 50 / weights["a"] + 50 / weights["b"]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), SIZES)))
def test_to_begin_is_to_wake_and_to_be_charged(moves):
    """Shares of weights 1, 2 and 3 move alike in one step and in two, in any order with others that were waiting."""
    sides = [(Clock(), [Share(weight) for weight in (1.0, 2.0, 3.0)]) for _ in range(2)]
    for which, waited, units in moves:
        for in_one, (clock, shares) in enumerate(sides):
            share = shares[which]
            if in_one and not waited:
                share.begin(clock, units)
            else:
                if not waited:
                    share.wake(clock)
                share.charge(clock, units)
    assert len({(clock.now, *(each.tag for each in shares)) for clock, shares in sides}) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "serve", "remove", "settle"]), st.sampled_from("abcd"), SIZES, st.integers(0, 99)
        ),
        max_size=120,
    )
)  # fmt: skip
def test_nobody_is_lost_each_tenants_own_order_holds_and_a_look_changes_nothing(moves):
    queue, waiting, served = FairQueue(), [], []
    for what, tenant, size, pick in moves:
        if what == "add":
            waiting.append(ticket(tenant, "abcd".index(tenant) + 1.0, size))
            queue.add(waiting[-1])
        elif what == "serve" and waiting:
            first = queue.first_few(16)
            assert queue.first_few(16) == first
            went = serve(queue)
            assert went is first[0]
            waiting.remove(went)
            served.append(went)
        elif what == "remove" and waiting:
            gone = waiting.pop(pick % len(waiting))
            assert queue.remove(gone)
            assert not queue.remove(gone)
        elif what == "settle" and served:
            queue.settle(served.pop(), pick - 50.0)
        few = queue.first_few(16)
        assert len(few) == len(set(few)) == min(16, len(waiting))
        assert set(few) <= set(waiting)
        for each in "abcd":
            own = [one for one in waiting if one.tenant == each]
            assert [one for one in few if one.tenant == each] == own[: sum(one.tenant == each for one in few)]
        assert list(queue) == waiting
        assert queue.asked == sum(one.size for one in waiting)


@given(st.lists(SIZES, min_size=1, max_size=100), SIZES)
def test_who_comes_to_a_long_queue_of_another_goes_next_and_saves_nothing_up(sizes, size):
    queue = FairQueue()
    for each in sizes:
        queue.add(ticket("many", 1.0, each))
    for _ in range(len(sizes) // 2):
        serve(queue)
    queue.add(ticket("one", 1.0, size))
    later = ticket("one", 1.0, size)
    queue.add(later)
    went = [serve(queue).tenant for _ in range(min(2, len(queue)))]
    assert "one" in went, "at most one goes before it"
    assert queue.before(later) <= len(queue) * 50


def test_a_request_that_was_shorter_than_it_might_have_been_is_charged_for_what_it_took():
    queue = FairQueue()
    for tenant in "ab":
        for _ in range(40):
            queue.add(ticket(tenant, 1.0, 100))
    units, given_to = {"a": 100.0, "b": 10.0}, {"a": 0.0, "b": 0.0}
    for _ in range(44):
        went = serve(queue)
        queue.settle(went, units[went.tenant] - 100)
        given_to[went.tenant] += units[went.tenant]
    assert abs(given_to["a"] - given_to["b"]) <= 200


def test_before_counts_others_only_as_far_as_their_weights_let_them_go_first():
    queue = FairQueue()
    for _ in range(100):
        queue.add(ticket("many", 1.0, 10))
    assert queue.before(ticket("many", 1.0, 10)) == 1000
    assert queue.before(ticket("few", 1.0, 10)) == 10
    assert queue.before(ticket("few", 4.0, 10)) == 2.5


def delivered(tenants, seconds=60.0, *, places=8, size=20, rate=400.0, load=40.0, **more):
    """Units given to each tenant (or model) of a model that makes `rate` units a second, and the tickets refused.

    `tenants`: name -> ticket arguments; each offers `load` requests a second at a time between `begins` and `ends`.
    """
    admission = Admission(max_active=places, max_waiting=more.get("max_waiting", 10_000), max_wait_s=1e9)
    given_to, refused, running, waits = dict.fromkeys(tenants, 0.0), dict.fromkeys(tenants, 0), {}, {}
    now, step, numbers = 0.0, 0.05, count()

    def follow(moves):
        for each, _ in moves.refused:
            refused[each.tenant] += 1
        for each in moves.started:
            running[each] = 0.0
            waits.setdefault(each.tenant, []).append(now - each.arrived)

    while now < seconds:
        now += step
        for tenant, what in tenants.items():
            begins, ends = what.get("when", (0, seconds))
            if begins <= now < ends:
                for _ in range(int(load * step)):
                    next(numbers)
                    asked = ticket(
                        tenant, size=size, now=now, **{k: v for k, v in what.items() if k != "when"}
                    )
                    try:
                        follow(admission.arrive(asked))
                    except ResourceExhausted:
                        refused[tenant] += 1
        for each in list(running):
            running[each] += rate * step / max(len(running), 1)
            follow(admission.progress(each, rate * step / max(len(running), 1), now))
            if each in running and running[each] >= size:
                given_to[each.tenant] += running.pop(each)
                follow(admission.leave(each, now, Ending.WELL))
    return given_to, refused, waits


def test_admission_gives_two_tenants_of_weights_one_and_three_units_as_one_to_three():
    given_to, _, waits = delivered({"a": {"weight": 1.0}, "b": {"weight": 3.0}})
    assert given_to["b"] / given_to["a"] == pytest.approx(3, rel=0.1)
    assert given_to["a"] > 0.9 * 60 * 400 / 4
    assert waits["a"], "nobody starves"


def test_the_share_of_one_who_is_away_goes_to_the_others():
    given_to, _, _ = delivered(
        {"a": {}, "b": {"weight": 3.0, "when": (0, 20)}, "c": {"when": (40, 60)}}, load=60.0
    )
    assert sum(given_to.values()) > 0.9 * 60 * 400
    # b has a queue for longer than it asks: 60 a second x 20 units for 20 s, at three quarters of 400.
    assert given_to["b"] > 0.65 * 60 * 400


def test_one_tenant_that_fills_the_queue_keeps_nobody_out():
    """The second comes when every place in the queue is taken, and waits about as long as its own requests take."""
    given_to, refused, waits = delivered(
        {"many": {}, "few": {"when": (20, 60)}}, max_waiting=50, load=40.0, seconds=60.0
    )
    assert given_to["few"] / 40 == pytest.approx(200, rel=0.15)
    assert refused["many"] > 300
    assert sorted(waits["few"])[len(waits["few"]) // 2] < 6.0


def test_a_higher_class_goes_before_any_share():
    given_to, _, waits = delivered(
        {"a": {"weight": 100.0}, "b": {"weight": 1.0, "priority": Priority.HIGH}}, seconds=9.0, load=20.0
    )
    assert given_to["b"] > 0.8 * 9 * 400
    assert max(waits["b"]) < 3.0


def test_models_share_places_by_their_weights():
    """Eight places, each model asks for all of them."""
    tenants = {
        "a": {"model": "a", "model_weight": 1.0},
        "b": {"model": "b", "model_weight": 3.0},
    }
    given_to, _, _ = delivered(tenants)
    assert given_to["b"] / given_to["a"] == pytest.approx(3, rel=0.15)


def test_a_models_weight_is_that_of_its_latest_request():
    admission = Admission(max_active=8, max_waiting=8)
    for weight in (1.0, 3.0, 2.0):
        admission.arrive(ticket("a", model_weight=weight))
        admission.arrive(ticket("a", model_weight=weight))
        assert admission.lane("m").weight == weight
