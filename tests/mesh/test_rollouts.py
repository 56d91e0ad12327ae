"""A model gets new revisions and other cuts under traffic: nobody is refused, and what is worse goes back by itself."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import LlamaForCausalLM

from stagemesh import AsyncClient
from stagemesh.errors import Unavailable
from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.local.processes import ChildProcess
from stagemesh.revisions import rolls_out
from stagemesh.v1 import registry_pb2
from tests.checkpoints import make_llama

from .traffic import PROMPTS, Traffic, traffic, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(llama: Path) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30) as mesh:
        await mesh.deploy(llama, "llama", cache=False)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client(timeout_s=60) as client:
        yield client


async def spec_of(mesh: LocalMesh) -> registry_pb2.ModelSpec:
    return await deployment.model(mesh.registry_address, "llama")


@torch.inference_mode()
def golden(folder: Path) -> list[tuple[int, ...]]:
    """The eight tokens that follow each of `PROMPTS`, through the model library alone."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        found.append(tuple(out[0, len(prompt) :].tolist()))
    return found


def check(seen: Traffic, allowed: list[list[tuple[int, ...]]]) -> None:
    """Nobody was refused, and every answer is one revision's own, whole."""
    assert seen.failed == []
    for outcome in seen.outcomes:
        assert outcome.tokens in [answers[outcome.prompt] for answers in allowed]


@contextlib.asynccontextmanager
async def throttled(process: ChildProcess) -> AsyncIterator[None]:
    """A node gets a third of its time, as under a quota."""

    async def throttle() -> None:
        while True:
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(0.008)
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.sleep(0.004)

    task = asyncio.create_task(throttle())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        os.kill(process.pid, signal.SIGCONT)


async def test_a_node_that_became_slow_is_relieved_of_layers(
    mesh: LocalMesh, client: AsyncClient, llama: Path
) -> None:
    answers = golden(llama)
    first = (await spec_of(mesh)).partitions
    assert [one.end_layer - one.first_layer for one in first] == [4, 4]
    homes = {one.record.stage: one.record for one in (await client.status()).replicas}
    slow = next(one for one in mesh.stage_processes if one.pid == homes[0].pid)

    async def move() -> bool:
        answer = await deployment.recut(mesh.registry_address, "llama", dry_run=True, force=False)
        at_slow = next(
            part.end_layer - part.first_layer
            for part, stage in zip(answer.partitions, answer.plan.stages, strict=True)
            if homes[0].node_id in stage.nodes
        )
        if at_slow > 3 or "it wins" not in answer.reason or "at this load" in answer.reason:
            return False
        return (await deployment.recut(mesh.registry_address, "llama", dry_run=False, force=False)).begun

    async with throttled(slow), traffic(client, "llama", workers=4) as seen:
        await until(move, 60)
        revision = deployment.wanted_revision(await spec_of(mesh))
        await mesh.wait_ready("llama", revision=revision, timeout_s=60)
        await seen.wait_for(4)
    check(seen, [answers])
    spec = await spec_of(mesh)
    assert (spec.revision, spec.rollout.kind) == (revision, "recut")
    after = {one.record.node_id: one.record for one in (await client.status()).replicas}
    held = after[homes[0].node_id].partition
    assert held.end_layer - held.first_layer < 4


@pytest.mark.long
async def test_an_update_under_load_and_one_that_is_worse(
    mesh: LocalMesh, client: AsyncClient, llama: Path, tmp_path: Path
) -> None:
    better = make_llama(tmp_path / "better", layers=6)
    worse = make_llama(tmp_path / "worse", layers=64)
    old, new = golden(llama), golden(better)
    async with traffic(client, "llama", workers=4) as seen:
        await seen.wait_for(4)
        # A session that is under way ends on the revision on which it began.
        stream = client.stream("llama", token_ids=PROMPTS[0], max_tokens=300, temperature=0, ignore_eos=True)
        first = await anext(aiter(stream))
        await mesh.deploy(better, "llama", cache=False, canary=0.3, canary_s=1)
        spec = await spec_of(mesh)
        assert (spec.rollout.state, rolls_out(spec)) == (registry_pb2.ROLLOUT_STATE_DONE, False)
        await seen.wait_for(4)
        assert seen.outcomes[-1].tokens == new[seen.outcomes[-1].prompt]
        tokens = [*first.token_ids, *[token async for chunk in stream for token in chunk.token_ids]]
        assert tokens[:8] == list(old[0])
        assert len(tokens) == 300
    check(seen, [old, new])
    assert any(outcome.tokens == old[outcome.prompt] for outcome in seen.outcomes)

    async with traffic(client, "llama", workers=6) as seen:
        with pytest.raises(Unavailable, match="taken back"):
            await mesh.deploy(worse, "llama", cache=False, canary=0.5, canary_s=30)
        await seen.wait_for(4)
    spec = await spec_of(mesh)
    assert spec.source == str(better)
    assert "ms a token" in spec.rollout.reason
    check(seen, [new, golden(worse)])

    async def only_the_good_one() -> bool:
        status = await client.status()
        return {item.record.revision for item in status.replicas} == {spec.revision}

    await until(only_the_good_one, 30)
