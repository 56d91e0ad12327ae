"""A node keeps what it unloads while nothing else needs the memory: attached again at once, with the same tokens."""

import asyncio
from pathlib import Path

import grpc
import pytest
from stagemesh.services.stage import hosting as hosting_module
from stagemesh.services.stage import metrics
from stagemesh.services.stage.servicer import SERVICE
from stagemesh.services.stage.warm import kept as kept_module

from stagemesh.v1.stage_pb2 import OpenSession, SessionEvent
from tests.stage.one_node import RunningNode, one_node, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models whose partitions were read from their checkpoints."""
    read, found = hosting_module.load_assigned, list[str]()

    def counted(spec: object, assignment: object, *more: object) -> object:
        found.append(assignment.model)  # type: ignore[attr-defined]
        return read(spec, assignment, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(hosting_module, "load_assigned", counted)
    return found


async def tokens(running: RunningNode, replica_id: str, model: str) -> list[int]:
    async with grpc.aio.insecure_channel(running.record.address) as channel:
        call = channel.unary_stream(
            f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
        )
        request = OpenSession(
            session=7,
            model=model,
            route=[running.hop(0, replica_id)],
            token_ids=[5, 6, 7],
            prompt_tokens=3,
            max_tokens=8,
        )
        return [token.id async for event in call(request, timeout=60) for token in event.tokens]


async def served(running: RunningNode, model: str, folder: Path) -> str:
    """Have the model loaded once more, under the same id."""
    running.states.clear()
    replica_id = await running.assign(model, folder)
    await running.is_in(replica_id, "READY")
    return replica_id


async def let_go(running: RunningNode, replica_id: str) -> None:
    await running.unassign(replica_id)
    await until(lambda: "GONE" in running.states[replica_id])
    await until(lambda: not running.node._hosting.ending)


async def test_what_is_unloaded_is_attached_again_with_the_same_tokens(
    llama: Path, etcd: str, loads: list[str]
) -> None:
    async with one_node(etcd, drain_s=0.2) as running:
        replica_id = await served(running, "m", llama)
        expected = await tokens(running, replica_id, "m")
        await let_go(running, replica_id)
        # Whoever wants it again as soon as it is gone is to know.
        assert running.events.index(("keeps", "1")) < running.events.index((replica_id, "GONE"))
        (kept,) = running.record.keeps
        assert (kept.first_layer, kept.end_layer) == (0, 8)
        assert kept.bytes > 10**6
        hits = metrics.KEPT_ASKED.labels("hit")._value.get()
        again = await served(running, "m", llama)
        # It was not even said to load.
        assert "LOADING" not in running.states[again]
        assert loads == ["m"]
        assert metrics.KEPT_ASKED.labels("hit")._value.get() == hits + 1
        assert await tokens(running, again, "m") == expected
        assert not running.record.keeps
        # Another name for the same checkpoint is the same partition.
        await let_go(running, again)
        other = await served(running, "other", llama)
        assert await tokens(running, other, "other") == expected
        assert loads == ["m"]


async def test_one_that_is_just_being_let_go_of_is_waited_for(
    llama: Path, etcd: str, loads: list[str]
) -> None:
    async with one_node(etcd, drain_s=0.2) as running:
        replica_id = await served(running, "m", llama)
        await running.unassign(replica_id)
        await until(lambda: running.node._hosting.ending)
        await served(running, "other", llama)
        assert loads == ["m"]


async def test_nothing_is_kept_that_another_partition_needs(
    llama: Path, etcd: str, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_node(etcd, drain_s=0.2) as running:
        replica_id = await served(running, "m", llama)
        nbytes = running.node.find(replica_id).replica.model.weight_bytes  # type: ignore[union-attr]
        # With a full house of sessions there is room for the weights of one and a half.
        running.record.memory_bytes = int(nbytes * 1.5)
        monkeypatch.setattr(
            hosting_module, "kv_budget", lambda config, model, spec, left: min(left, nbytes // 4)
        )
        await let_go(running, replica_id)
        assert running.node._hosting._kept.bytes == nbytes
        monkeypatch.setattr(hosting_module, "weight_bytes", lambda spec, partition, device: nbytes)
        # Another dtype's partition is another one.
        monkeypatch.setattr(
            kept_module.Key, "of", classmethod(lambda cls, spec, one: cls(one.model, "", "", "", 0, 8))
        )
        await served(running, "other", llama)
        assert loads == ["m", "other"]
        assert running.node._hosting._kept.bytes == 0
        assert not running.record.keeps


async def test_it_goes_when_the_machine_runs_short(
    llama: Path, etcd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_node(etcd, drain_s=0.2) as running:
        replica_id = await served(running, "m", llama)
        await let_go(running, replica_id)
        assert running.node._hosting._kept.bytes
        monkeypatch.setattr(kept_module, "SHORT", 1.0)
        await until(lambda: not running.node._hosting._kept.bytes)
        await until(lambda: not running.record.keeps)


async def test_with_no_memory_for_it_nothing_is_kept(llama: Path, etcd: str, loads: list[str]) -> None:
    async with one_node(etcd, drain_s=0.2, keep_mb=0) as running:
        replica_id = await served(running, "m", llama)
        await let_go(running, replica_id)
        await served(running, "m", llama)
        assert loads == ["m", "m"]


async def test_one_that_hung_is_not_kept(llama: Path, etcd: str) -> None:
    async with one_node(etcd, drain_s=0.2) as running:
        replica_id = await served(running, "m", llama)
        hosted = running.node.find(replica_id)
        assert hosted is not None
        hosted.hangs = True
        await running.unassign(replica_id)
        await until(lambda: "GONE" in running.states[replica_id])
        await asyncio.sleep(0)
        assert running.node._hosting._kept.bytes == 0
