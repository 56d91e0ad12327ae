"""A cache that keeps what it is given, or lies, or is slow, on purpose."""

import asyncio
import hashlib

from stagemesh.grpc_server import GrpcServer
from stagemesh.v1 import cache_pb2, cache_pb2_grpc


class ScriptedCache(cache_pb2_grpc.CacheServiceServicer):
    """`mode` is good, slow, wrong digest, wrong value, truncated; another's (a whole entry of
    another request, `foreign` under `foreign_key`) or another shape (its value with the right digest)."""

    def __init__(self, mode="good"):
        self.mode = mode
        self.kept = {}
        self.foreign = self.foreign_key = b""
        self.lookups = 0
        self.now = self.most = 0
        self.stored = asyncio.Event()
        self.door = GrpcServer("127.0.0.1", 0)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self, self.door.server)

    async def __aenter__(self):
        self.address = f"127.0.0.1:{await self.door.start(['stagemesh.v1.CacheService'])}"
        return self

    async def __aexit__(self, *_):
        await self.door.stop(0)

    async def Lookup(self, request, context):
        self.lookups += 1
        self.asked = request
        if self.mode == "slow":
            await asyncio.sleep(5)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.005)
        self.now -= 1
        store = self.kept.get((request.tenant, request.key))
        if store is None:
            return cache_pb2.CacheLookupResponse()
        value = b"\xff\xff" if self.mode == "wrong value" else store.value
        if self.mode == "truncated":
            value = value[:-1]
        if self.mode in ("another's", "another shape"):
            value, key = self.foreign, self.foreign_key
        else:
            key = request.key
        digest = hashlib.sha256(key + value).digest()
        if self.mode == "wrong digest":
            digest = b"0" * 32
        elif self.mode == "truncated":
            digest = store.digest
        elif self.mode == "another shape":
            digest = hashlib.sha256(request.key + value).digest()
        return cache_pb2.CacheLookupResponse(hit=True, value=value, digest=digest)

    async def Store(self, request, context):
        assert hashlib.sha256(request.key + request.value).digest() == request.digest
        self.kept[request.tenant, request.key] = request
        self.stored.set()
        return cache_pb2.CacheStoreResponse(stored=True)
