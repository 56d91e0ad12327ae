import asyncio
import importlib.util
import signal

import pytest

from stagemesh.errors import ConfigError, Unavailable
from stagemesh.etcd import Etcd
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.ports import is_free


async def test_data_and_port_stay_over_a_restart(tmp_path):
    server = EtcdServer(tmp_path)
    await server.start()
    endpoint = server.endpoint
    etcd = Etcd(endpoint)
    try:
        await etcd.start()
        await etcd.put("/stagemesh/v1/x", b"1")
        await server.stop()
        assert is_free(int(endpoint.rpartition(":")[2]))
        await server.start()
        assert server.endpoint == endpoint
        found = await etcd.get("/stagemesh/v1/x")
        assert found is not None
        assert found.value == b"1"
    finally:
        await etcd.close()
        await server.stop()
    assert server.process is None


async def test_a_killed_etcd_comes_back_with_its_data(tmp_path):
    events = []
    server = EtcdServer(tmp_path, events.append)
    await server.start()
    etcd = Etcd(server.endpoint)
    try:
        await etcd.start()
        await etcd.put("/stagemesh/v1/x", b"1")
        first = server.process
        first.send_signal(signal.SIGKILL)
        async with asyncio.timeout(20):
            while server.process is first:
                await asyncio.sleep(0.02)
            while (found := await _get(etcd, "/stagemesh/v1/x")) is None:
                await asyncio.sleep(0.02)
        assert found.value == b"1"
        assert "etcd was ended by SIGKILL" in events[0]
    finally:
        await etcd.close()
        await server.stop()
    assert is_free(int(server.endpoint.rpartition(":")[2]))


async def _get(etcd, key):
    try:
        return await etcd.get(key)
    except Unavailable:
        return None


def test_no_wheel_is_one_line_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        EtcdServer(tmp_path)
    assert "stagemesh[local]" in caught.value.message
    assert "--etcd" in caught.value.message
    assert "\n" not in caught.value.message
