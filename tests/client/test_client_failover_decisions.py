"""When a call is tried again, and where; what arrived of a stream. Pure."""

import random

import pytest

from stagemesh.client.failover import (
    ATTEMPTS,
    BUDGET_AT_MOST,
    BUDGET_OF_CALLS,
    BUDGET_PER_S,
    Failover,
    Failure,
)
from stagemesh.client.received import Received
from stagemesh.client.targets import FIRST_REST_S, LONGEST_REST_S, Targets, addresses_of
from stagemesh.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from stagemesh.v1.inference_pb2 import GenerateRequest, GenerateResponse
from stagemesh.v1.stage_pb2 import Token

A, B, C = "a:1", "b:2", "c:3"


class First(random.Random):
    """Draws the first of several, and the longest pauses."""

    def randrange(self, *_):
        return 0

    def uniform(self, _, most):
        return most


def failover(*addresses, attempts=ATTEMPTS, reached=True):
    made = Failover(addresses or (A, B), attempts=attempts, rng=First(), now=0.0)
    made.reached = reached
    return made


LOST = Failure(Unavailable("connection reset"), answered=False)


def refused(retry_after_s=None):
    return Failure(Unavailable("shutting down", retry_after_s=retry_after_s), answered=True)


def busy(retry_after_s=1.0):
    return Failure(ResourceExhausted("too many", retry_after_s=retry_after_s), answered=True)


# ---- targets ----


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a:1", ("a:1",)),
        (" a:1 ,b:2,", ("a:1", "b:2")),
        (["a:1", "b:2,c:3", "a:1"], ("a:1", "b:2", "c:3")),
        ("[::1]:8001", ("[::1]:8001",)),
    ],
)
def test_addresses(given, found):
    assert addresses_of(given) == found


@pytest.mark.parametrize("given", ["", " , ", [], "host", "host:", ":8001", ["a:1", "b:x"]])
def test_addresses_that_are_none(given):
    with pytest.raises(InvalidArgument) as caught:
        addresses_of(given)
    assert caught.value.field == "address"


def test_clients_with_the_same_list_share_the_routers_out():
    drawn = [Targets((A, B), random.Random(seed)).current for seed in range(400)]
    assert 150 < drawn.count(A) < 250


def test_it_keeps_to_one_router_until_that_one_fails():
    targets = Targets((A, B, C), First())
    assert {targets.choose((), now)[0] for now in range(100)} == {A}
    targets.lost(A, 100.0)
    assert targets.choose((), 100.0) == (B, 0.0)
    assert targets.choose((), 10_000.0) == (B, 0.0), "it went back though the other one is well"


def test_a_router_that_stays_away_is_left_alone_for_longer_each_time():
    targets = Targets((A,), First())
    rests, now = [], 0.0
    for _ in range(8):
        targets.lost(A, now)
        targets.lost(A, now)  # of many streams that break at once the first one counts
        rests.append(targets.choose((), now)[1])
        now += rests[-1]
    assert rests[0] == FIRST_REST_S
    assert rests[1:4] == pytest.approx([2 * rests[0], 4 * rests[0], 8 * rests[0]])
    assert rests[-1] == LONGEST_REST_S
    targets.answered(A)
    assert targets.choose((), now) == (A, 0.0)
    targets.lost(A, now)
    assert targets.choose((), now)[1] == pytest.approx(FIRST_REST_S)


def test_pauses_are_drawn():
    rests = set()
    for seed in range(20):
        targets = Targets((A,), random.Random(seed))
        targets.lost(A, 0.0)
        rests.add(targets.choose((), 0.0)[1])
    assert len(rests) == 20
    assert all(FIRST_REST_S / 2 <= rest <= FIRST_REST_S for rest in rests)


# ---- calls ----


def test_a_broken_connection_moves_the_call_at_once():
    client = failover()
    journey = client.begin(100.0, 0.0)
    assert journey.address == A
    assert journey.failed(LOST, 1.0) == 0.0
    assert journey.address == B
    journey.heard()
    stats = client.stats()
    assert (stats.target, stats.calls, stats.retries, stats.moves, stats.gave_up) == (B, 1, 1, 1, 0)
    assert stats.failures == {A: 1, B: 0}


@pytest.mark.parametrize(
    "failure",
    [
        Failure(InvalidArgument("x: bad", field="x"), answered=True),
        Failure(NotFound("no such model"), answered=True),
        Failure(DeadlineExceeded("too late"), answered=False),
        Failure(InternalError("internal error"), answered=True),
        Failure(ResourceExhausted("message larger than max"), answered=False),
    ],
)
def test_what_another_router_would_say_as_well_is_not_tried_again(failure):
    client = failover()
    with pytest.raises(type(failure.error)):
        client.begin(100.0, 0.0).failed(failure, 1.0)
    assert client.stats().retries == client.stats().gave_up == 0


def test_a_call_that_a_router_cancelled_moves():
    journey = failover().begin(100.0, 0.0)
    assert journey.failed(Failure(Cancelled("CANCELLED"), answered=False), 1.0) == 0.0
    assert journey.address == B


def test_who_cannot_is_not_asked_again_before_the_time_it_named():
    client = failover()
    journey = client.begin(100.0, 0.0)
    journey.failed(refused(5.0), 0.0)
    assert journey.address == B
    with pytest.raises(Unavailable):
        journey.failed(refused(5.0), 1.0)
    assert client.stats().gave_up == 1
    later = client.begin(100.0, 2.0)
    assert later.failed(LOST, 2.0) == 3.0
    assert later.address == A, "it may be asked sooner than B"
    journey.failed(LOST, 7.0)
    assert journey.address == A, "what it said is over"


def test_a_router_alone_that_cannot_says_so_at_once():
    for failure in (refused(1.0), busy()):
        with pytest.raises(type(failure.error)):
            failover(A).begin(100.0, 0.0).failed(failure, 0.0)


def test_overload_is_tried_elsewhere_and_never_waited_for():
    client = failover()
    journey = client.begin(100.0, 0.0)
    assert journey.failed(busy(), 0.0) == 0.0
    assert journey.address == B
    with pytest.raises(ResourceExhausted) as caught:
        journey.failed(busy(7.0), 0.0)
    assert caught.value.retry_after_s == 7.0
    other = client.begin(100.0, 0.1)
    with pytest.raises(ResourceExhausted):
        other.failed(busy(), 0.1)
    assert client.stats().retries == 1, "B is known to be busy"


def test_a_first_attempt_never_waits():
    client = failover(A)
    client.begin(100.0, 0.0).failed(LOST, 0.0)
    assert client.begin(100.0, 0.0).address == A


def test_a_lost_router_alone_is_tried_again_for_a_while():
    client = failover(A)
    journey, now, waits = client.begin(1000.0, 0.0), 0.0, []
    for _ in range(ATTEMPTS - 1):
        waits.append(journey.failed(LOST, now))
        now += waits[-1]
    with pytest.raises(Unavailable):
        journey.failed(LOST, now)
    assert waits[0] == FIRST_REST_S
    assert 2.0 < now < 10.0


def test_something_new_starts_the_count_anew():
    journey = failover(A).begin(1e6, 0.0)
    for now in range(3 * ATTEMPTS):
        journey.failed(LOST, float(now * 10))
        journey.heard()
    for now in range(ATTEMPTS - 1):
        journey.failed(LOST, 1e4 + now * 10)
    with pytest.raises(Unavailable):
        journey.failed(LOST, 1e5)


def test_one_attempt_is_one_attempt():
    client = failover(attempts=1)
    with pytest.raises(Unavailable):
        client.begin(100.0, 0.0).failed(LOST, 0.0)
    assert client.stats().retries == 0


def test_nothing_is_waited_for_beyond_the_deadline():
    journey = failover(A).begin(FIRST_REST_S / 2, 0.0)
    with pytest.raises(Unavailable):
        journey.failed(LOST, 0.0)
    with pytest.raises(DeadlineExceeded):
        journey.left(FIRST_REST_S)
    assert journey.left(0.0) == FIRST_REST_S / 2


def test_addresses_where_nobody_ever_answered_are_each_tried_once():
    client = failover(A, B, reached=False)
    journey = client.begin(100.0, 0.0)
    journey.failed(Failure(Unavailable("nothing answers at a:1"), answered=False), 0.0)
    with pytest.raises(Unavailable, match=r"^nothing answers at a:1, b:2$"):
        journey.failed(Failure(Unavailable("nothing answers at b:2"), answered=False), 0.0)


def test_a_client_that_is_closed_tries_nothing_again():
    client = failover()
    client.closed = True
    with pytest.raises(Unavailable):
        client.begin(100.0, 0.0).failed(LOST, 0.0)


def test_every_stream_of_a_router_that_dies_moves_once_whatever_the_budget():
    client = failover()
    journeys = [client.begin(100.0, 0.0) for _ in range(1000)]
    for journey in journeys:
        journey.failed(LOST, 0.0)
        journey.heard()
    assert client.stats().gave_up == 0


def test_the_budget_bounds_what_many_calls_try_again():
    client = failover(A, B)
    client.targets.answered(B)
    tried = 0
    for _ in range(2000):
        journey = client.begin(1e6, 0.0)
        try:
            journey.failed(busy(0.0), 0.0)
            tried += 1
        except ResourceExhausted:
            pass
    assert BUDGET_AT_MOST <= tried <= BUDGET_AT_MOST + 2000 * BUDGET_OF_CALLS + 1
    assert client.stats().over_budget == 2000 - tried
    refilled = sum(_succeeds(client, now=10.0) for _ in range(1000))
    assert 10 * BUDGET_PER_S <= refilled <= 10 * BUDGET_PER_S + 1000 * BUDGET_OF_CALLS + 1


def _succeeds(client, now):
    try:
        client.begin(1e6, now).failed(busy(0.0), now)
    except ResourceExhausted:
        return False
    return True


# ---- what arrived ----


def response(text="", ids=(), index=0, finish="", token=b""):
    return GenerateResponse(
        text=text,
        tokens=[Token(id=id_) for id_ in ids],
        index=index,
        finish_reason=finish,
        resume_token=token,
    )


def test_before_anything_arrived_the_request_is_sent_as_it_was():
    request = GenerateRequest(model="m", prompt="p")
    received = Received(request)
    assert received.may_go_on
    assert received.request() == request


def test_the_next_request_says_what_arrived():
    request = GenerateRequest(model="m", prompt="p", n=3, temperature=1.0)
    received = Received(request)
    received.add(response("a€", [1, 2], token=b"t"))
    received.add(response("x", [7], index=2, token=b"t"))
    received.add(response("𝄞", [3]))
    received.add(response("", [], index=2, finish="stop"))
    again = received.request()
    assert again.resume.token == b"t"
    assert [(a.index, list(a.token_ids), a.characters, a.finished) for a in again.resume.answers] == [
        (0, [1, 2, 3], 3, False),
        (2, [7], 1, True),
    ]
    again.ClearField("resume")
    assert again == request
    assert not received.whole
    for index in (0, 1):
        received.add(response("", [], index=index, finish="length", token=b"t"))
    assert received.whole


def test_a_router_that_gave_no_token_cannot_be_followed():
    received = Received(GenerateRequest(model="m"))
    received.add(response("a", [1]))
    assert not received.may_go_on


def test_a_router_that_begins_anew_is_found_out():
    received = Received(GenerateRequest(model="m"))
    received.add(response("a", [1], token=b"t"))
    received.request()
    assert not received.add(response("a", [1]))
    assert received.add(response("b", [2], token=b"t"))
    assert list(received.request().resume.answers[0].token_ids) == [1, 2]
    assert received.add(response("c", [3], token=b"t"))
    assert received.add(response("d", [4]))
