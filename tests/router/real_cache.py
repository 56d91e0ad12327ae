"""A real cache in this process, on the test's etcd: the store, leases and validity of the service."""

import time
from contextlib import AsyncExitStack

from stagemesh.services.cache.behind import Nothing
from stagemesh.services.cache.measures import Measures
from stagemesh.services.cache.servicer import CacheServicer
from stagemesh.services.cache.single_flight import SingleFlight
from stagemesh.services.cache.validity import Validity, ValidityWatch

from stagemesh.entry_store import EntryStore
from stagemesh.grpc_server import GrpcServer
from stagemesh.v1 import cache_pb2_grpc, registry_pb2


class RealCache:
    """`async with` serves it; `record` is what a router finds it by."""

    def __init__(self, etcd, name="real", ttl_s=20.0):
        self.store = EntryStore(max_bytes=2**24, max_entry_bytes=2**20, clock=time.monotonic)
        self.flights = SingleFlight(ttl_s=ttl_s, max_flights=100, max_waiters=100)
        self._etcd = etcd
        self._name = name
        self._stack = AsyncExitStack()

    async def __aenter__(self):
        await self._stack.enter_async_context(self.flights)
        validity = Validity(self.store, Nothing())
        watch = await self._stack.enter_async_context(ValidityWatch(self._etcd, validity))
        await watch.listed()
        self.servicer = CacheServicer(
            self.store, Nothing(), self.flights, validity, watch, default_ttl_s=60, measures=Measures()
        )
        self.door = GrpcServer("127.0.0.1", 0)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self.servicer, self.door.server)
        address = f"127.0.0.1:{await self.door.start(['stagemesh.v1.CacheService'])}"
        self.record = registry_pb2.ServiceRecord(kind="cache", id=self._name, address=address)
        return self

    async def __aexit__(self, *_):
        await self._stack.aclose()
        await self.door.stop(0)

    @property
    def flown(self):
        return self.flights.leases.stats
