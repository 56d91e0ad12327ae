import socket

from stagemesh.local.ports import free_port
from stagemesh.local.routers import further_ports, suffixes


def test_the_first_router_has_the_plain_name():
    assert suffixes(1) == [""]
    assert suffixes(3) == ["", "-1", "-2"]


def test_one_router_needs_no_further_ports():
    assert further_ports(1, {"http": 8000, "grpc": 8001, "registry": 8002}, "127.0.0.1") == {}


def test_any_port_stays_any_port():
    wanted = {"http": 0, "grpc": 0, "registry": 0}
    assert further_ports(3, wanted, "127.0.0.1") == {"http-1": 0, "http-2": 0, "grpc-1": 0, "grpc-2": 0}


def test_further_ports_are_the_next_free_ones_and_no_two_the_same():
    first = free_port()
    wanted = {"http": first, "grpc": first + 1, "registry": first + 2}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        further = further_ports(4, {**wanted, "cache": taken.getsockname()[1]}, "127.0.0.1")
    every = [*further.values(), *wanted.values()]
    assert len(set(every)) == len(every) == 9
    assert min(further.values()) > first + 2
    assert sorted(further) == ["grpc-1", "grpc-2", "grpc-3", "http-1", "http-2", "http-3"]


def test_beyond_the_last_port_any_will_do():
    assert further_ports(2, {"http": 65_535, "grpc": 0}, "127.0.0.1")["http-1"] == 0


def test_a_port_that_is_taken_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        further = further_ports(2, {"http": port - 1, "grpc": 0}, "127.0.0.1")
    assert further["http-1"] > port
