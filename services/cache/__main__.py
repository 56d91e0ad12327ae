"""`python -m stagemesh.services.cache`: one cache process from its start to its drain."""

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid

from stagemesh import metrics, tracing
from stagemesh.announce import announce
from stagemesh.config import load_config
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.loop_lag import LoopLag
from stagemesh.v1.cache_pb2 import DESCRIPTOR
from stagemesh.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from stagemesh.v1.registry_pb2 import ServiceRecord

from .config import CacheConfig
from .measures import Measures
from .servicer import CacheServicer
from .store import EntryStore

_log = logging.getLogger(__name__)
_SWEEP_S = 1.0


async def main(argv: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT. Raises `errors.ConfigError` or `errors.Unavailable` at the start."""
    config = load_config(CacheConfig, argv, prog="stagemesh cache")
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    cache_id = f"cache-{socket.gethostname().split('.')[0][:40]}-{uuid.uuid4().hex[:8]}"
    tracing.setup_tracing("stagemesh-cache", cache_id)
    store = EntryStore(
        max_bytes=config.max_bytes, max_entry_bytes=config.max_entry_bytes, clock=time.monotonic
    )
    measures = Measures()
    measures.watch(store)
    servicer = CacheServicer(store, default_ttl_s=config.default_ttl_s, measures=measures)
    etcd = Etcd(config.etcd, ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(tracing.shutdown_tracing)
        if (metrics_server := metrics.serve_metrics(config.metrics_port, config.host)) is not None:
            stack.push_async_callback(asyncio.to_thread, metrics_server.close)
        await stack.enter_async_context(LoopLag())
        await etcd.start()
        stack.push_async_callback(etcd.close)
        server = GrpcServer(config.host, config.port)
        add_CacheServiceServicer_to_server(servicer, server.server)
        port = await server.start([DESCRIPTOR.services_by_name["CacheService"].full_name])
        stack.push_async_callback(server.stop, config.drain_s)
        stack.push_async_callback(_cancel, asyncio.create_task(_sweep(store), name="cache-sweep"))
        record = ServiceRecord(
            kind="cache",
            id=cache_id,
            address=config.address(port),
            pid=os.getpid(),
            started_unix_ms=int(time.time() * 1000),
        )
        # Leaving takes back, in this order: health, the announcement, then the port after those in flight.
        async with announce(etcd, record, ttl_s=config.lease_ttl_s):
            await server.set_serving(True)
            _log.info("cache.ready id=%s address=%s", cache_id, record.address)
            await serve_until_signal()
            await server.set_serving(False)
            _log.info("cache.draining id=%s", cache_id)


async def _sweep(store: EntryStore) -> None:
    """Give back the bytes of entries whose time has passed, a few at a time."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        store.expire()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    run(main())
