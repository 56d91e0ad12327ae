"""The folder that keeps a mesh: locked while in use, refused in one line when it is not what it should be."""

import json
import socket

import pytest

from stagemesh.errors import ConfigError
from stagemesh.local.data_folder import DataFolder
from stagemesh.local.mesh import LocalMesh


def opened(path):
    folder = DataFolder(path)
    folder.open()
    return folder


def test_what_it_was_used_with_is_known_the_next_time(tmp_path):
    first = opened(tmp_path / "a" / "b")
    assert (first.nodes, first.peer_ports) == (0, [])
    first.use(members=3, nodes=4)
    ports = list(first.peer_ports)
    assert len(set(ports)) == 3
    first.close()
    again = opened(tmp_path / "a" / "b")
    assert (again.nodes, again.peer_ports) == (4, ports)
    with pytest.raises(ConfigError, match="is of 3 etcd members; 1 cannot"):
        again.use(members=1, nodes=4)
    again.use(members=3, nodes=6)
    again.close()
    assert opened(tmp_path / "a" / "b").nodes == 6


def test_two_meshes_do_not_share_it(tmp_path):
    one = opened(tmp_path)
    with pytest.raises(ConfigError, match="another mesh uses"):
        opened(tmp_path)
    one.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "not of this version"),
        ('{"version": 2}', "not of this version"),
        ('{"version": 1, "nodes": 0, "etcd_peer_ports": [1]}', "'0' for a number"),
        ('{"version": 1, "nodes": 2, "etcd_peer_ports": []}', "names no ports"),
        ('{"version": 1, "nodes": 2, "etcd_peer_ports": [70000]}', "'70000' for a number"),
        ('{"version": 1, "nodes": true, "etcd_peer_ports": [1]}', "'True' for a number"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_and_the_folder_given_free(tmp_path, content, said):
    (tmp_path / "mesh.json").write_text(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match=said) as caught:
            opened(tmp_path)
        assert "\n" not in caught.value.message


def test_etcds_data_without_a_mesh_and_a_file_for_a_folder_are_refused(tmp_path):
    (tmp_path / "etcd").mkdir()
    with pytest.raises(ConfigError, match=r"has etcd's data and no mesh\.json"):
        opened(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        opened(tmp_path / "file")


async def test_ports_of_its_members_that_somebody_took_are_named_and_nothing_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        content = {"version": 1, "nodes": 1, "etcd_peer_ports": [port]}
        (tmp_path / "mesh.json").write_text(json.dumps(content))
        mesh = LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, data=tmp_path)
        with pytest.raises(ConfigError, match=f"by port {port}, which is taken"):
            await mesh.start()
    assert mesh.processes == []
    opened(tmp_path).close()


def test_it_is_for_an_etcd_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="for the etcd that is started here"):
        LocalMesh(etcd="127.0.0.1:1", data=tmp_path)
