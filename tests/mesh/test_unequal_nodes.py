"""Nodes in processes with different numbers of compute threads: cuts that were even move to the faster one, under traffic."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stagemesh import records
from stagemesh.config_flags import env_name
from stagemesh.etcd import Etcd
from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1.registry_pb2 import NodeRecord

from .traffic import PROMPTS, traffic, until

pytestmark = [pytest.mark.mesh, pytest.mark.long, pytest.mark.asyncio]

# Plain torch shares out the rows of a product.
PLAIN = {env_name("fast"): "false"}
# On few cores so many threads wait for one another, on many they are faster: unequal in any case, and which way is measured.
OTHER, THREADS = "many-threads", 8
# Everybody else of a test run uses the cores, too: a difference of a tenth is one here.
REGISTRY = {"recut-gain": 0.1}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Layers large enough that a second thread pays."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


@torch.inference_mode()
def golden(folder: Path) -> list[tuple[int, ...]]:
    """The eight tokens that follow each of `PROMPTS`, through the model library alone."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [
        tuple(
            model.generate(
                torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1
            )[0, len(prompt) :].tolist()
        )
        for prompt in PROMPTS
    ]


@contextlib.asynccontextmanager
async def stage_process(mesh: LocalMesh, name: str, threads: int, folder: Path) -> AsyncIterator[None]:
    """A stage process of its own that joins the mesh."""
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stagemesh.services.stage", "--port", "0", "--node-id", name,
            "--threads", str(threads), "--memory", str(2**31), "--etcd", mesh.etcd_endpoints,
            "--data-dir", str(folder / "data"), "--no-fast", "--drain-s", "1",
            stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)


async def test_even_cuts_move_to_the_node_with_more_threads(wide: Path, tmp_path: Path) -> None:
    answers = golden(wide)
    # What is kept of a measurement would be another mesh's.
    stage = {"data-dir": str(tmp_path / "data")}
    async with contextlib.AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            LocalMesh(
                nodes=1,
                http_port=0,
                grpc_port=0,
                threads=1,
                memory=2**31,
                flags={"stage": stage, "registry": REGISTRY},
                env=PLAIN,
            )
        )
        await stack.enter_async_context(stage_process(mesh, OTHER, THREADS, tmp_path))
        etcd = Etcd(mesh.etcd_endpoints)
        await etcd.start()
        stack.push_async_callback(etcd.close)

        async def nodes() -> dict[str, NodeRecord]:
            items, _ = await etcd.get_prefix(records.NODES)
            return {node.node_id: node for node in (records.from_json(i.value, NodeRecord) for i in items)}

        async def joined() -> bool:
            return len(await nodes()) == 2

        async def measured() -> bool:
            return all(node.layer_profiles for node in (await nodes()).values())

        await until(joined, 60)
        await mesh.deploy(wide, "m", stages=2, replicas=1, cache=False, force=True)
        client = await stack.enter_async_context(mesh.client(timeout_s=60))
        first = {one.record.node_id: one.record.partition for one in (await client.status()).replicas}
        assert [each.end_layer - each.first_layer for each in first.values()] == [4, 4]
        assert OTHER in first
        await until(measured, 90)
        assert {node.threads for node in (await nodes()).values()} == {1, THREADS}

        planned: dict[str, int] = {}

        async def moved() -> bool:
            """Once it pays: the plan is what the nodes measured, alone and in the traffic's own passes."""
            for dry_run in (True, False):
                answer = await deployment.recut(mesh.registry_address, "m", dry_run=dry_run, force=False)
                planned.clear()
                for part, where in zip(answer.partitions, answer.plan.stages, strict=True):
                    planned[where.nodes[0]] = part.end_layer - part.first_layer
                if dry_run and ("it wins" not in answer.reason or "at this load" in answer.reason):
                    return False
            return bool(answer.begun)

        async with traffic(client, "m", workers=4) as seen:
            await until(moved, 90)
            spec = await deployment.model(mesh.registry_address, "m")
            revision = deployment.wanted_revision(spec)
            await mesh.wait_ready("m", revision=revision, timeout_s=60)
            await seen.wait_for(4)
        assert seen.failed == []
        assert all(outcome.tokens == answers[outcome.prompt] for outcome in seen.outcomes)
        spec = await deployment.model(mesh.registry_address, "m")
        assert (spec.revision, spec.rollout.kind) == (revision, "recut")
        after = {one.record.node_id: one.record.partition for one in (await client.status()).replicas}
        held = {name: part.end_layer - part.first_layer for name, part in after.items()}
        assert held == planned
        assert sorted(held.values()) != [4, 4]
        rows = {name: node.layer_profiles[0].layer_ms[8] for name, node in (await nodes()).items()}
        print(f"layers {held}, milliseconds of a layer with 8 rows {rows}")
