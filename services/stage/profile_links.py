"""Round trip and rate to other nodes, through the health service that every one of them has."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagemesh.grpc_server import create_channel

__all__ = ["LinkTimes", "measure_links"]

log = logging.getLogger(__name__)

_ROUND_TRIPS = 6
_PAYLOADS = 3
# The name of a service that nobody has carries the bytes; it is answered with NOT_FOUND.
_PAYLOAD = "-" * (512 * 1024)
_LIMIT_S = 2.0


@dataclass(frozen=True)
class LinkTimes:
    """Best of a few; `gbit` (Gbit/s) is 0 where bytes took no longer than none."""

    rtt_ms: float
    gbit: float


async def measure_links(nodes: Iterable[tuple[str, str]]) -> dict[str, LinkTimes]:
    """(name, HOST:PORT) of nodes -> their links, one after the other; those that do not answer are left out."""
    found: dict[str, LinkTimes] = {}
    for name, address in nodes:
        try:
            async with asyncio.timeout(_LIMIT_S):
                found[name] = await _measure(address)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            log.info("profile.link_failed %s: %s", name, type(error).__name__)
    return found


async def _measure(address: str) -> LinkTimes:
    async with create_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await _seconds(health, "")  # connects
        empty = min([await _seconds(health, "") for _ in range(_ROUND_TRIPS)])
        full = min([await _seconds(health, _PAYLOAD) for _ in range(_PAYLOADS)])
    more = full - empty
    return LinkTimes(empty * 1e3, len(_PAYLOAD) * 8 / more / 1e9 if more > 0 else 0.0)


async def _seconds(health: health_pb2_grpc.HealthStub, service: str) -> float:
    started = time.perf_counter()
    try:
        await health.Check(health_pb2.HealthCheckRequest(service=service))
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
    return time.perf_counter() - started
