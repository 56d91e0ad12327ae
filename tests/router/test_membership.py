from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.membership import Membership

from stagemesh import records
from stagemesh.v1 import registry_pb2

from .specs import listing, model, replica


def table(*items, grace_s=5.0):
    membership = Membership(grace_s=grace_s)
    membership.snapshot(listing(*items), 0.0)
    return membership


def ids(membership, spec):
    return [[record.replica_id for record in stage] for stage in membership.ready(spec)]


def test_an_empty_listing_does_not_wipe_before_the_grace_has_passed():
    spec = model()
    membership = table(spec, replica("a", 0), replica("b", 1))
    membership.snapshot({}, 100.0)
    membership.expire(104.9)
    assert ids(membership, spec) == [["a"], ["b"]]
    assert membership.is_ready(spec)
    membership.expire(105.0)
    assert membership.models == {}
    assert membership.replicas == {}


def test_who_announces_itself_again_within_the_grace_stays():
    spec, a, b = model(), replica("a", 0), replica("b", 1)
    membership = table(spec, a, b)
    membership.snapshot({}, 100.0)
    for key, value in listing(spec, a).items():
        membership.change(key, value, 102.0)
    membership.expire(110.0)
    assert ids(membership, spec) == [["a"], []]


def test_a_second_empty_listing_does_not_prolong_the_grace():
    membership = table(model())
    membership.snapshot({}, 100.0)
    membership.snapshot({}, 104.0)
    membership.expire(105.0)
    assert membership.models == {}


def test_a_deletion_counts_at_once_in_a_healthy_watch_and_late_after_a_reconnect():
    a, b = replica("a"), replica("b")
    key_a, key_b = listing(a, b)
    membership = table(a, b)
    membership.change(key_a, None, 50.0)
    assert [each.replica_id for each in membership.replicas.values()] == ["b"]
    membership.reconnected(100.0)
    membership.change(key_b, None, 101.0)
    membership.expire(105.9)
    assert len(membership.replicas) == 1
    membership.expire(106.0)
    assert membership.replicas == {}


def test_only_replicas_that_hold_exactly_the_partition_are_ready():
    spec = model()
    membership = table(
        spec,
        replica("good", 0),
        replica("loading", 0, state=registry_pb2.REPLICA_STATE_LOADING),
        replica("draining", 0, state=registry_pb2.REPLICA_STATE_DRAINING),
        replica("old", 0, revision="r0"),
        replica("other-cut", 0, stages=3),
        replica("beyond", 2),
        replica("foreign", 0, name="n"),
    )
    moved = replica("moved", 1)
    moved.partition.end_layer = 5
    membership.change(*next(iter(listing(moved).items())), 1.0)
    assert ids(membership, spec) == [["good"], []]
    assert not membership.is_ready(spec)


def test_a_record_that_cannot_be_read_keeps_what_was_known():
    spec = model()
    membership = table(spec)
    membership.change(records.model_key("m"), b"{not json", 1.0)
    membership.change(records.ROOT + "something/else", b"x", 1.0)
    assert membership.models == {"m": spec}
    assert membership.undecodable == 1


events = st.lists(
    st.one_of(
        st.tuples(st.just("snapshot"), st.sets(st.sampled_from("abcd"))),
        st.tuples(st.just("put"), st.sampled_from("abcd")),
        st.tuples(st.just("delete"), st.sampled_from("abcd")),
        st.tuples(st.just("reconnected"), st.none()),
    ),
    max_size=25,
)


@given(events, st.lists(st.floats(0, 3), min_size=25, max_size=25))
def test_after_the_grace_the_table_is_what_etcd_holds(history, pauses):
    """Whatever happened in between, and nothing that etcd holds is ever missing from the table."""
    membership, truth, now = Membership(grace_s=5.0), set(), 0.0
    membership.snapshot({}, now)
    for (kind, what), pause in zip(history, pauses, strict=False):
        now += pause
        membership.expire(now)
        if kind == "snapshot":
            truth = set(what)
            membership.snapshot(listing(*(replica(name) for name in what)), now)
        elif kind == "reconnected":
            membership.reconnected(now)
        else:
            key, value = next(iter(listing(replica(what)).items()))
            membership.change(key, value if kind == "put" else None, now)
            (truth.add if kind == "put" else truth.discard)(what)
        assert truth <= {each.replica_id for each in membership.replicas.values()}
    membership.expire(now + 5.0)
    assert {each.replica_id for each in membership.replicas.values()} == truth
