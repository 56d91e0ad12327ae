"""When other cuts of a deployed model pay, and what then happens."""

import asyncio

import pytest
from stagemesh.services.registry.events import Events
from stagemesh.services.registry.rollout import recuts as recuts_file
from stagemesh.services.registry.rollout.begin import begun
from stagemesh.services.registry.rollout.drift import Moves, Patience, weigh
from stagemesh.services.registry.rollout.recuts import Recuts

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import FailedPrecondition, NotFound
from stagemesh.planning.profile import shape_of
from stagemesh.v1 import registry_pb2 as pb
from tests.checkpoints import make_llama
from tests.registry.assigned import Mesh
from tests.registry.test_planned import ask, deploy, node

PATIENCE = Patience()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> checkpoints.Checkpoint:
    return checkpoints.inspect(make_llama(tmp_path_factory.mktemp("recuts"), layers=12))


def layers_of(cuts) -> list[int]:
    return [end - first for first, end in cuts]


def settled(found, **settings) -> Mesh:
    """Two nodes alike, the model cut evenly between them."""
    mesh = Mesh([node("a"), node("b")], [])
    spec = deploy(found, ask(stages=2, **settings), mesh.world())
    mesh.models["m"] = spec
    mesh.settle()
    return mesh


def look(found, mesh: Mesh, pass_ms=None, busy=1.0, patience=PATIENCE):
    return weigh(mesh.models["m"], found, mesh.world(), pass_ms or {}, busy, patience)


def faster(found, mesh: Mesh, name: str, times: float) -> None:
    """A profile says that the node is that much faster than the other one."""
    for each in mesh.nodes.values():
        ms = 4.0 / times if each.node_id == name else 4.0
        each.layer_profiles.add(shape=shape_of(found, ""), layer_ms={1: ms, 8: ms, 32: ms})


def test_nothing_moves_while_the_cuts_are_the_best(found) -> None:
    weighed = look(found, settled(found))
    assert not weighed.pays
    assert "the best already" in weighed.reason


def test_profiles_that_say_otherwise_move_the_cut(found) -> None:
    mesh = settled(found)
    faster(found, mesh, "b", 3)
    weighed = look(found, mesh)
    assert weighed.pays
    assert weighed.gain == pytest.approx(weighed.plan.tokens_per_s / weighed.present_tokens_per_s - 1)
    by_node = {stage.nodes[0]: stage.end_layer - stage.first_layer for stage in weighed.plan.stages}
    assert by_node["b"] > by_node["a"]
    # The reason has the numbers.
    assert f"{weighed.gain:+.0%}" in weighed.reason
    # Not for a model that is hardly asked, and not for a gain that is small.
    assert not look(found, mesh, busy=0.001).pays
    assert not look(found, mesh, patience=Patience(least_gain=10)).pays


def test_a_node_that_became_slow_is_told_by_its_passes(found) -> None:
    mesh = settled(found)
    faster(found, mesh, "b", 1)
    on = {one.node_id: one.replica_id for one in mesh.assignments.values()}
    even = {on["a"]: 30.0, on["b"]: 30.0}
    assert not look(found, mesh, even).pays
    slow = {on["a"]: 90.0, on["b"]: 30.0}
    weighed = look(found, mesh, slow)
    assert weighed.pays
    by_node = {stage.nodes[0]: stage.end_layer - stage.first_layer for stage in weighed.plan.stages}
    assert by_node["b"] > by_node["a"]
    # One replica's time alone says nothing: how many rows it had is not known.
    assert not look(found, mesh, {on["a"]: 900.0}).pays


def test_a_move_needs_room_beside_what_runs(found) -> None:
    mesh = settled(found)
    faster(found, mesh, "b", 3)
    for each in mesh.nodes.values():
        each.memory_bytes = int(sum(found.layer_bytes) * 0.9)
    with pytest.raises(FailedPrecondition):
        look(found, mesh)


def test_a_gain_must_last_and_moves_must_be_rare(found) -> None:
    mesh = settled(found)
    faster(found, mesh, "b", 3)
    spec, good = mesh.models["m"], look(found, mesh)
    moves = Moves(PATIENCE)
    assert not moves.due(spec, good, 0.0, 10**9)
    assert not moves.due(spec, good, 59.0, 10**9)
    assert moves.due(spec, good, 60.0, 10**9)
    assert not moves.due(spec, None, 61.0, 10**9)  # it could not be weighed in between
    assert not moves.due(spec, good, 62.0, 10**9)
    # The last rollout is in the record, for every leader; one that was taken back counts tenfold.
    spec.rollout.CopyFrom(pb.Rollout(kind="recut", to_revision=spec.revision, step_unix_ms=10**9))
    assert moves.cools_down(spec, 10**9 + 599_000)
    assert not moves.cools_down(spec, 10**9 + 601_000)
    spec.rollout.to_revision = "another"
    assert moves.cools_down(spec, 10**9 + 5_999_000)


# ---- what is done about it ----


class Mirror:
    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.synced = mesh, asyncio.Event()
        self.synced.set()

    def world(self):
        return self.mesh.world()

    def models(self):
        return list(self.mesh.models.values())


class Models:
    """The real one is tried with etcd elsewhere; here it writes to the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def replace(self, seen, spec) -> bool:
        if self.mesh.models[seen.name] != seen:
            return False
        self.mesh.models[seen.name] = spec
        return True


class Leads:
    leads = True


@pytest.fixture
def recuts(found, monkeypatch):
    def make(mesh: Mesh, patience=PATIENCE) -> Recuts:
        async def inspect(spec):
            return found

        return Recuts(Models(mesh), Mirror(mesh), Leads(), Events(None), patience, inspect)

    monkeypatch.setattr(recuts_file, "LOOK_S", 0.01)
    return make


async def test_it_is_asked_for(found, recuts) -> None:
    mesh = settled(found)
    subject = recuts(mesh)
    before = mesh.models["m"].revision
    answer = await subject.recut("m", dry_run=False, force=False)
    assert not answer.begun
    assert "best already" in answer.reason
    faster(found, mesh, "b", 3)
    answer = await subject.recut("m", dry_run=True, force=False)
    assert not answer.begun
    assert mesh.models["m"].revision == before
    answer = await subject.recut("m", dry_run=False, force=False)
    assert answer.begun
    spec = mesh.models["m"]
    assert (spec.revision, spec.rollout.kind) == (before, "recut")
    candidate = spec.rollout.next
    assert candidate.revision.split("-")[0] == before.split("-")[0] != candidate.revision
    assert [(p.first_layer, p.end_layer) for p in candidate.partitions] == [
        (p.first_layer, p.end_layer) for p in answer.partitions
    ]
    assert candidate.plan.why[0] == answer.reason
    with pytest.raises(FailedPrecondition, match="under way"):
        await subject.recut("m", dry_run=False, force=False)
    with pytest.raises(NotFound):
        await subject.recut("x", dry_run=False, force=False)


async def test_it_moves_by_itself_only_where_it_may(found, recuts) -> None:
    for auto in (False, True):
        mesh = settled(found, auto_recut=auto)
        faster(found, mesh, "b", 3)
        subject = recuts(mesh, Patience(settle_s=0))
        task = asyncio.create_task(subject.run())
        try:
            async with asyncio.timeout(20 if auto else 0.5):
                while not mesh.models["m"].HasField("rollout"):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            assert not auto
        finally:
            task.cancel()
        assert mesh.models["m"].HasField("rollout") == auto
    assert list(mesh.models["m"].rollout.steps) == [0.25, 1.0]


async def test_reports_are_remembered_and_forgotten(found, recuts) -> None:
    mesh = settled(found)
    subject = recuts(mesh)
    (one, *_) = mesh.assignments
    for _ in range(3):
        subject.take(pb.LoadReport(replicas=[pb.ReplicaReport(replica_id=one, pass_ms=5, busy=0.5)]), 1.0)
    subject.take(pb.LoadReport(replicas=[pb.ReplicaReport(replica_id="gone", pass_ms=5)]), 1.0)
    assert repr(subject) == "<Recuts of 2 replicas>"
    await subject._look()
    assert repr(subject) == "<Recuts of 1 replicas>"


def test_what_nodes_compute_for_other_models_is_known_by_node(found, recuts) -> None:
    mesh = settled(found)
    subject = recuts(mesh)
    told = [pb.ReplicaReport(replica_id=each, busy=0.4) for each in [*mesh.assignments, "gone"]]
    subject.take(pb.LoadReport(replicas=told), 1.0)
    nodes = {held.node_id for held in mesh.assignments.values()}
    assert subject.busy_for_others("other", 2.0) == pytest.approx(dict.fromkeys(nodes, 0.4))
    assert subject.busy_for_others("m", 2.0) == {}
    assert subject.busy_for_others("other", 100.0) == {}, "that is old"


def test_what_moves_is_a_rollout(found) -> None:
    mesh = settled(found)
    spec = mesh.models["m"]
    other = pb.ModelSpec()
    other.CopyFrom(spec)
    other.revision = "other"
    assert begun(spec, other, recuts_file._CAUTIOUS, "x", 1).rollout.kind == "recut"
