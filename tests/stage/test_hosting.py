"""One node with real partitions and a real etcd: what it publishes when a pass hangs, a load never ends, and it leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from stagemesh.services.stage import hosting as hosting_module
from stagemesh.services.stage import watcher as watcher_module
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE
from stagemesh.services.stage.watchdog import Limits

from stagemesh.v1.stage_pb2 import OpenSession, RouteHop, SessionEvent
from tests.stage.one_node import RunningNode, one_node, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that is quick to judge, of the first passes too."""
    monkeypatch.setattr(watcher_module, "STEP_S", 0.05)
    monkeypatch.setattr(hosting_module, "Limits", lambda still_s: Limits(still_s=still_s, first_s=still_s))
    monkeypatch.setattr(hosting_module, "COME_BACK_S", 1.0)


class Stuck:
    """A partition's forward that does not come back until it is let go."""

    def __init__(self, replica: Replica) -> None:
        self._forward = replica.model.forward
        self.entered, self.over = threading.Event(), threading.Event()
        replica.model.forward = self  # type: ignore[method-assign]

    def __call__(self, batch: Batch) -> Activations:
        self.entered.set()
        self.over.wait(60)
        return self._forward(batch)


def replica_of(running: RunningNode, replica_id: str) -> Replica:
    hosted = running.node.find(replica_id)
    assert hosted is not None
    assert hosted.replica is not None
    return hosted.replica


@asynccontextmanager
async def generating(
    running: RunningNode, route: list[RouteHop], model: str, new: int = 4
) -> AsyncIterator[asyncio.Task[list[int]]]:
    """A generation as a router asks for it."""
    async with grpc.aio.insecure_channel(route[0].address) as channel:
        call = channel.unary_stream(
            f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
        )

        async def tokens() -> list[int]:
            request = OpenSession(
                session=7, model=model, route=route, token_ids=[5, 6, 7], prompt_tokens=3, max_tokens=new
            )
            return [token.id async for event in call(request, timeout=60) for token in event.tokens]

        task = asyncio.create_task(tokens())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_pass_that_hangs_costs_its_replica_and_then_the_process(
    llama: Path, etcd: str, fast: None
) -> None:
    async with one_node(etcd, hang_s=0.6, drain_s=0.2) as running:
        bad = await running.assign("m", llama, stage=1, ends=(4, 8))
        head = await running.assign("m", llama, stage=0, ends=(4, 8))
        well = await running.assign("other", llama)
        for each in (bad, head, well):
            await running.is_in(each, "READY")
        stuck = Stuck(replica_of(running, bad))
        route = [running.hop(0, head), running.hop(1, bad)]
        async with generating(running, route, "m") as task:
            await until(stuck.entered.is_set)
            # The session is told at once, not when the record is.
            with pytest.raises(grpc.aio.AioRpcError, match="stage 1") as lost:
                await asyncio.wait_for(task, 30)
            assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        await running.is_in(bad, "FAILED")
        assert "a pass hangs: it has stood still for" in running.details[bad]
        assert running.node.find(bad) is None
        await until(lambda: ("node", "draining") in running.events)
        # What is beside it still computes.
        async with generating(running, [running.hop(0, well)], "other") as task:
            assert len(await asyncio.wait_for(task, 30)) == 4
        await asyncio.wait_for(running.node.given_up.wait(), 30)
        assert running.node.why.startswith(f"{bad}: a pass hangs")
        stuck.over.set()


async def test_a_pass_that_comes_back_spares_the_process(llama: Path, etcd: str, fast: None) -> None:
    async with one_node(etcd, hang_s=0.6, drain_s=0.2) as running:
        bad = await running.assign("m", llama)
        await running.is_in(bad, "READY")
        stuck = Stuck(replica_of(running, bad))
        async with generating(running, [running.hop(0, bad)], "m") as task:
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(task, 30)
        await running.is_in(bad, "FAILED")
        await until(lambda: ("node", "draining") in running.events)
        stuck.over.set()
        await until(lambda: running.events[-1] == ("node", "usable"))
        await asyncio.sleep(1.2)
        assert not running.node.given_up.is_set()
        # The registry takes it away and gives it anew: this time it serves.
        await running.unassign(bad)
        await until(lambda: "GONE" in running.states[bad])
        del running.states[bad]
        await running.assign("m", llama)
        await running.is_in(bad, "READY")
        async with generating(running, [running.hop(0, bad)], "m") as task:
            assert len(await asyncio.wait_for(task, 30)) == 4


async def test_a_load_that_never_ends_has_failed_and_others_still_load(
    llama: Path, etcd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, over = hosting_module.load_assigned, threading.Event()

    def slow(spec: object, assignment: object, *more: object) -> object:
        if assignment.model == "slow":  # type: ignore[attr-defined]
            over.wait(60)
        return load(spec, assignment, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(hosting_module, "load_assigned", slow)
    async with one_node(etcd, load_timeout_s=2.0) as running:
        stuck = await running.assign("slow", llama)
        await running.is_in(stuck, "LOADING")
        well = await running.assign("m", llama)
        await running.is_in(stuck, "FAILED")
        assert running.details[stuck] == "it still loads after 2 s"
        await running.is_in(well, "READY")
        # What it reads for nobody counts as taken until it is through.
        free = running.node._hosting._free_bytes()
        over.set()
        await until(lambda: running.node._hosting._free_bytes() == free + 1000)
        assert running.states[stuck][-1] == "FAILED"


async def test_whoever_leaves_says_so_first_and_serves_until_its_sessions_are_through(
    llama: Path, etcd: str
) -> None:
    async with one_node(etcd, drain_s=30) as running:
        name = await running.assign("m", llama)
        await running.is_in(name, "READY")
        stuck = Stuck(replica_of(running, name))
        async with generating(running, [running.hop(0, name)], "m") as task:
            await until(stuck.entered.is_set)
            leaving = asyncio.create_task(running.node.drain())
            await running.is_in(name, "DRAINING")
            assert ("node", "draining") in running.events
            # A router that has not heard of it yet is still served.
            assert running.node.find(name) is not None
            stuck.over.set()
            assert len(await asyncio.wait_for(task, 30)) == 4
            await leaving
        await until(lambda: running.states[name][-1] == "GONE")
        assert running.states[name] == ["LOADING", "READY", "DRAINING", "GONE"]
        assert running.node.find(name) is None


async def test_sessions_that_do_not_end_in_time_are_sent_elsewhere(llama: Path, etcd: str) -> None:
    async with one_node(etcd, drain_s=0.3, hang_s=0) as running:
        name = await running.assign("m", llama)
        await running.is_in(name, "READY")
        stuck = Stuck(replica_of(running, name))
        async with generating(running, [running.hop(0, name)], "m") as task:
            await until(stuck.entered.is_set)
            await running.node.drain()
            with pytest.raises(grpc.aio.AioRpcError, match="stage 0 is leaving") as moved:
                await asyncio.wait_for(task, 30)
            assert moved.value.code() is grpc.StatusCode.UNAVAILABLE
        stuck.over.set()
