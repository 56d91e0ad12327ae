"""A deployment that cannot come up says why; unequal nodes get what fits into them."""

import asyncio

import pytest

from stagemesh.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from stagemesh.local import LocalMesh, deployment
from stagemesh.local.processes import ChildProcess, service_argv


@pytest.mark.long
@pytest.mark.mesh
async def test_refusals_reach_the_caller_in_one_line_and_unequal_nodes_get_what_fits(monkeypatch, tmp_path):
    monkeypatch.setattr(deployment, "_STUCK_S", 1.0)
    model = "examples/demo_model/model"
    async with LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, memory=1_000_000, threads=1) as mesh:
        with pytest.raises(NotFound, match="no checkpoint folder"):
            await mesh.deploy("/no/such/folder", "a")
        with pytest.raises(InvalidArgument, match="stages: 50"):
            await mesh.deploy(model, "b", stages=50)
        with pytest.raises(FailedPrecondition, match=r"'c' needs .* bytes .* 1000000 bytes free") as refused:
            await mesh.deploy(model, "c")
        assert "\n" not in refused.value.message
        with pytest.raises(Unavailable, match=r"c cannot be placed: .*bytes") as caught:
            await mesh.deploy(model, "c", allow_pending=True)
        assert "\n" not in caught.value.message
        await deployment.undeploy(mesh.registry_address, "c")

        # Two more machines join, which have other sizes: half of the model takes 15 MB.
        joined = [
            await _join(mesh, tmp_path, "middle", threads=1, memory=16_000_000),
            await _join(mesh, tmp_path, "large", threads=2, memory=36_000_000),
        ]
        try:
            async with mesh.client() as client, asyncio.timeout(60):
                while len(nodes := {node.node_id: node for node in (await client.status()).nodes}) < 3:
                    await asyncio.sleep(0.1)
            assert {name: (node.memory_bytes, node.threads) for name, node in nodes.items()} == {
                "node-0": (1_000_000, 1),
                "middle": (16_000_000, 1),
                "large": (36_000_000, 2),
            }
            await mesh.deploy(model, "d", stages=2, replicas=1)
            with pytest.raises(
                ResourceExhausted, match=r"middle has .* free, .*; held by d .* bytes"
            ) as full:
                await mesh.deploy(model, "f", stages=1, replicas=1)
            assert "node-0 has 1000000 bytes of 1000000 bytes free" in full.value.message
            [found] = await deployment.deployments(mesh.registry_address)
            assert {each.node_id for each in found.replicas} <= {"middle", "large"}
        finally:
            await asyncio.gather(*(each.stop(10.0) for each in joined))


async def _join(mesh, folder, name, **flags):
    """One more stage process, as on a machine of its own."""
    argv = service_argv("stage", {"etcd": mesh.etcd_endpoints, "node-id": name, "port": 0, **flags})
    return await ChildProcess.start(name, argv, folder / f"{name}.log")
