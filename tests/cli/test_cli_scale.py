"""`scale` and `deploy` say to the registry what was asked, and nothing else."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from stagemesh.v1 import registry_pb2, registry_pb2_grpc


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self):
        self.requests = []

    def Scale(self, request, context):
        self.requests.append(request)
        return registry_pb2.ScaleResponse(
            model=registry_pb2.ModelSpec(name=request.name, policy=request.policy)
        )

    def Deploy(self, request, context):
        self.requests.append(request)
        return registry_pb2.DeployResponse(model=registry_pb2.ModelSpec(name="m"))


@pytest.fixture
def registry():
    servicer = _Registry()
    server = grpc.server(ThreadPoolExecutor(2))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("words", "replicas", "policy"),
    [
        (["--policy", "weighted"], 0, "weighted"),
        (["3"], 3, None),
        (["3", "--policy", "default"], 3, "default"),
    ],
)
def test_scale_changes_replicas_or_policy_or_both(stagemesh, registry, words, replicas, policy):
    done = stagemesh("scale", "m", *words, "--no-wait", "--json", "--registry", registry.address)
    assert done.exit_code == 0, done.stderr
    (request,) = registry.requests
    assert request.replicas == replicas
    assert (request.policy if request.HasField("policy") else None) == policy
    assert json.loads(done.stdout)["name"] == "m"


def test_scale_without_anything_to_change_says_what_is_missing(stagemesh, registry):
    done = stagemesh("scale", "m", "--registry", registry.address)
    assert done.exit_code == 2
    assert "--policy" in done.stderr
    assert not registry.requests


def test_deploy_limits_a_model_to_zones(stagemesh, registry):
    zones = ["--zone", "a", "--zone", "b"]
    done = stagemesh("deploy", "org/model", *zones, "--no-wait", "--registry", registry.address)
    assert done.exit_code == 0, done.stderr
    assert list(registry.requests[0].zones) == ["a", "b"]
