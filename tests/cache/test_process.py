"""A real cache process beside a real etcd."""

import asyncio
import hashlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagemesh import records
from stagemesh.errors import InvalidArgument
from stagemesh.etcd import Etcd
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2 as pb
from stagemesh.v1.cache_pb2_grpc import CacheServiceStub
from stagemesh.v1.registry_pb2 import ServiceRecord
from tests.library.etcd_process import EtcdProcess, free_port

VALUE = b"answer" * 10


def store_request(tenant: str, name: str, value: bytes = VALUE, **kw: object) -> pb.CacheStoreRequest:
    digest = hashlib.sha256(key(name) + value).digest()
    return pb.CacheStoreRequest(
        **{"tenant": tenant, "key": key(name), "value": value, "digest": digest, "ttl_s": 0, **kw}
    )


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def lookup_request(tenant: str, name: str) -> pb.CacheLookupRequest:
    return pb.CacheLookupRequest(tenant=tenant, key=key(name))


async def start_cache(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stagemesh.services.cache", *flags, stderr=asyncio.subprocess.PIPE
    )


class Running:
    def __init__(self, process: asyncio.subprocess.Process, etcd: Etcd, etcd_address: str) -> None:
        self.process = process
        self.etcd = etcd
        self.etcd_address = etcd_address
        self.metrics_port = 0
        self.address = ""

    async def record(self) -> ServiceRecord | None:
        items, _ = await self.etcd.get_prefix(records.SERVICES + "cache/")
        return records.from_json(items[0].value, ServiceRecord) if items else None

    async def ready(self) -> None:
        async with asyncio.timeout(30):
            while (record := await self.record()) is None:
                assert self.process.returncode is None, "the cache ended at its start"
                await asyncio.sleep(0.02)
        self.address = record.address
        assert record.pid == self.process.pid


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    etcd_process = EtcdProcess(tmp_path)
    await etcd_process.start()
    etcd = Etcd(etcd_process.address)
    await etcd.start()
    metrics_port = free_port()
    process = await start_cache(
        "--etcd",
        etcd_process.address,
        "--port",
        "0",
        "--max-bytes",
        "20000",
        "--max-entry-bytes",
        "4000",
        "--metrics-port",
        str(metrics_port),
    )
    found = Running(process, etcd, etcd_process.address)
    found.metrics_port = metrics_port
    try:
        await found.ready()
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        await etcd.close()
        await etcd_process.stop()


async def test_a_cache_from_start_to_drain(running: Running) -> None:
    async with create_channel(running.address) as channel:
        cache = CacheServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        state = await health.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
        assert state.status == health_pb2.HealthCheckResponse.SERVING
        await check_lookups_and_tenants(cache)
        await check_rejections(cache)
        await check_budget_and_invalidation(cache)
        stats = await cache.GetStats(pb.CacheStatsRequest(), timeout=10)
        assert stats.bytes_budget == 20_000
        assert (stats.hits, stats.rejected) == (1, 2)
        assert stats.evictions > 0
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://127.0.0.1:{running.metrics_port}/metrics")).text
        assert 'stagemesh_cache_lookups_total{result="hit"} 1.0' in text
        assert 'stagemesh_cache_stores_total{result="rejected"} 2.0' in text
        assert f"stagemesh_cache_evictions {float(stats.evictions)}" in text
        assert f"stagemesh_cache_used_bytes {float(stats.bytes_used)}" in text
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.process.wait(), 20) == 0
    assert await running.record() is None


async def check_lookups_and_tenants(cache: CacheServiceStub) -> None:
    assert not (await cache.Lookup(lookup_request("a", "q"), timeout=10)).hit
    stored = await cache.Store(store_request("a", "q", tags=["model:x"]), timeout=10)
    assert stored.stored
    assert stored.reason == ""
    found = await cache.Lookup(lookup_request("a", "q"), timeout=10)
    assert (found.hit, found.value, found.digest) == (True, VALUE, hashlib.sha256(key("q") + VALUE).digest())
    assert found.age_s >= 0
    assert not (await cache.Lookup(lookup_request("b", "q"), timeout=10)).hit


async def check_rejections(cache: CacheServiceStub) -> None:
    wrong = await cache.Store(store_request("a", "w", digest=b"x" * 32), timeout=10)
    assert not wrong.stored
    assert "SHA-256" in wrong.reason
    large = await cache.Store(store_request("a", "w", b"v" * 4001), timeout=10)
    assert not large.stored
    assert "larger" in large.reason
    assert not (await cache.Lookup(lookup_request("a", "w"), timeout=10)).hit
    for request, field in (
        (pb.CacheLookupRequest(tenant="a", key=b"short"), "key"),
        (pb.CacheLookupRequest(tenant="", key=key("q")), "tenant"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache.Lookup(request, timeout=10)
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidArgument)
        assert error.field == field
    with pytest.raises(grpc.aio.AioRpcError, match="tags"):
        await cache.Store(store_request("a", "q", tags=[""]), timeout=10)


async def check_budget_and_invalidation(cache: CacheServiceStub) -> None:
    for number in range(12):
        request = store_request("a", f"big{number}", b"v" * 3000, tags=["model:big"])
        assert (await cache.Store(request, timeout=10)).stored
        stats = await cache.GetStats(pb.CacheStatsRequest(), timeout=10)
        assert stats.bytes_used <= 20_000
    held = stats.entries
    dropped = await cache.Invalidate(pb.CacheInvalidateRequest(tag="model:big", tenant="b"), timeout=10)
    assert dropped.entries == 0
    dropped = await cache.Invalidate(pb.CacheInvalidateRequest(tag="model:big"), timeout=10)
    assert dropped.entries == held > 0


async def test_time_passes(running: Running) -> None:
    async with create_channel(running.address) as channel:
        cache = CacheServiceStub(channel)
        await cache.Store(store_request("a", "q", ttl_s=1), timeout=10, wait_for_ready=True)
        async with asyncio.timeout(20):
            while (await cache.GetStats(pb.CacheStatsRequest(), timeout=10)).entries:
                await asyncio.sleep(0.1)
        stats = await cache.GetStats(pb.CacheStatsRequest(), timeout=10)
        assert (stats.expirations, stats.bytes_used) == (1, 0)
        assert not (await cache.Lookup(lookup_request("a", "q"), timeout=10)).hit


async def test_a_taken_port_is_one_clear_line(running: Running) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        second = await start_cache("--etcd", running.etcd_address, "--port", port)
        _, said = await asyncio.wait_for(second.communicate(), 30)
    assert second.returncode == 1
    assert port in said.decode()
    assert "Traceback" not in said.decode()


async def test_no_etcd_and_bad_settings_are_clear_lines() -> None:
    alone = await start_cache("--etcd", f"127.0.0.1:{free_port()}", "--port", "0")
    _, said = await asyncio.wait_for(alone.communicate(), 30)
    assert alone.returncode == 1
    assert len(said.decode().splitlines()) == 1
    assert "etcd" in said.decode()
    wrong = await start_cache("--max-bytes", "20000", "--max-entry-bytes", "30000", "--etcd", "x:1")
    _, said = await asyncio.wait_for(wrong.communicate(), 30)
    assert wrong.returncode == 1
    assert "max_entry_bytes" in said.decode()
