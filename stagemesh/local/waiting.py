"""Waits until freshly started processes answer, or one of them ended."""

import asyncio
from collections.abc import Callable, Mapping

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagemesh.client import AsyncClient
from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_server import create_channel
from stagemesh.local.supervisor import Supervised

_POLL_S = 0.1


async def until_up(
    places: Mapping[str, Supervised],
    health: Mapping[str, str],
    router: str,
    progress: Callable[[str], None],
) -> None:
    """Return when every address in `health` (by place name) is SERVING and the router sees every other place.

    The router sees a node by the process id in the node's record. Raises `Unavailable` with the last line of its
    log when a process ends first.
    """
    serving = [asyncio.create_task(_until_serving(address)) for address in health.values()]
    nodes = {name: place for name, place in places.items() if name not in health}
    try:
        said = ""
        while True:
            for place in places.values():
                if place.process is not None and place.process.returncode is not None:
                    raise Unavailable(place.process.ended_how())
            answering = [name for name, task in zip(health, serving, strict=True) if task.done()]
            seen = await _nodes_seen(router) if "router" in answering else set()
            joined = [
                name
                for name, place in nodes.items()
                if place.process is not None and place.process.pid in seen
            ]
            if len(answering) == len(health) and len(joined) == len(nodes):
                return
            line = f"waiting: {len(answering)}/{len(health)} services answer, {len(joined)}/{len(nodes)} stage nodes have joined"
            if line != said:
                progress(line)
                said = line
            await asyncio.sleep(_POLL_S)
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _until_serving(address: str) -> None:
    """Poll grpc.health.v1 until it says SERVING."""
    while True:
        channel = create_channel(address)
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
        except grpc.aio.AioRpcError:
            pass
        finally:
            await channel.close()
        await asyncio.sleep(_POLL_S)


async def _nodes_seen(router: str) -> set[int]:
    """Process ids of the nodes in the router's view."""
    async with AsyncClient(router, timeout_s=5.0) as client:
        try:
            return {node.pid for node in (await client.status()).nodes}
        except StagemeshError:
            return set()
