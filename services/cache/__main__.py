"""`python -m stagemesh.services.cache`: one cache process from its start to its drain."""

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
import uuid

from stagemesh import metrics, tracing
from stagemesh.announce import announce
from stagemesh.config import load_config
from stagemesh.entry_store import EntryStore
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.loop_lag import LoopLag
from stagemesh.v1.cache_pb2 import DESCRIPTOR
from stagemesh.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from stagemesh.v1.registry_pb2 import ServiceRecord
from stagemesh.v1.semantic_pb2 import DESCRIPTOR as SEMANTIC
from stagemesh.v1.semantic_pb2_grpc import add_SemanticServiceServicer_to_server

from .behind import Behind, Nothing
from .config import CacheConfig
from .entry_file import open_file
from .file_writer import FileWriter
from .measures import Measures
from .restore import restore_all, tell
from .semantic.file import SemanticFile, open_behind
from .semantic.layer import SemanticLayer
from .semantic.servicer import SemanticServicer
from .semantic.worker import SemanticWorker
from .servicer import CacheServicer
from .single_flight import SingleFlight
from .validity import KEEP_S, Validity, ValidityWatch

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
    etcd = Etcd(config.etcd, ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(tracing.shutdown_tracing)
        if (metrics_server := metrics.serve_metrics(config.metrics_port, config.host)) is not None:
            stack.push_async_callback(asyncio.to_thread, metrics_server.close)
        await stack.enter_async_context(LoopLag())
        await etcd.start()
        stack.push_async_callback(etcd.close)
        behind = await _behind(config, store, etcd)
        stack.push_async_callback(behind.close)
        flights = await stack.enter_async_context(
            SingleFlight(
                ttl_s=config.compute_ttl_s, max_flights=config.max_computing, max_waiters=config.max_waiting
            )
        )
        validity = Validity(store, behind)
        semantic = await stack.enter_async_context(SemanticWorker(await _semantic(config)))
        validity.followers.append(semantic)
        watch = await stack.enter_async_context(ValidityWatch(etcd, validity))
        # What was invalidated while this cache was down must be gone before it answers anybody.
        await watch.listed()
        measures = Measures()
        measures.watch(store, flights, behind)
        servicer = CacheServicer(
            store,
            behind,
            flights,
            validity,
            watch,
            default_ttl_s=config.default_ttl_s,
            measures=measures,
        )
        server = GrpcServer(config.host, config.port)
        add_CacheServiceServicer_to_server(servicer, server.server)
        add_SemanticServiceServicer_to_server(SemanticServicer(semantic), server.server)
        names = [DESCRIPTOR.services_by_name["CacheService"].full_name]
        port = await server.start([*names, SEMANTIC.services_by_name["SemanticService"].full_name])
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
            servicer.end_streams()
            _log.info("cache.draining id=%s", cache_id)


async def _behind(config: CacheConfig, store: EntryStore, etcd: Etcd) -> Behind:
    """What is to stand behind the memory; entries that are there already are in the memory after this."""
    behind: Behind = Nothing()
    if config.redis:
        # Only who wants it needs the client library.
        from .redis_store import RedisStore

        behind = await RedisStore.connect(
            config.redis,
            timeout_s=config.redis_timeout_ms / 1000,
            max_waiting_bytes=config.max_waiting_bytes,
        )
    elif config.file is not None:
        file, rows, set_aside = await asyncio.to_thread(open_file, config.file)
        if not set_aside and rows and time.time() - file.seen_ms() / 1000 > KEEP_S - 3600:
            _log.warning("cache.file_old: what was invalidated since cannot be known, nothing of it is kept")
            await asyncio.to_thread(file.clear)
            rows = []
        left_out = restore_all(store, rows)
        behind = FileWriter(file, max_waiting_bytes=config.max_waiting_bytes, informed=lambda: etcd.connected)
        behind.stats.restored = len(rows) - len(left_out)
        for tenant, key in left_out:
            behind.gone(tenant, key)
        _log.info("cache.restored entries=%d left_out=%d", len(rows) - len(left_out), len(left_out))
    store.watcher = tell(behind)
    return behind


async def _semantic(config: CacheConfig) -> tuple[SemanticLayer, SemanticFile | None]:
    """The semantic layer with what its file holds."""
    path = config.semantic_file
    if path is None and config.file is not None:
        path = config.file.with_name(config.file.name + ".semantic")
    layer = SemanticLayer(
        max_bytes=config.semantic_max_bytes,
        default_ttl_s=config.default_ttl_s,
        clock=time.time,
        rng=random.Random(),
    )
    file = await asyncio.to_thread(open_behind, path, layer) if path is not None else None
    return layer, file


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
