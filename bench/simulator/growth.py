"""What a mesh costs etcd, its watchers and its routers as it grows: measured on the real ones, and multiplied out.

Measured: an etcd process that is given records as replicas announce them (writes a second, its memory and file for each, how
late a watcher hears of them), and the router's own `Membership` and `Loads` filled with 10 to 10,000 replicas (memory by
tracemalloc, time to take in one change). Multiplied out: keepalives, writes and watch traffic, from the lease time and from how often
a replica came, changed or went in the simulated day.
"""

import asyncio
import tempfile
import time
import tracemalloc
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
from aetcd.rpc import Event, ResponseHeader, WatchResponse
from stagemesh.services.router.loads import Loads  # type: ignore[import-not-found]
from stagemesh.services.router.membership import Membership  # type: ignore[import-not-found]
from stagemesh.services.router.policies import P2cEwma  # type: ignore[import-not-found]

from stagemesh import records
from stagemesh.etcd import Etcd, Snapshot
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.v1.registry_pb2 import REPLICA_STATE_READY, ModelSpec, NodeRecord, Partition, ReplicaRecord

LEASE_S = 5
KEEPALIVES = 3
"""Of a lease, within its time."""
REPLICAS_PER_ROUTER = 250
_STAGES = 4


@dataclass(frozen=True)
class Etcds:
    """A real etcd: writes a second, bytes of its file and of its memory for each record, seconds until a watcher hears of a write."""

    writes_per_s: float
    file_bytes: float
    memory_bytes: float
    heard_s: float


@dataclass(frozen=True)
class Router:
    """A real router's view of so many replicas: bytes, and milliseconds for one change and the next choice."""

    replicas: int
    memory_bytes: int
    change_ms: float


@dataclass(frozen=True)
class Row:
    """A mesh of so many replicas, each on a node of its own, with a router for each 250."""

    replicas: int
    routers: int
    keys: int
    stored_mb: float
    keepalives_per_s: float
    writes_per_s: float
    events_per_s: float
    watch_kb_per_s: float
    listing_mb: float
    router_mb: float
    change_ms: float


def replica_record(nth: int) -> ReplicaRecord:
    """A record as large as replicas' are."""
    return ReplicaRecord(
        replica_id=f"chat-{nth % _STAGES}-{nth:08x}",
        model="chat",
        revision="0123456789abcdef-01234567",
        stage=nth % _STAGES,
        stages=_STAGES,
        partition=Partition(
            first_layer=8 * (nth % _STAGES), end_layer=8 * (nth % _STAGES) + 8, parameter_bytes=10**10
        ),
        node_id=f"node-{nth:08x}",
        address="10.123.123.123:8010",
        pid=12345,
        zone="zone-a",
        state=REPLICA_STATE_READY,
        generation=12,
        kv_bytes_total=10**10,
        canary_ms=12.5,
    )


def node_record(nth: int) -> NodeRecord:
    """A record as large as nodes' are."""
    return NodeRecord(
        node_id=f"node-{nth:08x}",
        address="10.123.123.123:8010",
        host=f"worker-{nth}.example",
        pid=12345,
        device="cuda",
        device_name="an accelerator of some kind",
        memory_bytes=48 * 10**9,
        threads=16,
        gflops=10_000,
        memory_gbps=900,
        zone="zone-a",
        started_unix_ms=1_700_000_000_000,
        version="0.1.0",
    )


def spec_record() -> ModelSpec:
    """The model of these replicas."""
    parts = [replica_record(nth).partition for nth in range(_STAGES)]
    return ModelSpec(
        name="chat",
        revision="0123456789abcdef-01234567",
        partitions=parts,
        replicas=[1] * _STAGES,
        generation=12,
    )


def entries(replicas: int) -> dict[str, bytes]:
    """Keys and values of a mesh of so many replicas and nodes."""
    found = {records.model_key("chat"): records.to_json(spec_record())}
    for nth in range(replicas):
        record, node = replica_record(nth), node_record(nth)
        found[records.replica_key("chat", record.stage, record.replica_id)] = records.to_json(record)
        found[records.node_key(node.node_id)] = records.to_json(node)
    return found


def event_bytes() -> int:
    """Of one watch event on the wire, without HTTP/2's own few bytes."""
    record = replica_record(1)
    key = records.replica_key("chat", record.stage, record.replica_id).encode()
    event = Event(type=Event.PUT)
    event.kv.key, event.kv.value = key, records.to_json(record)
    event.kv.create_revision = event.kv.mod_revision = 10**6
    event.kv.version, event.kv.lease = 1, 10**18
    header = ResponseHeader(cluster_id=10**18, member_id=10**18, revision=10**6, raft_term=9)
    return int(WatchResponse(header=header, watch_id=1, events=[event]).ByteSize())


def measure_router(replicas: int, changes: int = 20) -> Router:
    """Fill a router's view, choose from it, and take in changes one at a time."""
    items = entries(replicas)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    membership, loads, policy, rng = Membership(grace_s=5.0), Loads(), P2cEwma(), Random(1)
    membership.snapshot(items, 0.0)
    spec = membership.models["chat"]
    for stage in membership.ready(spec):
        if stage:
            names = [each.replica_id for each in loads.candidates(stage, whole=True)]
            loads.begin(names)
            loads.end(names)
    memory = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    started = time.process_time()
    for nth in range(changes):
        record = replica_record(nth % replicas)
        record.canary_ms = nth
        membership.change(
            records.replica_key("chat", record.stage, record.replica_id), records.to_json(record), 1.0
        )
        for stage in membership.ready(spec):
            if stage:
                policy.choose(loads.candidates(stage, whole=True), 1.0, rng)
    return Router(replicas, memory, 1000 * (time.process_time() - started) / changes)


async def measure_etcd(replicas: int, concurrency: int = 32) -> Etcds:
    """Give a fresh etcd process the records of so many replicas."""
    with tempfile.TemporaryDirectory() as name:
        server = EtcdServer(Path(name))
        await server.start()
        etcd = Etcd(server.endpoint)
        try:
            await etcd.start()
            return await _fill(server, etcd, Path(name), replicas, concurrency)
        finally:
            await etcd.close()
            await server.stop()


async def _fill(server: EtcdServer, etcd: Etcd, folder: Path, replicas: int, concurrency: int) -> Etcds:
    process = server.process
    assert process is not None
    before = psutil.Process(process.pid).memory_info().rss
    file_before = _file_bytes(folder)
    items = list(entries(replicas).items())
    heard, last = asyncio.Event(), items[-1][0]

    async def listen() -> None:
        async with aclosing(etcd.watch(records.ROOT)) as changes:  # type: ignore[type-var]
            async for change in changes:
                if not isinstance(change, Snapshot) and change.key == last:
                    heard.set()

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    queue = iter(items[:-1])

    async def write() -> None:
        for key, value in queue:
            await etcd.put(key, value)

    started = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(concurrency)))
    took = time.perf_counter() - started
    asked = time.perf_counter()
    await etcd.put(*items[-1])
    async with asyncio.timeout(30):
        await heard.wait()
    heard_s = time.perf_counter() - asked
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    grown = psutil.Process(process.pid).memory_info().rss - before
    return Etcds(
        (len(items) - 1) / took, (_file_bytes(folder) - file_before) / len(items), grown / len(items), heard_s
    )


def _file_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("snap/db"))


def table(sizes: list[int], changes_per_replica_hour: float) -> list[Row]:
    """A row for each number of replicas; how often one of them comes, changes or goes is what the simulation found."""
    rows = []
    for replicas in sizes:
        items = entries(replicas)
        stored = sum(len(key) + len(value) for key, value in items.items())
        routers = max(1, round(replicas / REPLICAS_PER_ROUTER))
        writes = replicas * changes_per_replica_hour / 3600
        # Each router, and each registry, follows everything.
        watchers = routers + 2
        measured = measure_router(replicas)
        rows.append(
            Row(
                replicas,
                routers,
                len(items),
                stored / 1e6,
                replicas * KEEPALIVES / LEASE_S,
                writes,
                writes * watchers,
                writes * watchers * event_bytes() / 1e3,
                watchers * stored / 1e6,
                measured.memory_bytes / 1e6,
                measured.change_ms,
            )
        )
    return rows
