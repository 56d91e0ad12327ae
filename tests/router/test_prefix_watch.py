"""The streams of reports: which replicas are followed, and what becomes of a stream that breaks."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from stagemesh.services.router import prefix_watch
from stagemesh.services.router.channels import Channels
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.prefix_watch import PrefixWatch
from stagemesh.services.router.routing import Routing
from stagemesh.services.router.telemetry import Telemetry

from stagemesh.grpc_server import GrpcServer
from stagemesh.prefix import SHORT_BYTES, digests
from stagemesh.v1 import stage_pb2_grpc
from stagemesh.v1.registry_pb2 import REPLICA_STATE_LOADING
from stagemesh.v1.stage_pb2 import PrefixReport, ReplicaLoad

from .specs import listing, model, replica

BLOCKS = digests([5] * 64)
JOINED = [digest[:SHORT_BYTES] for digest in BLOCKS]


class Telling(stage_pb2_grpc.StageServiceServicer):
    """Tells one block after the other of `script`, which has a list of reports for each stream that is opened; None ends it."""

    def __init__(self, *script):
        self.script = list(script)
        self.asked, self.ended = [], 0

    async def WatchPrefixes(self, request, context):
        self.asked.append(request.replica_id)
        if not self.script:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        try:
            for message in self.script.pop(0):
                if message is None:
                    return
                yield message
            await asyncio.Event().wait()
        finally:
            self.ended += 1


def full(count, sequence=1):
    load = ReplicaLoad(replica_id="a0", prompt_tokens=70, step_ms=4)
    return PrefixReport(full=True, sequence=sequence, held=b"".join(JOINED[:count]), load=load)


def more(index, since):
    return PrefixReport(since=since, sequence=since + 1, held=JOINED[index])


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(stage, monkeypatch, spec):
    monkeypatch.setattr(prefix_watch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(prefix_watch, "LOOK_S", 0.0)
    door = GrpcServer("127.0.0.1", 0)
    stage_pb2_grpc.add_StageServiceServicer_to_server(stage, door.server)
    port = await door.start(["stagemesh.v1.StageService"])
    membership, loads, channels = Membership(grace_s=0.0), Loads(), Channels(2**20)
    record = replica("a0", 0, 1, address=f"127.0.0.1:{port}")
    membership.snapshot(listing(spec, record), 0.0)
    routing = Routing(membership, loads, default_policy="p2c_ewma")
    watch = PrefixWatch(membership, routing, loads, channels, Telemetry())
    try:
        yield watch, membership, routing, loads, record
    finally:
        await watch.close()
        await channels.close()
        await door.stop(0)


SPEC = model(stages=1, policy="prefix_affinity")


async def test_everything_first_then_changes_and_the_load_beside_them(monkeypatch):
    stage = Telling([full(2), more(2, 1), more(3, 2)])
    async with watching(stage, monkeypatch, SPEC) as (watch, membership, routing, loads, record):
        watch.update()
        watch.update()
        await until(lambda: routing.prefixes.held(["a0"], BLOCKS) == {"a0": 4})
        assert stage.asked == ["a0"], "one stream, however often it is looked"
        (candidate,) = loads.candidates([record])
        assert candidate.others_prompts == 70
        membership.snapshot(listing(SPEC), 1.0)
        membership.expire(2.0)
        watch.update()
        assert not routing.prefixes.reports("a0"), "it is gone"
        await until(lambda: stage.ended == 1)


async def test_a_missed_report_and_a_broken_stream_lead_to_everything_anew(monkeypatch):
    stage = Telling([full(1), more(1, 1), more(3, 3)], [full(2, 7), None], [full(3, 9), more(3, 9)])
    async with watching(stage, monkeypatch, SPEC) as (watch, _, routing, _, _):
        seen = []
        take = routing.prefixes.take
        routing.prefixes.take = lambda name, report: seen.append(take(name, report)) or seen[-1]
        watch.update()
        await until(lambda: routing.prefixes.held(["a0"], BLOCKS) == {"a0": 4})
        assert seen == [True, True, False, True, True, True]
        assert stage.asked == ["a0"] * 3


async def test_a_replica_of_an_older_version_is_asked_once(monkeypatch):
    stage = Telling()
    async with watching(stage, monkeypatch, SPEC) as (watch, _, routing, _, _):
        watch.update()
        await until(lambda: all(task.done() for task in watch._following.values()))
        watch.update()
        assert stage.asked == ["a0"]
        assert not routing.prefixes.reports("a0")


@pytest.mark.parametrize("policy", ["", "p2c_ewma"])
async def test_models_that_go_by_something_else_cost_no_stream(monkeypatch, policy):
    stage = Telling([full(1)])
    async with watching(stage, monkeypatch, model(stages=1, policy=policy)) as (watch, *_):
        watch.update()
        assert not watch._following


async def test_replicas_of_a_revision_that_is_tried_out_are_followed_too(monkeypatch):
    stage = Telling([full(1)], [full(1)])
    async with watching(stage, monkeypatch, SPEC) as (watch, membership, _, _, record):
        other = replica("b0", 0, 1, address=record.address, revision="r2")
        loading = replica("c0", 0, 1, address=record.address, state=REPLICA_STATE_LOADING)
        membership.snapshot(listing(SPEC, record, other, loading), 1.0)
        watch.update()
        await until(lambda: sorted(set(stage.asked)) == ["a0", "b0"])
