"""What a request says about where it wants to go, and what becomes of it in a route."""

import random

import pytest
from stagemesh.services.router.ask import LONGEST, ask_of
from stagemesh.services.router.context import RequestContext
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.policies import NOTHING_ASKED, Ask
from stagemesh.services.router.routing import Routing

from stagemesh.errors import InvalidArgument, Unavailable
from stagemesh.prefix import BLOCK
from stagemesh.v1.stage_pb2 import PrefixReport

from .specs import listing, model, replica


def ctx(**metadata):
    return RequestContext(
        "id", "tenant", 1.0, metadata={name.replace("_", "-"): v for name, v in metadata.items()}
    )


def test_headers_and_prompt():
    assert ask_of(ctx()) is NOTHING_ASKED
    ask = ask_of(ctx(x_stagemesh_session="chat 7", x_stagemesh_zone="west"), [1, 2])
    assert (ask.session_key, ask.zone, ask.token_ids) == ("chat 7", "west", [1, 2])


@pytest.mark.parametrize("name", ["x_stagemesh_session", "x_stagemesh_zone"])
def test_a_header_that_is_too_long_is_named(name):
    assert ask_of(ctx(**{name: "x" * LONGEST}))
    with pytest.raises(InvalidArgument) as caught:
        ask_of(ctx(**{name: "x" * (LONGEST + 1)}))
    assert caught.value.field == name.replace("_", "-")


def mesh(zone="", **zones):
    """Two stages; `zones` are those of the replicas `a`, `b`, ... of each."""
    membership, loads = Membership(grace_s=5.0), Loads()
    records = [replica(f"{name}{stage}", stage, zone=at) for name, at in zones.items() for stage in (0, 1)]
    membership.snapshot(listing(*records), 0.0)
    return loads, Routing(membership, loads, default_policy="p2c_ewma", zone=zone)


def picks(routing, spec=None, times=30, **options):
    rng = random.Random(0)
    return {
        tuple(hop.replica_id for hop in routing.choose(spec or model(), 0.0, rng, **options))
        for _ in range(times)
    }


def test_a_route_stays_in_one_zone_the_routers_own_first():
    _, routing = mesh(zone="east", a="east", b="west", c="west")
    assert picks(routing) == {("a0", "a1")}
    _, routing = mesh(a="east", b="west", c="west")
    routes = picks(routing)
    assert ("a0", "a1") in routes
    assert all((head == "a0") == (last == "a1") for head, last in routes)


def test_the_preference_ends_where_the_zone_is_overloaded():
    loads, routing = mesh(zone="east", a="east", b="west", c="west")
    for _ in range(4):
        loads.begin(["a0", "a1"])
    assert {head for head, _ in picks(routing)} == {"b0", "c0"}


def test_a_zone_that_is_asked_for_is_a_must():
    loads, routing = mesh(zone="east", a="east", b="west")
    for _ in range(100):
        loads.begin(["b0", "b1"])
    assert picks(routing, ask=Ask(zone="west")) == {("b0", "b1")}
    assert picks(routing, ask=Ask(zone="west"), avoid={"b0"}) == {("b0", "b1")}, (
        "rather the same than elsewhere"
    )
    with pytest.raises(Unavailable, match=r"stage 0 of 2 in the zones it may use \(2 elsewhere\)"):
        picks(routing, ask=Ask(zone="north"))


def test_a_models_zones_are_a_must():
    _, routing = mesh(zone="east", a="east", b="west", c="north")
    heads = {head for head, _ in picks(routing, model(zones=["west", "north"]))}
    assert heads == {"b0", "c0"}
    with pytest.raises(Unavailable):
        picks(routing, model(zones=["west"]), ask=Ask(zone="north"))


def test_a_session_keeps_its_route():
    _, routing = mesh(a="", b="", c="")
    for number in range(8):
        asked = Ask(session_key=f"chat {number}")
        assert len(picks(routing, override="session_affinity", ask=asked)) == 1
    assert len(picks(routing, override="session_affinity")) > 1


def test_a_prompt_goes_where_every_stage_holds_most_of_it():
    loads, routing = mesh(a="", b="", c="")
    asked, now = Ask(token_ids=[7] * 70), 0.0

    def holds(name, blocks):
        report = PrefixReport(full=True, held=b"".join(each[:8] for each in asked.blocks[:blocks]))
        assert routing.prefixes.take(name, report)

    holds("b0", 4)
    by_prefix = {"override": "prefix_affinity", "ask": asked}
    assert len(picks(routing, **by_prefix)) > 1, "no later stage has anything"
    holds("a1", 2)
    holds("c1", 3)
    assert picks(routing, **by_prefix) == {("b0", "c1")}
    assert len(picks(routing, ask=asked)) > 1, "the policy is another one"
    route = routing.choose(model(), now, random.Random(0), **by_prefix)
    assert routing.spared(route, asked) == 3 * BLOCK
    hop = routing.choose_stage(model(), 1, now, random.Random(0), avoid={"c1"}, **by_prefix)
    assert hop.replica_id == "a1"
    assert routing.spared([route[0], hop], asked) == 2 * BLOCK
    loads.begin(["b0", "c1"])
    assert picks(routing, **by_prefix) == {("b0", "c1")}
    loads.sent(["b0"], 10**5)
    assert len({last for _, last in picks(routing, **by_prefix)}) > 1, (
        "what the head lacks spares nobody anything"
    )
    assert "b0" not in {head for head, _ in picks(routing, **by_prefix)}, (
        "prompts on their way there wait, too"
    )


def test_who_is_to_tell_what_it_holds():
    _, routing = mesh(a="")
    assert routing.goes_by_prefix(model(policy="prefix_affinity"))
    assert not routing.goes_by_prefix(model())
    picks(routing, override="prefix_affinity", ask=Ask(token_ids=[1]))
    assert routing.goes_by_prefix(model()), "requests ask for it themselves"
    assert routing.asked_by_prefix == 1


def test_one_stage_is_chosen_alone():
    loads, routing = mesh(a="", b="")
    loads.begin(["a1"])
    rng = random.Random(0)
    hop = routing.choose_stage(model(), 1, 0.0, rng)
    assert (hop.stage, hop.replica_id) == (1, "b1")
    assert routing.choose_stage(model(), 1, 0.0, rng, avoid={"b1"}).replica_id == "a1"
    with pytest.raises(Unavailable, match="stage 2 of 2"):
        routing.choose_stage(model(), 2, 0.0, rng)
