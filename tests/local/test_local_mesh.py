"""What a mesh does before anything loads, and that it leaves nothing; whole meshes are in tests/mesh."""

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest

from stagemesh.errors import ConfigError, Unavailable
from stagemesh.local import LocalMesh
from stagemesh.local.leftovers import Leftovers


@pytest.fixture(autouse=True)
def own_temp_folder(tmp_path, monkeypatch):
    """What other meshes on this machine leave or make is not ours to judge."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _folders():
    return set(Path(tempfile.gettempdir()).glob("stagemesh-*"))


async def test_a_taken_port_is_told_before_anything_starts():
    lines = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"http port {port} is taken"):
            await LocalMesh(http_port=port, grpc_port=0, progress=lines.append).start()
    assert lines == []


async def test_a_service_that_does_not_start_ends_the_rest_and_says_why():
    before, folders = Leftovers.before(), _folders()
    mesh = LocalMesh(
        stages=1, replicas=1, http_port=0, grpc_port=0, flags={"registry": {"log-level": "shouting"}}
    )
    with pytest.raises(Unavailable, match=r"registry ended with status 1: .*log-level"):
        await mesh.start()
    assert before.found() == []
    assert _folders() == folders


async def test_no_etcd_at_the_given_address_is_one_line():
    before = Leftovers.before()
    mesh = LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, etcd="127.0.0.1:9")
    with pytest.raises(Unavailable, match="etcd") as caught:
        await mesh.start()
    assert "\n" not in caught.value.message
    assert before.found() == []


async def test_cancelling_the_start_leaves_nothing():
    before, folders = Leftovers.before(), _folders()
    up = asyncio.Event()
    mesh = LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, progress=lambda line: up.set())
    task = asyncio.create_task(mesh.start())
    await up.wait()
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert before.found() == []
    assert _folders() == folders
