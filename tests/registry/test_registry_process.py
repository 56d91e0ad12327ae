"""The real registry process against a real etcd; the nodes are records that the test keeps there."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagemesh import records
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.local.ports import free_port
from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
    REPLICA_STATE_READY,
    DeployRequest,
    ListDeploymentsRequest,
    ModelSpec,
    ReplicaRecord,
    ScaleRequest,
    UndeployRequest,
)

DEMO = str(Path(__file__).parents[2] / "examples" / "demo_model" / "model")


def deploy(stages: int = 2, replicas: int = 2, **more) -> DeployRequest:
    return DeployRequest(source=DEMO, name="demo", stages=stages, replicas=replicas, **more)


async def test_deploy_assigns_one_partition_to_each_of_four_nodes(
    start_registry, start_node, until, etcd
) -> None:
    nodes = [await start_node(f"n{number}") for number in range(4)]
    registry = await start_registry()
    spec = (await registry.stub.Deploy(deploy())).model
    assert (spec.generation, spec.task, spec.architecture) == (1, "generate", "LlamaForCausalLM")
    assert [(part.first_layer, part.end_layer) for part in spec.partitions] == [(0, 3), (3, 6)]
    assert list(spec.replicas) == [2, 2]
    assert (spec.context_length, spec.vocab_size, spec.hidden_size, spec.cache) == (1024, 4096, 256, True)
    await until(lambda: sorted(stage for node in nodes for stage in node.stages()) == [0, 0, 1, 1])
    assert all(len(node.assigned) == 1 for node in nodes)
    given = next(iter(nodes[0].assigned.values()))
    assert (given.model, given.revision, given.stages, given.generation) == ("demo", spec.revision, 2, 1)
    assert given.partition == spec.partitions[given.stage]
    stored = await etcd.get(records.model_key("demo"))
    assert records.from_json(stored.value, ModelSpec) == spec

    # The same request again changes nothing.
    assert (await registry.stub.Deploy(deploy())).model == spec
    await asyncio.sleep(1.5)
    assert all(len(node.ever) == 1 for node in nodes)
    (deployment,) = (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
    assert deployment.model == spec
    assert [(replica.stage, replica.state) for replica in deployment.replicas] == [
        (stage, REPLICA_STATE_READY) for stage in (0, 0, 1, 1)
    ]
    assert not deployment.pending


async def test_scale_then_undeploy(start_registry, start_node, until) -> None:
    nodes = [await start_node(f"n{number}") for number in range(3)]
    registry = await start_registry()
    await registry.stub.Deploy(deploy(replicas=1))

    def stages() -> list[int]:
        return sorted(stage for node in nodes for stage in node.stages())

    await until(lambda: stages() == [0, 1])
    scaled = (await registry.stub.Scale(ScaleRequest(name="demo", replicas=3))).model
    assert (list(scaled.replicas), scaled.generation) == ([3, 3], 2)
    await until(lambda: all(node.stages() == [0, 1] for node in nodes))
    scaled = (await registry.stub.Scale(ScaleRequest(name="demo", replicas=1, stage=0))).model
    assert list(scaled.replicas) == [1, 3]
    await until(lambda: stages() == [0, 1, 1, 1])
    await registry.stub.Undeploy(UndeployRequest(name="demo"))
    await until(lambda: stages() == [])
    assert not (await registry.stub.ListModels(ListDeploymentsRequest())).deployments


async def test_partition_of_a_lost_node_goes_to_another(start_registry, start_node, until) -> None:
    lost, other = await start_node("n0"), await start_node("n1")
    registry = await start_registry()
    await registry.stub.Deploy(deploy(replicas=1))
    await until(lambda: len(lost.assigned) == len(other.assigned) == 1)
    await lost.stop()
    await until(lambda: other.stages() == [0, 1])


async def test_a_node_that_comes_back_within_the_grace_keeps_its_partition(
    start_registry, start_node, until, etcd
) -> None:
    first, second = await start_node("n0"), await start_node("n1")
    registry = await start_registry()
    await registry.stub.Deploy(deploy(replicas=1))
    await until(lambda: len(first.assigned) == len(second.assigned) == 1)
    kept = set(first.assigned)
    await first.stop()
    await asyncio.sleep(1)
    again = await start_node("n0")
    await until(lambda: set(again.assigned) == kept)
    await asyncio.sleep(2.5)
    assert set(again.assigned) == kept
    assert len(second.ever) == 1


async def test_failed_replica_is_tried_on_another_node(start_registry, start_node, until) -> None:
    bad, good = await start_node("n0"), await start_node("n1", memory=60 * 2**20)
    bad.outcome = lambda assignment: REPLICA_STATE_FAILED
    registry = await start_registry()
    await registry.stub.Deploy(deploy(stages=1, replicas=1))
    await until(lambda: bad.ever)
    await until(lambda: len(good.assigned) == 1)
    await until(lambda: not bad.assigned)


async def test_pending_says_the_numbers_and_ends_when_a_node_comes(start_registry, start_node, until) -> None:
    await start_node("small", memory=1000)
    registry = await start_registry()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.stub.Deploy(deploy(stages=1, replicas=1))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "small has 1000 bytes of 1000 bytes free" in caught.value.details()
    assert not (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
    await registry.stub.Deploy(deploy(stages=1, replicas=1, allow_pending=True))

    async def pending() -> list[str]:
        return list((await registry.stub.ListModels(ListDeploymentsRequest())).deployments[0].pending)

    async with asyncio.timeout(10):
        while not (lines := await pending()):
            await asyncio.sleep(0.02)
    assert len(lines) == 1
    assert "needs 24" in lines[0]  # 10.3 MB of BF16, computed in F32, and headroom
    assert "is 1000 of 1000 (small)" in lines[0]
    large = await start_node("large")
    await until(lambda: len(large.assigned) == 1)
    assert not await pending()


async def test_redeploy_brings_the_new_revision_up_before_the_old_goes(
    start_registry, start_node, until
) -> None:
    nodes = [await start_node(f"n{number}") for number in range(2)]
    registry = await start_registry()
    old = (await registry.stub.Deploy(deploy(replicas=1))).model
    await until(lambda: all(node.stages() for node in nodes))
    for node in nodes:
        node.outcome = lambda assignment: 1  # LOADING
    new = (await registry.stub.Deploy(deploy(replicas=1, dtype="BF16"))).model
    assert (new.generation, new.created_unix_ms) == (2, old.created_unix_ms)
    assert new.revision == old.revision
    new = new.rollout.next
    assert new.revision != old.revision
    assert new.revision.split("-")[0] == old.revision.split("-")[0]
    await until(lambda: sum(len(node.assigned) for node in nodes) == 4)
    await asyncio.sleep(1.2)
    held = [assignment for node in nodes for assignment in node.assigned.values()]
    assert sorted((item.revision == new.revision, item.stage) for item in held) == [
        (False, 0), (False, 1), (True, 0), (True, 1),
    ]  # fmt: skip
    for node in nodes:
        for item in list(node.assigned.values()):
            key = records.replica_key("demo", item.stage, item.replica_id)
            record = records.from_json((await node.etcd.get(key)).value, ReplicaRecord)
            record.state = REPLICA_STATE_READY
            await node.lease.put(key, records.to_json(record))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 2)
    assert all(item.revision == new.revision for node in nodes for item in node.assigned.values())


async def test_another_registry_takes_over_when_the_leader_is_killed(
    start_registry, start_node, until, etcd
) -> None:
    first = await start_registry()
    await until(first.led)
    second = await start_registry()
    node = await start_node("n0")
    # Deploying at the one that stands by works: the leader acts on it.
    await second.stub.Deploy(deploy(stages=1, replicas=1))
    await until(lambda: len(node.assigned) == 1)
    assert not second.led()
    leader = (await etcd.get(records.LEADER)).value
    first.kill()
    await until(second.led)
    assert (await etcd.get(records.LEADER)).value != leader
    await second.stub.Undeploy(UndeployRequest(name="demo"))
    await until(lambda: not node.assigned)


async def test_etcd_gone_for_a_while_reshuffles_nothing(
    etcd_server, start_registry, start_node, until
) -> None:
    nodes = [await start_node(f"n{number}") for number in range(4)]
    registry = await start_registry()
    await registry.stub.Deploy(deploy())
    await until(lambda: all(len(node.assigned) == 1 for node in nodes))
    health = health_pb2_grpc.HealthStub(registry.channel)

    async def serving() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest())
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def ready() -> int:
        (deployment,) = (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
        return sum(replica.state == REPLICA_STATE_READY for replica in deployment.replicas)

    assert await serving()
    async with asyncio.timeout(15):
        while await ready() < 4:
            await asyncio.sleep(0.05)
    await etcd_server.stop()
    async with asyncio.timeout(15):
        while await serving():
            await asyncio.sleep(0.05)
    (deployment,) = (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
    assert len(deployment.replicas) == 4
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.stub.Scale(ScaleRequest(name="demo", replicas=1))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await asyncio.sleep(3)  # longer than the leases
    await etcd_server.start()
    async with asyncio.timeout(15):
        while not await serving():
            await asyncio.sleep(0.05)
    await asyncio.sleep(3)
    assert all(len(node.ever) == 1 for node in nodes)
    # And it controls again.
    await registry.stub.Undeploy(UndeployRequest(name="demo"))
    await until(lambda: not any(node.assigned for node in nodes))


REFUSED = [
    (DeployRequest(name="m"), "INVALID_ARGUMENT", "source", "is needed"),
    (DeployRequest(source=DEMO, name="a b"), "INVALID_ARGUMENT", "name", "must start with a letter"),
    (DeployRequest(source=DEMO, stages=7), "INVALID_ARGUMENT", "stages", "7 is more than 6, the most"),
    (DeployRequest(source=DEMO, replicas=1001), "INVALID_ARGUMENT", "replicas", "1001 is not within 1..1000"),
    (DeployRequest(source=DEMO, dtype="Q4"), "INVALID_ARGUMENT", "dtype", "'Q4' is unknown; use one of F32"),
    (
        DeployRequest(source=DEMO, policy="best"),
        "INVALID_ARGUMENT",
        "policy",
        "'best' is unknown; use one of",
    ),
    (
        DeployRequest(source=DEMO, hub_revision="x"),
        "INVALID_ARGUMENT",
        "hub_revision",
        "a local folder has none",
    ),
    (DeployRequest(source="/no/such"), "NOT_FOUND", "source", "no checkpoint folder '/no/such'"),
    (DeployRequest(source="acme/none"), "FAILED_PRECONDITION", "source", "the hub cannot be used"),
    (ScaleRequest(name="none", replicas=1), "NOT_FOUND", "name", "no model 'none' is deployed"),
    (ScaleRequest(name="demo", replicas=0), "INVALID_ARGUMENT", "replicas", "0 is not within"),
    (ScaleRequest(name="demo", replicas=1, stage=2), "INVALID_ARGUMENT", "stage", "2 is not within 0..1"),
    (UndeployRequest(name="none"), "NOT_FOUND", "name", "no model 'none' is deployed"),
    (UndeployRequest(name="../x"), "INVALID_ARGUMENT", "name", "must start with"),
]


async def test_bad_requests_name_the_field(start_registry) -> None:
    registry = await start_registry()
    await registry.stub.Deploy(deploy())
    for request, code, field, words in REFUSED:
        method = getattr(registry.stub, type(request).__name__.removesuffix("Request"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request)
        assert caught.value.code().name == code, (request, caught.value)
        error = from_rpc_error(caught.value)
        assert error.field == field
        assert words in error.message
    assert (await registry.stub.Deploy(DeployRequest(source=DEMO))).model.name == "model"


async def test_sigterm_ends_it_and_removes_its_records(start_registry, until, etcd) -> None:
    registry = await start_registry()
    await until(registry.led)
    registry.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(registry.process.wait(), 10) == 0
    assert await etcd.get(records.LEADER) is None
    assert (await etcd.get_prefix(records.SERVICES))[0] == []


async def run_to_its_end(*flags: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stagemesh.services.registry", *flags, stderr=asyncio.subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, err.decode()


async def test_no_etcd_taken_port_and_bad_flags_are_told_in_lines(etcd_server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, err = await run_to_its_end("--port", port, "--etcd", etcd_server.endpoint)
        assert (code, [line for line in err.splitlines() if line.startswith("stagemesh:")]) == (
            1,
            [
                f"stagemesh: port {port} is taken: another process listens on 127.0.0.1:{port}; choose another with --port"
            ],
        )
        assert "Traceback" not in err
    code, err = await run_to_its_end("--port", "0", "--etcd", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "etcd" in err.splitlines()[-1]
    assert "Traceback" not in err
    code, err = await run_to_its_end("--port", "-1", "--failed-backoff-s", "0")
    assert code == 1
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["--port", "--failed-backoff-s"]
