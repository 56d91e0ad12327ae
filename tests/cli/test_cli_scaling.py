"""`scale`, `deploy`, `events` and `status` for models that scale themselves, against a server that speaks the registry's API."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from stagemesh.cli.status import _scaling_line, as_dict
from stagemesh.v1 import inference_pb2, registry_pb2, registry_pb2_grpc
from stagemesh.v1.registry_pb2 import EventRecord, ModelSpec, Partition, ScaleRecord, Scaling


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self):
        self.requests = []
        self.spec = ModelSpec(name="m", scaling=Scaling(min_replicas=1, max_replicas=4, idle_s=60))

    def Scale(self, request, context):
        self.requests.append(request)
        return registry_pb2.ScaleResponse(model=self.spec)

    def Deploy(self, request, context):
        self.requests.append(request)
        return registry_pb2.DeployResponse(model=self.spec)

    def ListModels(self, request, context):
        deployment = registry_pb2.Deployment(model=self.spec)
        return registry_pb2.ListDeploymentsResponse(deployments=[deployment])

    def Events(self, request, context):
        self.requests.append(request)
        yield EventRecord(
            kind="scale.up",
            model="m",
            reason="stage 1 from 1 to 2 replicas",
            numbers={"to": 2},
            unix_ms=1_700_000_000_000,
            registry="r",
        )
        yield EventRecord(kind="leader.gained", reason="r leads", unix_ms=1_700_000_001_000)


@pytest.fixture
def registry():
    servicer = _Registry()
    server = grpc.server(ThreadPoolExecutor(2))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


def test_scale_changes_what_is_named_and_keeps_the_rest(stagemesh, registry):
    done = stagemesh(
        "scale", "m", "--min", "0", "--target-queue-ms", "20", "--no-wait", "--registry", registry.address
    )
    assert done.exit_code == 0, done.stderr
    (request,) = registry.requests
    assert request.replicas == 0
    assert request.scaling == Scaling(min_replicas=0, max_replicas=4, target_queue_ms=20, idle_s=60)


def test_limits_of_a_model_with_a_fixed_number_begin_with_one_replica(stagemesh, registry):
    registry.spec.ClearField("scaling")
    done = stagemesh("scale", "m", "--max", "3", "--no-wait", "--registry", registry.address)
    assert done.exit_code == 0, done.stderr
    assert registry.requests[0].scaling == Scaling(min_replicas=1, max_replicas=3)


@pytest.mark.parametrize("words", [["2"], ["--replicas", "2"]], ids=["argument", "option"])
def test_a_fixed_number_comes_alone(stagemesh, registry, words):
    done = stagemesh("scale", "m", *words, "--no-wait", "--registry", registry.address)
    assert done.exit_code == 0, done.stderr
    assert registry.requests[0].replicas == 2
    assert not registry.requests[0].HasField("scaling")
    done = stagemesh("scale", "m", *words, "--max", "3", "--registry", registry.address)
    assert done.exit_code == 2
    assert "limits" in done.stderr


def test_deploy_takes_limits(stagemesh, registry):
    done = stagemesh(
        "deploy", "org/model", "--min", "0", "--max", "2", "--idle", "300", "--target-kv", "0.5",
        "--no-wait", "--registry", registry.address,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert registry.requests[0].scaling == Scaling(max_replicas=2, idle_s=300, target_kv=0.5)
    stagemesh("deploy", "org/model", "--no-wait", "--registry", registry.address)
    assert not registry.requests[1].HasField("scaling")


def test_events_are_lines_for_people_and_json_for_programs(stagemesh, registry):
    done = stagemesh(
        "events", "--model", "m", "--kind", "scale.", "--since", "60", "--registry", registry.address
    )
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "scale.up" in first
    assert first.endswith("m: stage 1 from 1 to 2 replicas")
    assert "-: r leads" in second
    (request,) = registry.requests
    assert (request.model, request.kind, request.follow) == ("m", "scale.", False)
    assert request.since_unix_ms > 1_700_000_000_000

    done = stagemesh("events", "--json", "--follow", "--registry", registry.address)
    first, _ = map(json.loads, done.stdout.splitlines())
    assert first["numbers"] == {"to": 2}
    assert first["unix_ms"] == 1_700_000_000_000
    assert registry.requests[1].follow


def test_without_a_registry_events_say_so_in_one_line(stagemesh):
    done = stagemesh("events", "--registry", "127.0.0.1:1")
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1


def _model(scale: ScaleRecord | None = None) -> inference_pb2.ModelInfo:
    spec = ModelSpec(
        name="m", partitions=[Partition(), Partition()], replicas=[1, 1], scaling=Scaling(max_replicas=4)
    )
    return inference_pb2.ModelInfo(spec=spec, scale=scale)


def test_status_tells_what_is_wanted_what_serves_and_why():
    scale = ScaleRecord(model="m", replicas=[1, 3], reason="steps wait 80 ms", unix_ms=5)
    record = registry_pb2.ReplicaRecord(model="m", stage=1, state=registry_pb2.REPLICA_STATE_READY)
    other = registry_pb2.ReplicaRecord(model="n", stage=1, state=registry_pb2.REPLICA_STATE_READY)
    replicas = [inference_pb2.ReplicaStatus(record=each) for each in (record, other)]
    line = _scaling_line(_model(scale), replicas)
    assert line == "scales itself from 0 to 4: stage 0: 0 of 1, stage 1: 1 of 3; steps wait 80 ms"
    assert "stage 0: 0 of 0" in _scaling_line(_model(ScaleRecord(model="m", replicas=[0, 0])), [])
    assert "stage 1: 0 of 1" in _scaling_line(_model(), [])

    told = as_dict(inference_pb2.MeshStatus(models=[_model(scale)]))["models"][0]["scaling"]
    assert told["wanted"] == [1, 3]
    assert told["reason"] == "steps wait 80 ms"
    assert told["max_replicas"] == 4
