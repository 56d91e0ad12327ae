"""The mesh as an operator sees it: the router's view, and what each node says when asked."""

import asyncio
import time
from collections.abc import Sequence

import grpc.aio

from stagemesh.v1 import inference_pb2, stage_pb2

from .channels import Channels
from .loads import Loads
from .membership import Membership

TIMEOUT_S = 1.0
AT_ONCE = 32


async def mesh_status(
    membership: Membership,
    loads: Loads,
    channels: Channels,
    models: Sequence[inference_pb2.ModelInfo],
    etcd_connected: bool,
) -> inference_pb2.MeshStatus:
    """Every replica, node, model and service; a replica that does not answer within a second has no load."""
    status = inference_pb2.MeshStatus(
        models=models,
        etcd_connected=etcd_connected,
        services=[record for _, record in sorted(membership.services.items())],
        nodes=[record for _, record in sorted(membership.nodes.items())],
    )
    replicas = [record for _, record in sorted(membership.replicas.items())]
    reported = await _ask({record.address for record in replicas if record.address}, channels)
    for record in replicas:
        routed, active = loads.counts(record.replica_id)
        status.replicas.add(
            record=record,
            load=reported.get(record.replica_id),
            sessions_routed=routed,
            sessions_active=active,
            health=loads.health.words(record.replica_id, time.monotonic()),
        )
    return status


async def _ask(addresses: set[str], channels: Channels) -> dict[str, stage_pb2.ReplicaLoad]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(address: str) -> list[tuple[str, stage_pb2.ReplicaLoad]]:
        async with room:
            try:
                node = await channels.stage(address).GetNodeStatus(
                    stage_pb2.GetNodeStatusRequest(), timeout=TIMEOUT_S
                )
            except grpc.aio.AioRpcError:
                return []
        return [(each.replica_id, each.load) for each in node.partitions if each.HasField("load")]

    answers = await asyncio.gather(*(one(address) for address in sorted(addresses)))
    return {name: load for answer in answers for name, load in answer}
