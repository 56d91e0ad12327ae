"""The autoscaler on its own: which stage grows, when, and what never happens."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.scaling.autoscaler import Autoscaler, Patience
from stagemesh.services.registry.scaling.bottleneck import after, busiest, pressure_of
from stagemesh.services.registry.scaling.limits import Defaults, Limits, check_scaling, limits_of
from stagemesh.services.registry.scaling.load import ModelLoad, StageLoad

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import Scaling

PATIENCE = Patience(up_after_s=3, up_cooldown_s=10, down_after_s=60, down_cooldown_s=30)


def queueing(rate: float, service_s: float, replicas: int) -> StageLoad:
    """A stage under `rate` steps a second, evenly over its replicas: M/D/1 on each."""
    busy = min(rate * service_s / replicas, 0.999)
    return StageLoad(replicas, 1000 * service_s * busy / (2 * (1 - busy)), busy)


class Mesh:
    """Stages that have what was decided a few seconds ago, and a clock."""

    def __init__(self, *service_s: float, limits: Limits, lag_s: int = 4) -> None:
        self.service_s, self.limits, self.lag_s = service_s, limits, lag_s
        self.wanted = tuple(limits.awake for _ in service_s)
        self.history = [self.wanted] * (lag_s + 1)
        self.autoscaler = Autoscaler(PATIENCE)
        self.now = 0.0
        self.requested_at = 0.0
        self.decisions = []

    def run(self, seconds: int, rate: float) -> None:
        for _ in range(seconds):
            self.now += 1
            if rate:
                self.requested_at = self.now
            ready = tuple(map(min, self.history[-self.lag_s], self.wanted))
            stages = [
                queueing(rate, service_s, count) if count else StageLoad(0)
                for service_s, count in zip(self.service_s, ready, strict=True)
            ]
            load = ModelLoad(
                "m", self.limits, self.wanted, stages, active=int(rate > 0), requested_at=self.requested_at
            )
            for decision in self.autoscaler.decide([load], self.now):
                assert decision.expected == self.wanted
                assert decision.reason
                self.decisions.append((self.now, decision))
                self.wanted = decision.replicas
            self.history.append(self.wanted)

    def kinds(self) -> list[str]:
        return [decision.kind for _, decision in self.decisions]


def test_only_the_stage_that_limits_grows_until_the_target_is_met() -> None:
    mesh = Mesh(0.002, 0.02, 0.002, limits=Limits(most=16, queue_ms=20))
    mesh.run(200, rate=190)
    assert mesh.wanted[0] == mesh.wanted[2] == 1
    assert queueing(190, 0.02, mesh.wanted[1]).queue_ms <= 20
    # Not more than it takes: with two replicas less it would not do.
    assert queueing(190, 0.02, mesh.wanted[1] - 2).queue_ms > 20
    assert set(mesh.kinds()) == {"scale.up"}
    assert "stage 1 from" in mesh.decisions[0][1].reason
    assert mesh.decisions[0][1].numbers["queue_ms"] > 20


def test_a_burst_shorter_than_its_patience_changes_nothing() -> None:
    mesh = Mesh(0.02, limits=Limits(most=8))
    mesh.run(30, rate=5)
    mesh.run(2, rate=49.9)
    mesh.run(30, rate=5)
    assert mesh.decisions == []


def test_what_idles_shrinks_to_the_least_and_then_sleeps_and_wakes_with_all_stages() -> None:
    mesh = Mesh(0.01, 0.02, limits=Limits(least=0, most=8, idle_s=300))
    mesh.run(120, rate=150)
    assert mesh.wanted[1] >= 4
    mesh.run(299, rate=0)
    assert mesh.wanted == (1, 1)
    mesh.run(3, rate=0)
    assert mesh.wanted == (0, 0)
    assert mesh.kinds()[-1] == "scale.sleep"
    mesh.run(1, rate=10)
    assert mesh.wanted == (1, 1)
    assert mesh.kinds()[-1] == "scale.wake"
    # Having been woken counts as having been asked for.
    mesh.run(200, rate=0)
    assert mesh.wanted == (1, 1)


@pytest.mark.parametrize("rate", [20, 60, 95, 120, 140, 190])
def test_steady_load_ends_in_steady_replicas(rate: int) -> None:
    mesh = Mesh(0.005, 0.02, limits=Limits(most=32))
    mesh.run(600, rate=10 * 20)
    mesh.run(1200, rate=rate)
    settled = len(mesh.decisions)
    mesh.run(2400, rate=rate)
    assert len(mesh.decisions) - settled <= 1, mesh.decisions[settled:]


def test_a_stage_that_had_to_grow_again_soon_shrinks_later_the_next_time() -> None:
    mesh = Mesh(0.02, limits=Limits(most=8))
    changes = []
    for _ in range(6):
        mesh.run(40, rate=95)
        mesh.run(75, rate=10)
    for at, decision in mesh.decisions:
        if decision.kind == "scale.down":
            changes.append(at)
    # Each cycle is long enough to shrink in, the first time; later it takes longer than a cycle lasts.
    assert 1 <= len(changes) <= 3


def test_memory_pressure_grows_the_stage_that_is_full_although_nothing_waits() -> None:
    autoscaler = Autoscaler(PATIENCE)
    stages = [StageLoad(2, kv=0.95, busy=0.2), StageLoad(2, kv=0.3, busy=0.9)]
    load = ModelLoad("m", Limits(most=8, kv=0.8), (2, 2), stages)
    decisions = [found for now in range(12) for found in autoscaler.decide([load], now)]
    assert decisions[0].replicas == (3, 2)
    assert "95% of its KV memory" in decisions[0].reason


def test_requests_that_wait_at_the_door_grow_the_busiest_stage() -> None:
    autoscaler = Autoscaler(PATIENCE)
    stages = [StageLoad(1, 1.0, 0.2), StageLoad(1, 5.0, 0.9)]
    load = ModelLoad("m", Limits(most=8), (1, 1), stages, active=10, waiting=10)
    decisions = [found for now in range(5) for found in autoscaler.decide([load], now)]
    assert decisions[0].replicas == (1, 2)
    assert "10 requests wait" in decisions[0].reason


def test_a_stage_held_back_by_the_next_one_is_not_taken_for_the_bottleneck() -> None:
    # Steps wait longest at stage 0, because stage 1 takes no more.
    stages = (StageLoad(1, 400.0, 0.3), StageLoad(1, 60.0, 0.98))
    assert busiest(stages) == 1
    assert pressure_of(ModelLoad("m", Limits(), (1, 1), stages)).stage == 1


def test_at_its_most_it_says_so_once_and_changes_nothing() -> None:
    mesh = Mesh(0.02, limits=Limits(most=2))
    mesh.run(50, rate=190)
    assert mesh.wanted == (2,)
    assert mesh.kinds() == ["scale.up", "scale.limit"]
    assert "the most that it may have" in mesh.decisions[-1][1].reason


def test_limits_that_the_user_changes_hold_at_once() -> None:
    mesh = Mesh(0.02, 0.02, limits=Limits(least=3, most=8))
    mesh.wanted = (1, 12)
    mesh.run(1, rate=1)
    assert mesh.wanted == (3, 8)


def test_without_reports_nothing_shrinks_or_sleeps() -> None:
    autoscaler = Autoscaler(PATIENCE)
    limits = Limits(least=0, most=8, idle_s=10)
    unheard = ModelLoad("m", limits, (4,), [StageLoad(4, known=3)])
    no_router = ModelLoad("n", limits, (4,), [StageLoad(4)], sure=False)
    for now in range(0, 1000):
        assert autoscaler.decide([unheard, no_router], float(now)) == []


def test_a_reason_to_be_awake_wakes_and_keeps_awake() -> None:
    autoscaler = Autoscaler(PATIENCE)
    limits = Limits(least=0, idle_s=10)
    asleep = ModelLoad("m", limits, (0, 0), [StageLoad(0), StageLoad(0)])
    assert autoscaler.decide([asleep], 0.0) == []
    (found,) = autoscaler.decide([replace(asleep, awake_because="it is asked for at nine")], 1.0)
    assert (found.kind, found.replicas, found.reason) == ("scale.wake", (1, 1), "it is asked for at nine")
    awake = replace(asleep, wanted=(1, 1), stages=[StageLoad(1), StageLoad(1)], awake_because="still")
    assert autoscaler.decide([awake], 500.0) == []
    assert autoscaler.decide([awake], 600.0) == []
    (found,) = autoscaler.decide([replace(awake, awake_because="", idle_s=400.0)], 901.0)
    assert found.kind == "scale.sleep"


shares = st.floats(0, 1)
stage_loads = st.builds(
    StageLoad, st.integers(0, 6), st.floats(0, 1000), shares, shares, st.one_of(st.none(), st.integers(0, 6))
)


@st.composite
def loads(draw: st.DrawFn) -> list[ModelLoad]:
    least = draw(st.integers(0, 3))
    limits = Limits(least, draw(st.integers(max(least, 1), 9)), idle_s=draw(st.floats(0, 50)))
    stages = draw(st.integers(1, 4))
    found = []
    for _ in range(draw(st.integers(1, 25))):
        awake = draw(st.booleans())
        wanted = tuple(draw(st.integers(1, 9)) if awake else 0 for _ in range(stages))
        found.append(
            ModelLoad(
                "m",
                limits,
                wanted,
                [draw(stage_loads) for _ in range(stages)],
                active=draw(st.integers(0, 2)),
                waiting=draw(st.integers(0, 2)),
                requested_at=draw(st.floats(-100, 100)),
                sure=draw(st.booleans()),
                awake_because=draw(st.sampled_from(["", "because"])),
            )
        )
    return found


@settings(max_examples=200, deadline=None)
@given(loads(), st.floats(0.5, 60))
def test_whatever_the_loads_the_limits_hold_and_traffic_keeps_its_route(
    series: list[ModelLoad], step_s: float
) -> None:
    autoscaler = Autoscaler(PATIENCE)
    for nth, load in enumerate(series):
        for found in autoscaler.decide([load], nth * step_s):
            assert len(found.replicas) == len(load.wanted)
            assert found.expected == load.wanted
            assert found.reason
            assert all(map(math.isfinite, found.numbers.values()))
            # All stages sleep, or none.
            assert all(found.replicas) or not any(found.replicas)
            if not any(found.replicas):
                assert load.limits.least == 0
                assert not load.active
                assert not load.waiting
                assert not load.awake_because
                continue
            assert all(load.limits.awake <= each <= load.limits.most for each in found.replicas)
            inside = all(load.limits.awake <= each <= load.limits.most for each in load.wanted)
            if inside and not load.asleep:
                assert sum(a != b for a, b in zip(found.replicas, load.wanted, strict=True)) <= 1
            if inside and found.kind == "scale.down":
                assert load.sure
                assert not load.waiting


@given(st.floats(1e-6, 0.999), st.floats(1e-6, 500), shares, st.integers(2, 20), st.integers(1, 19))
def test_fewer_replicas_are_never_predicted_to_do_better(
    busy: float, queue_ms: float, kv: float, now: int, then: int
) -> None:
    stage = StageLoad(now, queue_ms, busy, kv)
    fewer = after(stage, now, min(then, now - 1))
    assert fewer.queue_ms >= stage.queue_ms or math.isclose(fewer.queue_ms, stage.queue_ms)
    assert fewer.busy >= stage.busy
    assert fewer.kv >= stage.kv


def test_what_a_model_leaves_open_comes_from_the_registry() -> None:
    limits = limits_of(Scaling(min_replicas=2, target_queue_ms=5), Defaults(50, 0.7, 600))
    assert (limits.least, limits.most, limits.queue_ms) == (2, 1000, 5)
    assert limits.kv == pytest.approx(0.7)
    assert limits.idle_s == 600
    assert not limits.own_idle


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"min_replicas": 1001}, "min_replicas"),
        ({"max_replicas": 1001}, "max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"target_queue_ms": 600_001}, "target_queue_ms"),
        ({"target_kv": 1.5}, "target_kv"),
        ({"target_kv": math.nan}, "target_kv"),
        ({"target_kv": -0.1}, "target_kv"),
        ({"idle_s": 2_592_001}, "idle_s"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(fields: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_scaling(Scaling(**fields))  # type: ignore[arg-type]
    assert refused.value.field == f"scaling.{field}"


def test_woken_between_two_looks_counts_as_asked_for() -> None:
    """The first report of the request comes later than the next look."""
    autoscaler, limits = Autoscaler(PATIENCE), Limits(least=0, most=1, idle_s=5.0)
    load = ModelLoad("m", limits, (1,), [StageLoad(1)], requested_at=0.0)
    assert autoscaler.decide([load], 0.0) == []
    (found,) = autoscaler.decide([load], 6.0)
    assert found.kind == "scale.sleep"
    # Somebody woke it meanwhile, so it looks as it did.
    assert autoscaler.decide([load], 6.5) == []
    assert autoscaler.decide([load], 10.5) == []
    (found,) = autoscaler.decide([load], 12.0)
    assert found.kind == "scale.sleep"
