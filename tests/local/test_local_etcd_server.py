import importlib.util

import pytest

from stagemesh.errors import ConfigError
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


def test_no_wheel_is_one_line_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        EtcdServer(tmp_path)
    assert "stagemesh[local]" in caught.value.message
    assert "--etcd" in caught.value.message
    assert "\n" not in caught.value.message
