"""Exported modules on a mesh of real processes: any shape and dtype, any batch, any number of stages."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import nn

import stagemesh
from stagemesh import AsyncClient
from stagemesh.errors import InvalidArgument
from stagemesh.local.mesh import LocalMesh
from tests.packaging import modules

from .traffic import ready_replicas, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]

KINDS = ("MLP", "Conv", "Recommender", "TwoByTwo")
STAGES = (2, 3)
BATCHES = (1, 3, 100)


def module(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(modules, kind)().eval()


def arrays(names: list[str], tensors: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def own(kind: str, tensors: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """The module's own outputs, in order."""
    with torch.inference_mode():
        answer = module(kind)(*(tensor.clone() for tensor in tensors))
    if isinstance(answer, dict):
        return [each.numpy() for each in answer.values()]
    return [each.numpy() for each in (answer if isinstance(answer, tuple) else (answer,))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(stages=2, replicas=2, http_port=0, grpc_port=0, threads=1, memory=2**30) as mesh:
        for kind in KINDS:
            folder: Path = tmp_path_factory.mktemp("packages") / kind
            made = stagemesh.package(module(kind), modules.tensors(1, 4, kind), folder)
            assert made.layers >= max(STAGES)
            for stages in STAGES:
                await mesh.deploy(
                    folder, f"{kind}-{stages}", stages=stages, replicas=1, cache=False, wait=False
                )
            if kind == "Conv":
                await mesh.deploy(folder, "wide", stages=2, replicas=2, cache=False, wait=False)
        for name in [*(f"{kind}-{stages}" for kind in KINDS for stages in STAGES), "wide"]:
            await mesh.wait_ready(name, timeout_s=120)
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client() as client:
        yield client


async def inputs_of(client: AsyncClient, model: str) -> list[str]:
    spec = next(each.spec for each in (await client.status()).models if each.spec.name == model)
    return [tensor.name for tensor in spec.inputs]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", STAGES)
async def test_a_module_in_stages_gives_what_it_gives_alone(
    client: AsyncClient, kind: str, stages: int
) -> None:
    model = f"{kind}-{stages}"
    names = await inputs_of(client, model)
    for batch in BATCHES:
        tensors = modules.tensors(batch, batch, kind)
        answer = await client.infer(model, arrays(names, tensors))
        for given, wanted in zip(answer.values(), own(kind, tensors), strict=True):
            assert given.dtype == wanted.dtype
            np.testing.assert_allclose(given, wanted, atol=1e-5, rtol=1e-5)


async def test_another_client_of_the_open_inference_protocol(
    mesh: LocalMesh, client: AsyncClient, tmp_path: Path
) -> None:
    tensors = modules.tensors(5, 6, "Recommender")
    given, answered = tmp_path / "given.npz", tmp_path / "answered.npz"
    np.savez(given, **arrays(await inputs_of(client, "Recommender-2"), tensors))
    script = Path(__file__).with_name("triton_infer.py")
    argv = [sys.executable, str(script), mesh.grpc_address, "Recommender-2", str(given), str(answered)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = np.load(answered)
    assert answer.files == ["score", "seen"]
    for name, expected in zip(answer.files, own("Recommender", tensors), strict=True):
        np.testing.assert_allclose(answer[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user": np.array([3, 50_000, 1])}, "Recommender"),
        ({"user": np.array([1.5, 2.0, 3.0])}, "dtype"),
        ({"dense": np.zeros((3, 5), np.float32)}, "shape"),
        ({"dense": np.zeros((2, 4), np.float32)}, "shape"),
        ({"extra": np.zeros((3, 1), np.float32)}, "name"),
    ],
)
async def test_what_does_not_fit_is_refused_and_the_mesh_lives_on(
    client: AsyncClient, change: dict[str, np.ndarray], field: str
) -> None:
    good = arrays(await inputs_of(client, "Recommender-3"), modules.tensors(2, 3, "Recommender"))
    with pytest.raises(InvalidArgument) as refused:
        await client.infer("Recommender-3", {**good, **change})
    print(refused.value.message)
    assert field == "Recommender" or field in refused.value.field
    assert len(await client.infer("Recommender-3", good)) == 2


async def test_a_large_batch_is_shared_and_survives_a_replica(mesh: LocalMesh, client: AsyncClient) -> None:
    """Many parts over both replicas, in order; one dies meanwhile, and its parts are answered elsewhere."""
    names = await inputs_of(client, "wide")
    tensors = modules.tensors(9, 2000, "Conv")
    asked = arrays(names, tensors)
    before = {item.record.replica_id: item.sessions_routed for item in (await client.status()).replicas}
    expected = own("Conv", tensors)[0]
    (calm,) = (await client.infer("wide", asked)).values()
    np.testing.assert_allclose(calm, expected, atol=1e-5, rtol=1e-5)
    routed = {
        item.record.replica_id: item.sessions_routed - before[item.record.replica_id]
        for item in (await client.status()).replicas
        if item.record.model == "wide"
    }
    assert len(routed) == 4
    assert min(routed.values()) > 0

    hosts = {r.pid for r in (await ready_replicas(client, "wide")).values() if r.stage == 1}
    victim = next(process for process in mesh.stage_processes if process.pid in hosts)
    tasks = [asyncio.create_task(client.infer("wide", asked)) for _ in range(4)]
    await asyncio.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    for answer in await asyncio.gather(*tasks):
        (given,) = answer.values()
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=1e-5)

    async def all_back() -> bool:
        return len(await ready_replicas(client, "wide")) == 4

    await until(all_back, 60)
