"""The table kept one change at a time is what a fresh look at all replicas finds, after any history."""

import time

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.membership import Membership

from stagemesh import records
from stagemesh.v1 import registry_pb2
from stagemesh.v1.registry_pb2 import REPLICA_STATE_DRAINING, REPLICA_STATE_LOADING, REPLICA_STATE_READY

from .specs import listing, model, replica


def plainly(membership: Membership, spec: registry_pb2.ModelSpec) -> list[list[registry_pb2.ReplicaRecord]]:
    """The rule, said of all replicas at once."""
    return [
        [
            record
            for _, record in sorted(membership.replicas.items())
            if record.state == REPLICA_STATE_READY
            and (record.model, record.revision) == (spec.name, spec.revision)
            and (record.stages, record.stage) == (len(spec.partitions), stage)
            and record.partition.first_layer == part.first_layer
            and record.partition.end_layer == part.end_layer
        ]
        for stage, part in enumerate(spec.partitions)
    ]


SPECS = [model("m"), model("m", revision="r2"), model("n"), model("m", stages=3), model("m")]
SPECS[4].partitions[0].end_layer += 1
SPECS[4].partitions[1].first_layer += 1
PLACES = st.tuples(
    st.sampled_from("abcdefgh"),
    st.integers(0, 2),
    st.sampled_from(["r1", "r2"]),
    st.sampled_from([2, 3]),
    st.sampled_from("mn"),
    st.sampled_from(
        [REPLICA_STATE_READY, REPLICA_STATE_READY, REPLICA_STATE_LOADING, REPLICA_STATE_DRAINING]
    ),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PLACES),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("listing"), st.lists(PLACES, max_size=8)),
        st.tuples(st.just("model"), st.sampled_from(range(len(SPECS)))),
        st.tuples(st.just("expire"), st.none()),
        st.tuples(st.just("look"), st.none()),
    ),
    max_size=40,
)


def entry(place) -> tuple[str, bytes]:
    name, stage, revision, stages, of, state, other_cut = place
    record = replica(name, stage, revision=revision, stages=stages, name=of, state=state)
    if other_cut:
        record.partition.end_layer += 1
    # Always the same key for a name: a replica that is put again has moved, or changed.
    return records.REPLICAS + f"m/0/{name}", records.to_json(record)


@given(STEPS)
def test_it_is_what_a_fresh_look_finds_after_any_history(steps) -> None:
    membership, now = Membership(grace_s=5.0), 0.0
    for kind, what in steps:
        now += 1.0
        if kind == "put":
            membership.change(*entry(what), now)
        elif kind == "delete":
            keys = sorted(membership.replicas)
            if keys:
                membership.change(records.REPLICAS + keys[what % len(keys)], None, now)
        elif kind == "listing":
            membership.snapshot(dict(map(entry, what)), now)
        elif kind == "model":
            membership.change(*next(iter(listing(SPECS[what]).items())), now)
        elif kind == "expire":
            now += 5.0
            membership.expire(now)
        else:
            for spec in SPECS:
                assert membership.ready(spec) == plainly(membership, spec)
    for spec in SPECS:
        assert membership.ready(spec) == plainly(membership, spec)
        assert all(
            one is other
            for mine, plain in zip(membership.ready(spec), plainly(membership, spec), strict=True)
            for one, other in zip(mine, plain, strict=True)
        ), "and the newest copies of the records"


def test_a_list_that_was_handed_out_stays_as_it_is_and_other_stages_keep_theirs() -> None:
    spec = model("m")
    membership = Membership(grace_s=5.0)
    membership.snapshot(listing(spec, replica("a", 0), replica("b", 0), replica("c", 1)), 0.0)
    first = membership.ready(spec)
    before = [list(stage) for stage in first]
    assert membership.ready(spec) is first
    for key in list(listing(replica("a", 0))):
        membership.change(key, None, 1.0)
    second = membership.ready(spec)
    assert [list(stage) for stage in first] == before
    assert [[each.replica_id for each in stage] for stage in second] == [["b"], ["c"]]
    assert second[1] is first[1]
    # What is none of its replicas changes nothing.
    membership.change(*next(iter(listing(replica("z", 0, name="n")).items())), 2.0)
    assert membership.ready(spec) is second


def test_nothing_is_kept_of_what_is_gone() -> None:
    membership = Membership(grace_s=5.0)
    for number in range(50):
        key, value = next(iter(listing(replica("a", revision=f"r{number}")).items()))
        membership.change(key, value, 1.0)
        membership.change(key, None, 1.0)
    table = membership._table
    assert (table._rows, table._places, table._versions, dict(table._counts)) == ({}, {}, {}, {})


def test_a_change_among_many_costs_a_small_part_of_a_fresh_look() -> None:
    """The ratio of two measurements of the same process: with 4,000 replicas some hundreds, and 20 is asked for."""
    spec = model("m")
    membership = Membership(grace_s=5.0)
    membership.snapshot(listing(spec, *(replica(f"r{n:05}", n % 2) for n in range(4000))), 0.0)
    membership.ready(spec)
    key, value = next(iter(listing(replica("r02000", 0)).items()))
    changes, looks = [], []
    for number in range(9):
        started = time.process_time()
        for nth in range(10):
            membership.change(key, None if nth % 2 else value, 1.0)
            membership.ready(spec)
        changes.append((time.process_time() - started) / 10)
        if number < 3:
            started = time.process_time()
            plainly(membership, spec)
            looks.append(time.process_time() - started)
    assert min(changes) * 20 < min(looks)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["put", "delete", "load", "look"])),
        max_size=40,
    )
)
def test_what_policies_are_shown_follows_the_table(steps) -> None:
    """Candidates of a whole stage are those that would be made anew, in order."""
    spec, membership, loads = model("m", stages=1), Membership(grace_s=5.0), Loads()
    membership.snapshot(listing(spec), 0.0)

    def look() -> None:
        (stage,) = membership.ready(spec)
        if stage:
            assert list(loads.candidates(stage, whole=True)) == loads.candidates(stage)

    for number, (name, what) in enumerate(steps):
        key, value = next(iter(listing(replica(name, 0, 1, canary_ms=number)).items()))
        if what in ("put", "delete"):
            membership.change(key, value if what == "put" else None, 1.0)
        elif what == "load":
            loads.begin([name])
        else:
            look()
    look()
