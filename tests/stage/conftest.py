from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.links import Links

from tests.checkpoints import make_llama
from tests.library.etcd_process import EtcdProcess

# Tests of what crosses links: each runs with frames over Unix sockets, and with all of them in gRPC streams.
BOTH_WAYS = {"test_flow", "test_recovery", "test_route", "test_resume"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS:
        metafunc.fixturenames.append("way")
        metafunc.parametrize("way", ["local", "grpc"], indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that frames take."""
    monkeypatch.setattr(Links, "local_sockets", request.param == "local")


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[str]:
    """The address of an etcd of the test's own."""
    process = EtcdProcess(tmp_path)
    await process.start()
    yield process.address
    await process.stop()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tied"), layers=4, tied=True, max_shard_size="300KB")
