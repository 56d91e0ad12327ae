"""A model that scales itself, in real processes: load grows its bottleneck only, idling shrinks it, it sleeps and wakes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stagemesh import AsyncClient, records
from stagemesh.etcd import Etcd
from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1.registry_pb2 import REPLICA_STATE_READY, Deployment, EventRecord, Scaling

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio]

# Once it has grown it does not grow again within the test: on a busy machine any stage may wait for a CPU.
PATIENCE = {
    "scale-up-after-s": 0.5, "scale-up-cooldown-s": 120, "scale-down-after-s": 1, "scale-down-cooldown-s": 0.5,
    "idle-s": 2, "consolidate-after-s": 0,
}  # fmt: skip


@pytest.fixture
def lopsided(tmp_path: Path) -> Path:
    """By bytes the two stages are alike; but the first only looks up a row of its embedding, and the last multiplies by its head."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64_000,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "lopsided")
    return tmp_path / "lopsided"


async def _until(
    registry: str, condition: Callable[[Deployment, list[int]], bool], within_s: float = 60
) -> None:
    """Wait until it holds of the deployment and its ready replicas per stage."""
    async with asyncio.timeout(within_s):
        while True:
            (found,) = await deployment.deployments(registry)
            ready = [
                sum(each.stage == stage and each.state == REPLICA_STATE_READY for each in found.replicas)
                for stage in range(2)
            ]
            if condition(found, ready):
                return
            await asyncio.sleep(0.05)


async def _ask(client: AsyncClient, seed: int, tokens: int) -> None:
    answer = await client.generate(
        "m", token_ids=[2 + seed, 7], max_tokens=tokens, temperature=0, ignore_eos=True
    )
    assert len(answer.token_ids) == tokens


async def _events(etcd: Etcd) -> list[EventRecord]:
    found, _ = await etcd.get_prefix(records.EVENTS)
    events = [records.from_json(each.value, EventRecord) for each in found]
    return [event for event in events if event.kind.startswith("scale.") and event.kind != "scale.limit"]


@pytest.mark.long
async def test_only_the_bottleneck_grows_then_it_shrinks_sleeps_and_wakes_and_no_request_fails(
    lopsided: Path,
) -> None:
    stop, light = asyncio.Event(), asyncio.Event()

    async def heavy(client: AsyncClient, seed: int) -> None:
        while not light.is_set():
            await _ask(client, seed, 24)

    async def lightly(client: AsyncClient) -> None:
        while not stop.is_set():
            await _ask(client, 0, 2)
            await asyncio.sleep(0.1)

    async with LocalMesh(
        stages=3, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2**30, flags={"registry": PATIENCE}
    ) as mesh:
        scaling = Scaling(min_replicas=0, max_replicas=2, target_queue_ms=3)
        await mesh.deploy(lopsided, "m", stages=2, replicas=1, cache=False, force=True, scaling=scaling)
        registry = mesh.registry_address
        etcd = Etcd(mesh.etcd_endpoints)
        await etcd.start()
        async with mesh.client() as client:
            loads = [asyncio.create_task(heavy(client, seed)) for seed in range(24)]
            await _until(registry, lambda found, ready: ready == [1, 2])
            light.set()
            await asyncio.gather(*loads)
            trickle = asyncio.create_task(lightly(client))
            await _until(registry, lambda found, ready: ready == [1, 1])
            stop.set()
            await trickle
            await _until(
                registry, lambda found, ready: list(found.scale.replicas) == [0, 0] and ready == [0, 0]
            )
            # The next request wakes it, and is answered.
            await _ask(client, 5, 4)
        events = await _events(etcd)
        await etcd.close()
    while events[0].kind in ("scale.sleep", "scale.wake"):  # before the load came
        events.pop(0)
    assert [event.kind for event in events] == ["scale.up", "scale.down", "scale.sleep", "scale.wake"], events
    up = events[0]
    assert up.model == "m"
    assert up.numbers["stage"] == 1
    assert up.numbers["queue_ms"] > 0
    assert "stage 1 from 1 to 2 replicas: steps wait" in up.reason
