import socket

import pytest

from stagemesh.errors import ConfigError
from stagemesh.local.ports import claim, free_port, is_free


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server.getsockname()[1]


def test_a_taken_port_is_not_free(taken):
    assert not is_free(taken)
    assert is_free(free_port())


def test_claim_names_every_taken_port_in_one_line(taken):
    with pytest.raises(ConfigError) as caught:
        claim({"http": taken, "grpc": 0})
    assert f"http port {taken} is taken" in caught.value.message
    assert "\n" not in caught.value.message


def test_claim_fills_zeros_with_different_ports():
    given = free_port()
    ports = claim({"http": given, "grpc": 0, "registry": 0, "cache": 0})
    assert ports["http"] == given
    assert len(set(ports.values())) == 4


def test_the_same_port_twice():
    port = free_port()
    with pytest.raises(ConfigError, match="the same"):
        claim({"http": port, "grpc": port})
