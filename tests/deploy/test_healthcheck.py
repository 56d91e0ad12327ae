"""The health check of containers, against a real gRPC server."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from deploy_files import DEPLOY
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEPLOY / "healthcheck.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def server():
    servicer = health.HealthServicer()
    with ThreadPoolExecutor(2) as pool:
        grpc_server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        grpc_server.start()
        yield servicer, str(port)
        grpc_server.stop(None).wait()


def test_follows_the_server(server):
    servicer, port = server
    assert check(port).returncode == 0
    servicer.set("", HealthCheckResponse.NOT_SERVING)
    refused = check(port)
    assert (refused.returncode, refused.stderr) == (1, f"port {port}: NOT_SERVING\n")


def test_says_no_when_nothing_listens():
    absent = check("1")
    assert absent.returncode == 1
    assert absent.stderr == "port 1: UNAVAILABLE\n"


@pytest.mark.parametrize("arguments", [(), ("http",), ("1", "2")])
def test_explains_itself(arguments):
    assert check(*arguments).returncode == 2
