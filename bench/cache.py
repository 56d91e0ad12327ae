"""How fast is a kept answer: at the cache service, end to end through a router, and beside what one would build instead?

A real etcd, a cache, two routers (one keeps no copies), a bare grpc.aio service, and a bare one that does a GET from a real
redis-server, each its own process. One client calls one of them at a time, all in turns. Then entries are written as
fast as the cache takes them while somebody reads, and 100,000 embeddings are searched.
"""

import asyncio
import time
from statistics import quantiles

import grpc.aio

from bench.cache_world import BARE, BARE_ANSWER, CACHE, FAR, NEAR, REDIS, Call, World, world
from bench.children import server
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Bound, Result, Series
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2, cache_pb2_grpc

CALLS, QUICK_CALLS = 150, 20
ROUNDS = 40
WRITE_S, QUICK_WRITE_S = 2.0, 0.3
WRITE_ROUNDS, FILE_ROUNDS = 6, 3
ENOUGH_WRITES = 10_000


async def run(options: Options) -> Result:
    """Hits, then writes beside reads, then the search."""
    result = Result(
        "cache", "an answer of 4 KiB from the cache, beside bare gRPC and a service in front of Redis"
    )
    async with world() as found:
        await _hits(found, result, options)
        await _writes(found, result, options)
        await _writes_to_file(found, result, options)
    # Only now: what is part of a service sets how gRPC waits, for this process and those that it starts.
    from bench.cache_semantic import search

    search(result, options)
    return result


async def _hits(found: World, result: Result, options: Options) -> None:
    calls = QUICK_CALLS if options.quick else CALLS
    p50: dict[str, list[float]] = {name: [] for name in found.calls}
    # One round more than is counted: the first warms up.
    for number, name in interleaved(list(found.calls), options.times(ROUNDS) + 1):
        middle, _ = _percentiles(await _one_client(found.calls[name], calls))
        if number:
            p50[name].append(middle * 1e6)
        else:
            say(f"{name}: {middle * 1e6:.0f} us")
    for name, values in p50.items():
        result.series.append(Series("1 client, p50", name, "us", values))
    result.ratio("hit_vs_grpc_rtt", paired_ratio(p50[CACHE], p50[BARE_ANSWER]), Bound(1.3, at_most=True))
    result.ratio("mesh_hit_vs_grpc_rtt", paired_ratio(p50[NEAR], p50[BARE]), Bound(1.6, at_most=True))
    result.ratio("mesh_hit_without_near_vs_grpc_rtt", paired_ratio(p50[FAR], p50[BARE]))
    if found.no_redis:
        result.not_measured["mesh_hit_vs_redis_service"] = found.no_redis
    else:
        ratio = paired_ratio(p50[NEAR], p50[REDIS])
        result.ratio("mesh_hit_vs_redis_service", ratio, Bound(1.0, at_most=True))


async def _writes(found: World, result: Result, options: Options) -> None:
    seconds = QUICK_WRITE_S if options.quick else WRITE_S
    rates, alone, beside, slowest = [], [], [], []
    async with (
        server("bench.cache_writer", "--cache", found.cache) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        start = channel.unary_unary("/bench.CacheWriter/Run")
        for _ in range(options.times(WRITE_ROUNDS)):
            alone.append(_percentiles(await _reads(found.calls[CACHE], seconds / 4))[0] * 1e3)
            writing = asyncio.ensure_future(start(str(seconds).encode(), timeout=60))
            read = _percentiles(await _reads(found.calls[CACHE], seconds))
            kept, refused, took = (await writing).split()
            if int(refused):
                raise RuntimeError(f"{int(refused)} entries were refused")
            rates.append(int(kept) / float(took))
            beside.append(read[0] * 1e3)
            slowest.append(read[1] * 1e3)
    result.series.append(Series("entries of 4 KiB written", "kept", "entries/s", rates))
    for name, values in (
        ("p50, nobody writes", alone),
        ("p50 beside the writes", beside),
        ("p99 beside the writes", slowest),
    ):
        result.series.append(Series("reads, 1 client", name, "ms", values))
    result.ratio("writes_per_s", paired_ratio(rates, [1.0] * len(rates)), Bound(ENOUGH_WRITES))
    result.ratio("read_p99_ms_beside_writes", paired_ratio(slowest, [1.0] * len(slowest)))


async def _writes_to_file(found: World, result: Result, options: Options) -> None:
    """The same to a cache that keeps its entries in a file, too; of the file itself, what it could not take is counted."""
    seconds = QUICK_WRITE_S if options.quick else WRITE_S
    rates, dropped = [], 0
    async with (
        server("bench.cache_writer", "--cache", found.cache_with_file) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        create_channel(found.cache_with_file) as cache,
    ):
        start = channel.unary_unary("/bench.CacheWriter/Run")
        stub = cache_pb2_grpc.CacheServiceStub(cache)  # type: ignore[no-untyped-call]
        written = 0
        for _ in range(options.times(FILE_ROUNDS)):
            kept, refused, took = (
                await start(str(seconds).encode(), timeout=60, wait_for_ready=True)
            ).split()
            if int(refused):
                raise RuntimeError(f"{int(refused)} entries were refused")
            rates.append(int(kept) / float(took))
            written += int(kept)
        dropped = (await stub.GetStats(cache_pb2.CacheStatsRequest(), timeout=10)).writes_dropped
    result.series.append(Series("entries of 4 KiB written", "kept, a file behind", "entries/s", rates))
    result.ratio("writes_per_s_with_file", paired_ratio(rates, [1.0] * len(rates)))
    result.notes.append(
        f"with a file behind {written - dropped:,} of {written:,} entries were taken for the file, the others live in memory only"
    )


async def _one_client(call: Call, calls: int) -> list[float]:
    """Seconds of each call, one after the other."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return times


async def _reads(call: Call, seconds: float) -> list[float]:
    """The same, for so long."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        times += await _one_client(call, 10)
    return times


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    found = quantiles(seconds, n=100, method="inclusive")
    return found[49], found[98]
