"""How the plan follows scale records and stand-ins."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.registry.assign import Patience, Plan, decide
from stagemesh.services.registry.board import Assign
from stagemesh.services.registry.scaling_view import View
from stagemesh.services.registry.world import History, World

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
    REPLICA_STATE_LOADING,
    REPLICA_STATE_READY,
    Assignment,
    ModelSpec,
    NodeRecord,
    Partition,
    ReplicaRecord,
    ScaleRecord,
    Scaling,
)
from stagemesh.wanted import asleep, replicas_wanted


def spec_of(stages: int = 2, replicas: int = 1, scaling: Scaling | None = None) -> ModelSpec:
    return ModelSpec(
        name="m",
        revision="r1",
        checkpoint_dtype="F32",
        partitions=[Partition(first_layer=n, end_layer=n + 1, parameter_bytes=100) for n in range(stages)],
        replicas=[replicas] * stages,
        scaling=scaling,
    )


def held(replica_id: str, node: str, stage: int, replaces: str = "") -> Assignment:
    return Assignment(
        replica_id=replica_id,
        node_id=node,
        model="m",
        stage=stage,
        stages=2,
        partition=Partition(first_layer=stage, end_layer=stage + 1, parameter_bytes=100),
        revision="r1",
        replaces=replaces,
    )


def world_of(
    spec: ModelSpec, assignments: list[Assignment], states: dict[str, int], scale: ScaleRecord | None = None
) -> World:
    return World(
        {"m": spec},
        {name: NodeRecord(node_id=name, memory_bytes=10_000, device="cpu") for name in ("a", "b", "c")},
        {each.replica_id: each for each in assignments},
        {
            each.replica_id: ReplicaRecord(
                replica_id=each.replica_id, model="m", stage=each.stage, state=states[each.replica_id]
            )  # type: ignore[arg-type]
            for each in assignments
            if each.replica_id in states
        },
        {"m": scale} if scale is not None else {},
    )


def plan_of(world: World) -> Plan:
    return decide(world, History(), Patience(), 0.0, Random(1))


def gone(plan: Plan) -> list[str]:
    assert not any(isinstance(each, Assign) for each in plan.decisions)
    return [each.replica_id for each in plan.decisions if not isinstance(each, Assign)]


ITSELF = Scaling(min_replicas=0, max_replicas=4)
PAIR = [held("x", "a", 0), held("y", "b", 1)]


def test_a_replica_stays_until_its_stand_in_is_ready_and_then_is_the_one_that_goes() -> None:
    # The stand-in shares its node, which would make it the first to go otherwise.
    both = [*PAIR, held("z", "b", 0, replaces="x")]
    ready = dict.fromkeys("xy", REPLICA_STATE_READY)
    spec = spec_of(scaling=ITSELF)
    assert gone(plan_of(world_of(spec, both, ready | {"z": REPLICA_STATE_LOADING}))) == []
    assert gone(plan_of(world_of(spec, both, ready | {"z": REPLICA_STATE_READY}))) == ["x"]
    # One that cannot be loaded goes itself.
    assert gone(plan_of(world_of(spec, both, ready | {"z": REPLICA_STATE_FAILED}))) == ["z"]
    # When more are wanted meanwhile, both stay.
    more = ScaleRecord(model="m", replicas=[2, 1])
    assert gone(plan_of(world_of(spec, both, ready | {"z": REPLICA_STATE_READY}, more))) == []


def test_what_scales_itself_is_not_spread_over_idle_nodes_and_a_fixed_model_is() -> None:
    packed = [held("x", "a", 0), held("y", "a", 1)]
    ready = dict.fromkeys("xy", REPLICA_STATE_READY)
    assert plan_of(world_of(spec_of(scaling=ITSELF), packed, ready)).decisions == []
    assert plan_of(world_of(spec_of(), packed, ready)).decisions


def test_asleep_every_replica_goes_also_of_older_revisions_and_awake_all_stages_come_at_once() -> None:
    old = held("o", "c", 0)
    old.revision = "r0"
    ready = dict.fromkeys("xyo", REPLICA_STATE_READY)
    sleeps = ScaleRecord(model="m", replicas=[0, 0])
    spec = spec_of(scaling=ITSELF)
    assert sorted(gone(plan_of(world_of(spec, [*PAIR, old], ready, sleeps)))) == ["o", "x", "y"]
    plan = plan_of(world_of(spec, [], {}, ScaleRecord(model="m", replicas=[1, 1])))
    assert sorted(each.assignment.stage for each in plan.decisions if isinstance(each, Assign)) == [0, 1]
    assert plan_of(world_of(spec, [], {}, sleeps)) == Plan([], {})


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 6),
    st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=5)),
)
def test_wanted_replicas_keep_the_limits_and_all_stages_sleep_or_none(
    stages: int, replicas: int, least: int, most: int, decided: list[int] | None
) -> None:
    scaling = Scaling(min_replicas=least, max_replicas=most)
    scale = None if decided is None else ScaleRecord(model="m", replicas=decided)
    spec = spec_of(stages, replicas, scaling)
    wanted = [replicas_wanted(spec, stage, scale) for stage in range(stages)]
    if asleep(spec, scale):
        assert least == 0
        assert wanted == [0] * stages
    else:
        assert all(each >= max(1, least) for each in wanted)
        assert all(each <= max(most, least, 1) for each in wanted if most)
    spec.ClearField("scaling")
    assert [replicas_wanted(spec, stage, scale) for stage in range(stages)] == [max(1, replicas)] * stages


def test_what_may_not_sleep_is_awake_whatever_was_decided_before() -> None:
    spec, sleeps = spec_of(scaling=Scaling(min_replicas=2)), ScaleRecord(model="m", replicas=[0, 0])
    assert not asleep(spec, sleeps)
    assert [replicas_wanted(spec, stage, sleeps) for stage in range(2)] == [2, 2]


def test_the_view_counts_what_serves_what_is_missing_and_what_may_move() -> None:
    spec = spec_of(scaling=ITSELF)
    states = {"x": REPLICA_STATE_READY, "y": REPLICA_STATE_LOADING}
    scale = ScaleRecord(model="m", replicas=[1, 3])
    view = View(world_of(spec, PAIR, states, scale))
    assert view.ready == {"m": [["x"], []]}
    assert view.have == {"m": [1, 1]}
    assert not view.settled
    # Computed in F32 with headroom, twice.
    assert view.pending() == [120, 120]
    a, b, c = view.boxes(lambda replica_id: 0.4 if replica_id == "x" else 0.0)
    assert [(piece.replica_id, piece.movable) for piece in (*a.pieces, *b.pieces)] == [
        ("x", True),
        ("y", False),
    ]
    assert (a.free, a.busy, c.pieces) == (10_000 - 120, 0.4, ())
    ready = dict.fromkeys("xy", REPLICA_STATE_READY)
    assert View(world_of(spec, PAIR, ready)).settled
    assert not View(world_of(spec, [*PAIR, held("z", "c", 0)], ready | {"z": REPLICA_STATE_READY})).settled
    allowed = view.allowed(History(failures={("m", "r1", 0): {"c": 1}}))
    assert allowed(a.pieces[0], "c") is None
    assert allowed(a.pieces[0], "b") == 120
