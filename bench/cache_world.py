"""The processes of the cache benchmark, each on its own: etcd, a cache, routers, a stage that computes nothing, and what
stands beside them: a bare gRPC service, and a bare one in front of a real redis-server.
"""

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
import redis

from bench.children import server
from bench.noop_model import MODEL, announce
from stagemesh.errors import Unavailable
from stagemesh.grpc_server import create_channel
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.ports import claim
from stagemesh.local.processes import ChildProcess, service_argv
from stagemesh.tensor import from_numpy
from stagemesh.v1 import cache_pb2, cache_pb2_grpc, inference_pb2, inference_pb2_grpc

TENANT = "default"
ROWS = 64
IDS = np.arange(512, dtype=np.int64).reshape(ROWS, 8) % 100
"""4 KiB in, and as much out: [64, 16] of F32."""
KEY = hashlib.sha256(b"an entry of 4 KiB").digest()
HIT = inference_pb2.CACHE_STATUS_HIT
_UP_S = 60.0

Call = Callable[[], Awaitable[object]]


@dataclass
class World:
    """`calls` by the name of what is called; `redis` says why there is no Redis, or nothing."""

    cache: str
    cache_with_file: str
    calls: dict[str, Call] = field(default_factory=dict)
    no_redis: str = ""


BARE, BARE_ANSWER = "bare unary, 4 KiB each way", "bare unary, 4 KiB answer"
CACHE, NEAR = "hit at the cache", "hit through a router"
FAR = "hit through a router without near cache"
REDIS = "bare unary with a Redis GET"


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Everything up, and the entry that is asked for in its places."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stagemesh-bench-")))
        stage = f"127.0.0.1:{await stack.enter_async_context(server('bench.noop_stage'))}"
        bare = f"127.0.0.1:{await stack.enter_async_context(server('bench.bare'))}"
        etcd = EtcdServer(folder)
        await etcd.start()
        stack.push_async_callback(etcd.stop)
        await announce(etcd.endpoint, stage, folder, cache=True)
        ports = claim({"cache": 0, "file": 0, "near": 0, "near-http": 0, "far": 0, "far-http": 0})
        flags: dict[str, str | int | float] = {"etcd": etcd.endpoint, "log-level": "warning"}
        await _start(stack, folder, "cache", {**flags, "port": ports["cache"]})
        # In a mesh of its own: routers would else ask it for its part of the keys.
        (folder / "apart").mkdir()
        apart = EtcdServer(folder / "apart")
        await apart.start()
        stack.push_async_callback(apart.stop)
        filed: dict[str, str | int | float] = {**flags, "etcd": apart.endpoint, "port": ports["file"]}
        await _start(stack, folder, "cache", {**filed, "file": str(folder / "entries.db")}, name="filed")
        found = World(cache=f"127.0.0.1:{ports['cache']}", cache_with_file=f"127.0.0.1:{ports['file']}")
        channel = await stack.enter_async_context(create_channel(found.cache))
        found.calls[CACHE] = await _cache_call(channel)
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(bare))
        echo, answer = plain.unary_unary("/bench.Bare/Echo"), plain.unary_unary("/bench.Bare/Answer")
        payload = IDS.tobytes()
        found.calls[BARE] = lambda: echo(payload, timeout=10)
        found.calls[BARE_ANSWER] = lambda: answer(KEY, timeout=10)
        for name, port, near in ((NEAR, "near", {}), (FAR, "far", {"cache-near-bytes": 0})):
            door = {"port": ports[port], "http-port": ports[f"{port}-http"]}
            await _start(stack, folder, "router", {**flags, **door, **near}, name=port)
            channel = await stack.enter_async_context(create_channel(f"127.0.0.1:{ports[port]}"))
            found.calls[name] = await _router_call(channel)
        await _add_redis(stack, folder, found)
        yield found


async def _add_redis(stack: contextlib.AsyncExitStack, folder: Path, found: World) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        found.no_redis = "there is no redis-server here: scripts/install_redis.sh installs it"
        return
    place = folder / "redis"
    argv = [binary, "--port", "0", "--unixsocket", str(place), "--save", "", "--dir", str(folder)]
    process = await ChildProcess.start("redis", argv, folder / "redis.log")
    stack.push_async_callback(process.stop, 2.0)
    url = f"unix://{place}?db=0"
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + _UP_S
    while True:
        try:
            client.set(KEY, IDS.tobytes())
            break
        except redis.RedisError:
            if process.returncode is not None or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    client.close()
    port = await stack.enter_async_context(server("bench.redis_get", "--redis", url))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    get = channel.unary_unary("/bench.RedisGet/Get")
    request = KEY + IDS.tobytes()[len(KEY) :]
    if len(await get(request, timeout=10)) != IDS.nbytes:
        raise RuntimeError("the Redis service does not answer with the value")
    found.calls[REDIS] = lambda: get(request, timeout=10)


async def _cache_call(channel: grpc.aio.Channel) -> Call:
    stub = cache_pb2_grpc.CacheServiceStub(channel)  # type: ignore[no-untyped-call]
    value = IDS.tobytes()
    store = cache_pb2.CacheStoreRequest(
        tenant=TENANT,
        key=KEY,
        value=value,
        digest=hashlib.sha256(KEY + value).digest(),
        ttl_s=3600,
        tags=[f"model:{MODEL}", "revision:r"],
    )
    request = cache_pb2.CacheLookupRequest(tenant=TENANT, key=KEY)
    await _until(lambda: stub.Store(store, timeout=10))
    if not (await stub.Lookup(request, timeout=10)).hit:
        raise RuntimeError("the cache does not give back what was stored")
    return lambda: stub.Lookup(request, timeout=10)


async def _router_call(channel: grpc.aio.Channel) -> Call:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    request = inference_pb2.InferRequest(model=MODEL, inputs=[from_numpy("input_ids", IDS)])

    async def hit() -> object:
        answer = await stub.Infer(request, timeout=10)
        if answer.cache != HIT:
            raise Unavailable("not a hit")
        assert len(answer.outputs[0].data) == IDS.nbytes
        return answer

    await _until(hit)
    return lambda: stub.Infer(request, timeout=10)


async def _until(call: Call) -> None:
    """Until it succeeds."""
    deadline = time.monotonic() + _UP_S
    while True:
        try:
            await call()
            return
        except (grpc.aio.AioRpcError, Unavailable):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


async def _start(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    kind: str,
    flags: dict[str, str | int | float],
    *,
    name: str = "",
) -> None:
    name = name or kind
    process = await ChildProcess.start(name, service_argv(kind, flags), folder / f"{name}.log")
    stack.push_async_callback(process.stop, 5.0)
