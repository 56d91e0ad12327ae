import random
from collections import Counter

import pytest
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.routing import Routing, blame, route_header

from stagemesh.errors import InvalidArgument, Unavailable
from stagemesh.v1 import stage_pb2

from .specs import listing, model, replica


def mesh(*replicas, policy="p2c_ewma"):
    membership, loads = Membership(grace_s=5.0), Loads()
    membership.snapshot(listing(*replicas), 0.0)
    return membership, loads, Routing(membership, loads, default_policy=policy)


def four():
    return mesh(*(replica(f"{s}{r}", s, address=f"127.0.0.1:{s}{r}") for s in (0, 1) for r in "ab"))


@pytest.mark.parametrize("policy", ["p2c_ewma", "round_robin", "least_loaded", ""])
def test_a_burst_of_200_spreads_over_each_stage(policy):
    _, loads, routing = four()
    rng, sessions = random.Random(3), Counter()
    for _ in range(200):
        route = routing.choose(model(), 0.0, rng, override=policy)
        assert [hop.stage for hop in route] == [0, 1]
        assert all(hop.address.endswith(hop.replica_id) for hop in route)
        loads.begin(hop.replica_id for hop in route)
        sessions.update(hop.replica_id for hop in route)
    assert set(sessions) == {"0a", "0b", "1a", "1b"}
    assert all(70 <= count <= 130 for count in sessions.values()), sessions


def test_a_stage_without_replica_is_named():
    _, _, routing = mesh(replica("a", 0))
    with pytest.raises(Unavailable, match="stage 1 of 2") as caught:
        routing.choose(model(), 0.0, random.Random(0))
    assert caught.value.retry_after_s


def test_an_unknown_override_is_the_callers_fault_and_an_unknown_model_policy_is_not():
    _, _, routing = four()
    with pytest.raises(InvalidArgument) as caught:
        routing.choose(model(), 0.0, random.Random(0), override="best")
    assert caught.value.field == "x-stagemesh-policy"
    assert len(routing.choose(model(policy="of-a-newer-version"), 0.0, random.Random(0))) == 2


def test_avoided_and_cooling_replicas_are_taken_only_where_there_is_no_other():
    _, loads, routing = four()
    rng = random.Random(0)
    for _ in range(20):
        assert routing.choose(model(), 0.0, rng, avoid={"0a"})[0].replica_id == "0b"
    loads.failed("1b", 10.0)
    for _ in range(20):
        assert routing.choose(model(), 11.0, rng)[1].replica_id == "1a"
    loads.failed("1a", 10.0)
    assert {routing.choose(model(), 11.0, rng)[1].replica_id for _ in range(40)} == {"1a", "1b"}
    assert {routing.choose(model(), 13.0, rng, avoid={"0a", "0b"})[0].replica_id for _ in range(40)} == {
        "0a",
        "0b",
    }


def test_whether_another_route_is_worth_trying():
    membership, _, routing = four()
    route = routing.choose(model(), 0.0, random.Random(0))
    assert routing.has_other(model(), route, {route[1].replica_id})
    assert not routing.has_other(model(), route, {"0a", "0b"})
    for key in [key for key in listing(*membership.replicas.values()) if "/1/" in key]:
        membership.change(key, None, 100.0)
    assert not routing.has_other(model(), route, {route[0].replica_id})


def test_who_is_to_blame():
    route = [stage_pb2.RouteHop(stage=i, replica_id=name) for i, name in enumerate("ab")]
    assert blame(route, "relay ended", "b") == ("b", {"b"})
    assert blame(route, "failed to connect to all addresses", "") == ("a", {"a"})
    assert blame(route, "stage 1 was lost: Socket closed", "") == ("b", {"b"})
    assert blame(route, "the link to stage 7 is broken", "") == ("", {"a", "b"})
    assert blame(route, "something else", "stranger") == ("", {"a", "b"})
    assert route_header(route) == "0=a,1=b"
