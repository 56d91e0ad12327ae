"""What nodes and routers tell: summed up, faded, and refused when it makes no sense."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.registry.reports import ReportDoor, check_report
from stagemesh.services.registry.scaling.limits import Limits
from stagemesh.services.registry.scaling.reports import Reports
from stagemesh.services.router.demand import Demand
from stagemesh.services.stage.load_report import LoadReports, Totals
from stagemesh.services.stage.step_waits import StepWaits

from stagemesh.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from stagemesh.v1.registry_pb2 import LoadReport, ModelReport, ReplicaReport, ReportPace, RevisionReport


def told(node: str, *replicas: ReplicaReport, covers_ms: int = 1000) -> LoadReport:
    return LoadReport(reporter=node, covers_ms=covers_ms, replicas=replicas)


def replica(replica_id: str, **more: float) -> ReplicaReport:
    return ReplicaReport(**{"replica_id": replica_id, "model": "m", "passes_per_s": 1, **more})  # type: ignore[arg-type]


def test_a_stage_is_what_steps_meet_with_there() -> None:
    reports = Reports()
    for now in range(60):
        reports.take(told("n", replica("a", queue_ms=10, busy=0.2, kv=0.4, passes_per_s=30)), now)
        reports.take(told("o", replica("b", queue_ms=50, busy=0.6, kv=0.2, passes_per_s=10)), now)
    load = reports.load("m", Limits(), [2], [["a", "b"]], routers=(), now=60.0)
    (stage,) = load.stages
    assert stage.queue_ms == pytest.approx(20, rel=0.01)
    assert stage.busy == pytest.approx(0.4, rel=0.01)
    assert stage.kv == pytest.approx(0.3)
    assert stage.sure


def test_whoever_falls_silent_is_not_counted_and_makes_the_rest_unsure() -> None:
    reports = Reports()
    reports.take(told("n", replica("a", busy=1.0)), 0.0)
    reports.take(LoadReport(reporter="r", models=[ModelReport(model="m", active=3, waiting=2)]), 0.0)
    load = reports.load("m", Limits(), [1], [["a"]], routers=["r"], now=4.0)
    assert (load.active, load.waiting, load.sure, load.stages[0].sure) == (3, 2, True, True)
    load = reports.load("m", Limits(), [1], [["a"]], routers=["r"], now=6.0)
    assert (load.active, load.waiting, load.sure, load.stages[0].known) == (0, 0, False, 0)
    assert not load.stages[0].sure
    # A router that never said anything is there, too.
    assert not reports.load("m", Limits(), [1], [[]], routers=["s"], now=4.0).sure
    # Who is told to report less often is given more time.
    for nth in range(10_000):
        reports.take(LoadReport(reporter=str(nth)), 6.0)
    assert reports.load("m", Limits(), [1], [["a"]], routers=["r"], now=6.0).sure


def test_waiting_without_passes_fades() -> None:
    reports = Reports()
    for now in range(20):
        reports.take(told("n", replica("a", queue_ms=100)), now)
    for now in range(20, 40):
        reports.take(told("n", replica("a", queue_ms=0, passes_per_s=0)), now)
    assert reports.load("m", Limits(), [1], [["a"]], routers=(), now=40).stages[0].queue_ms < 1


@pytest.mark.parametrize("sign", ["arrivals", "active", "waiting", "held"])
def test_every_sign_of_a_request_counts_as_one(sign: str) -> None:
    reports = Reports()
    reports.load("m", Limits(), [1], [[]], routers=(), now=0.0)
    reports.take(LoadReport(reporter="r", models=[ModelReport(model="m")]), 5.0)
    assert reports.load("m", Limits(), [1], [[]], routers=(), now=6.0).requested_at == 0.0
    reports.take(LoadReport(reporter="r", models=[ModelReport(**{"model": "m", sign: 1})]), 7.0)  # type: ignore[arg-type]
    assert reports.load("m", Limits(), [1], [[]], routers=(), now=8.0).requested_at == 7.0
    reports.take(told("n", replica("a", running=1)), 9.0)
    assert reports.load("m", Limits(), [1], [["a"]], routers=(), now=9.0).requested_at == 9.0


@given(st.floats(), st.floats(), st.floats(), st.floats())
def test_no_number_of_a_report_breaks_the_sums(queue: float, busy: float, kv: float, passes: float) -> None:
    reports = Reports()
    bad = replica("a", queue_ms=min(queue, 3e38), busy=busy, kv=kv, passes_per_s=passes)
    reports.take(told("n", bad), 0.0)
    (stage,) = reports.load("m", Limits(), [1], [["a"]], routers=(), now=0.0).stages
    assert 0 <= stage.queue_ms < math.inf
    assert 0 <= stage.busy <= 1
    assert 0 <= stage.kv <= 1


def test_what_is_gone_is_forgotten() -> None:
    reports = Reports()
    reports.take(told("n", replica("a")), 0.0)
    reports.take(LoadReport(reporter="r", models=[ModelReport(model="m", active=1)]), 0.0)
    reports.forget({"b"}, {"o"}, 1.0)
    assert "replicas=0" in repr(reports)
    assert "reporters=2" in repr(reports)
    reports.forget({"b"}, {"o"}, 1000.0)
    assert "reporters=0" in repr(reports)


# ---- the door ----


class Leads:
    leads = True


def door(taken: list[LoadReport]) -> ReportDoor:
    return ReportDoor(Leads(), [taken.append])  # type: ignore[arg-type]


async def stream(*reports: LoadReport) -> AsyncIterator[LoadReport]:
    for report in reports:
        yield report


async def test_the_pace_is_told_at_once_and_when_it_changes_much() -> None:
    taken: list[LoadReport] = []
    entrance = door(taken)
    paces = [pace async for pace in entrance.stream(stream(*[LoadReport(reporter="n")] * 5))]
    assert paces == [ReportPace(period_ms=1000)]
    assert len(taken) == 5
    entrance._open = 9_999
    paces = [pace async for pace in entrance.stream(stream(LoadReport(reporter="n")))]
    assert paces == [ReportPace(period_ms=10_000)]
    entrance._open = 20_000
    with pytest.raises(ResourceExhausted):
        await anext(aiter(entrance.stream(stream())))


async def test_only_the_leader_takes_reports() -> None:
    entrance = door([])
    entrance._leadership.leads = False  # type: ignore[misc]
    with pytest.raises(FailedPrecondition):
        await anext(aiter(entrance.stream(stream(LoadReport(reporter="n")))))


async def test_a_leader_that_is_none_any_more_ends_the_stream() -> None:
    taken: list[LoadReport] = []
    entrance = ReportDoor(leads := Leads(), [taken.append])  # type: ignore[arg-type]
    reports: asyncio.Queue[LoadReport] = asyncio.Queue()

    async def source() -> AsyncIterator[LoadReport]:
        while True:
            yield await reports.get()

    answers = aiter(entrance.stream(source()))
    reports.put_nowait(LoadReport(reporter="n"))
    await anext(answers)
    leads.leads = False
    reports.put_nowait(LoadReport(reporter="n"))
    with pytest.raises(FailedPrecondition):
        await anext(answers)
    assert len(taken) == 1
    assert "reporters=0" in repr(entrance)


@pytest.mark.parametrize(
    ("report", "field"),
    [
        (LoadReport(), "reporter"),
        (LoadReport(reporter="n" * 257), "reporter"),
        (LoadReport(reporter="n", replicas=[ReplicaReport()] * 10_001), "replicas"),
        (LoadReport(reporter="n", models=[ModelReport()] * 10_001), "models"),
        (
            LoadReport(reporter="n", models=[ModelReport(revisions=[RevisionReport()] * 10_001)]),
            "models.revisions",
        ),
    ],
    ids=["nobody", "long", "replicas", "models", "revisions"],
)
def test_a_report_out_of_bounds_is_refused_by_name(report: LoadReport, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_report(report)
    assert refused.value.field == field


# ---- what is told ----


class Replica:
    replica_id, model_name, stage = "a", "m", 1

    def __init__(self) -> None:
        self.now = Totals(0, 0, 0)

    def totals(self) -> Totals:
        return self.now


def test_a_node_tells_what_came_since_the_last_report() -> None:
    reports, one = LoadReports("n"), Replica()
    one.now = Totals(100, 9_000_000, 5_000_000, 10, 7e6)
    (first,) = reports.make([(one, "r1")], 1.0).replicas
    # What lies before the first look is nobody's business.
    assert (first.queue_ms, first.busy, first.passes_per_s) == (0, 0, 0)
    one.now = Totals(110, 9_020_000, 5_500_000, 20, 7e6 + 10_000, kv=0.5, running=3, waiting=1)
    (second,) = reports.make([(one, "r1")], 2.0).replicas
    # 2 ms a pass before its turn, and 1 ms a step before it was in a pass.
    assert second.queue_ms == pytest.approx(3.0)
    assert second.busy == pytest.approx(0.25)
    assert (second.passes_per_s, second.pass_ms, second.kv) == (5, 50, 0.5)
    assert (second.running, second.waiting, second.revision, second.stage) == (3, 1, "r1", 1)
    # One that comes back after it was gone begins anew.
    reports.make([], 1.0)
    assert reports.make([(one, "r1")], 1.0).replicas[0].busy == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), min_size=1, max_size=20))
def test_the_mean_wait_is_what_each_step_waited(steps: list[tuple[float, int]]) -> None:
    waits, now, waited = StepWaits(), 0.0, 0.0
    for seconds, count in steps:
        waits.look(count, now)
        now += seconds
        waits.look(0, now)
        waited += seconds * count
        waits.steps += count
    assert waits.waited_us == pytest.approx(waited * 1e6)


def test_a_router_counts_what_is_deployed_and_nothing_else() -> None:
    demand = Demand()
    demand.known = {"m"}
    demand.waiting = lambda model: 1
    demand.held = lambda model: 2
    for _ in range(5):
        demand.began("m")
        demand.began("no such model")
    demand.over("m")
    demand.over("no such model")
    report = demand.report("r", 1.0)
    (model,) = report.models
    assert (report.reporter, model.model, model.arrivals) == ("r", "m", 5)
    assert (model.active, model.waiting, model.held) == (1, 1, 2)
    (model,) = demand.report("r", 1.0).models
    assert (model.arrivals, model.active) == (0, 1)
