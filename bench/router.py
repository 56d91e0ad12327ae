"""What does the router add to a 4 KiB request, and how many requests per second does it carry?

A real etcd, a real router and one stage that computes nothing, each its own process. Contenders: the request through
the router; the same micro-batch sent straight to the stage; a bare grpc.aio unary call that echoes 4 KiB. Each sends
a message made before, so that what a client does with its arrays counts for none of them.
"""

# isort: off
import stagemesh.services  # type: ignore[import-not-found]  # noqa: F401 (sets how gRPC waits, in what starts from here, too)

# isort: on
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median

import grpc.aio
import numpy as np

from bench.children import server, until_settled
from bench.noop_model import MODEL, REPLICA, announce
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Bound, Result, Series
from stagemesh.grpc_server import create_channel
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.ports import claim
from stagemesh.local.processes import ChildProcess, service_argv
from stagemesh.tensor import from_numpy
from stagemesh.v1 import inference_pb2, stage_pb2

IDS = np.arange(512, dtype=np.int64).reshape(1, 512) % 100  # 4 KiB
CLIENTS = 16
CALLS, QUICK_CALLS = 600, 60
ROUNDS = 11
TURN = 60
"""Calls of one contender before it is another's turn."""
THROUGH, STRAIGHT, BARE = "through the router", "straight to the stage", "bare unary, 4 KiB"
_UP_S = 60.0

Call = Callable[[], Awaitable[object]]


async def run(options: Options) -> Result:
    """Latency with one client, then requests per second with sixteen, interleaved."""
    result = Result("router", "a 4 KiB request through the router and one stage that computes nothing")
    calls = QUICK_CALLS if options.quick else CALLS
    latency: dict[str, list[float]] = {}
    rate: dict[str, list[float]] = {}
    async with _contenders() as contenders:
        # One round more than is counted: the first warms up.
        rounds = options.times(ROUNDS) + 1
        for number in range(rounds):
            alone = await _one_client(contenders, calls)
            say(
                f"round {number} of {rounds}: "
                + ", ".join(f"{name} {alone[name] * 1e6:.0f} us" for name in alone)
            )
            for name in alone if number else ():
                latency.setdefault(name, []).append(alone[name] * 1e6)
        for number, name in interleaved(list(contenders), rounds):
            together = await _clients(contenders[name], calls * 2)
            if number:
                rate.setdefault(name, []).append(together)
            else:
                say(f"{name}: {together:.0f} requests/s")
    for name, values in latency.items():
        result.series.append(Series("1 client, p50", name, "us", values))
    for name, values in rate.items():
        result.series.append(Series(f"{CLIENTS} clients in one process", name, "requests/s", values))
    added = [a - b for a, b in zip(latency[THROUGH], latency[STRAIGHT], strict=True)]
    if min(added) > 0:
        ratio = paired_ratio(added, latency[BARE])
        result.ratio("router_added_vs_grpc_rtt", ratio, Bound(1.0, at_most=True))
    else:
        result.not_measured["router_added_vs_grpc_rtt"] = "noise: the way through the router seemed no longer"
    needed = paired_ratio(rate[THROUGH], [2000.0] * len(rate[THROUGH]))
    result.ratio("router_requests_vs_2000_per_s", needed, Bound(1.0))
    result.notes.append("the clients are one Python process that shares the two cores with router and stage")
    return result


async def _one_client(contenders: dict[str, Call], calls: int) -> dict[str, float]:
    """Median seconds of a call of each, one call at a time; in short turns, since the difference of two is looked for."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _, name in interleaved(list(contenders), -(-calls // TURN)):
        for _ in range(TURN):
            started = time.perf_counter()
            await contenders[name]()
            times[name].append(time.perf_counter() - started)
    return {name: median(of_one) for name, of_one in times.items()}


async def _clients(call: Call, calls: int) -> float:
    """Calls per second of `CLIENTS` clients, each with one call at a time."""

    async def client() -> None:
        for _ in range(calls // CLIENTS + 1):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return CLIENTS * (calls // CLIENTS + 1) / (time.perf_counter() - started)


@contextlib.asynccontextmanager
async def _contenders() -> AsyncIterator[dict[str, Call]]:
    """The three ways, ready to be called."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stagemesh-bench-")))
        stage = f"127.0.0.1:{await stack.enter_async_context(server('bench.noop_stage'))}"
        bare = f"127.0.0.1:{await stack.enter_async_context(server('bench.bare'))}"
        etcd = EtcdServer(folder)
        await etcd.start()
        stack.push_async_callback(etcd.stop)
        await announce(etcd.endpoint, stage, folder)
        ports = claim({"grpc": 0, "http": 0})
        flags: dict[str, str | int | float] = {
            "etcd": etcd.endpoint,
            "port": ports["grpc"],
            "http-port": ports["http"],
            "log-level": "warning",
        }
        router = await ChildProcess.start("router", service_argv("router", flags), folder / "router.log")
        stack.push_async_callback(router.stop, 5.0)
        door = await stack.enter_async_context(create_channel(f"127.0.0.1:{ports['grpc']}"))
        infer = door.unary_unary(
            "/stagemesh.v1.InferenceService/Infer",
            inference_pb2.InferRequest.SerializeToString,
            inference_pb2.InferResponse.FromString,
        )
        asked = inference_pb2.InferRequest(
            model=MODEL,
            inputs=[from_numpy("input_ids", IDS)],
            cache_no_lookup=True,
            cache_no_store=True,
        )
        channel = await stack.enter_async_context(create_channel(stage))
        forward = channel.unary_unary(
            "/stagemesh.v1.StageService/Forward",
            stage_pb2.ForwardRequest.SerializeToString,
            stage_pb2.ForwardResponse.FromString,
        )
        request = stage_pb2.ForwardRequest(
            session=1,
            model=MODEL,
            route=[stage_pb2.RouteHop(replica_id=REPLICA, address=stage)],
            lengths=[IDS.shape[1]],
            inputs=[from_numpy("input_ids", IDS[0])],
            outputs=["sentence_embedding"],
        )
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(bare))
        echo = plain.unary_unary("/bench.Bare/Echo")
        payload = IDS.tobytes()

        await _until_up(router, lambda: infer(asked, timeout=10))
        await until_settled(router.pid)
        yield {
            BARE: lambda: echo(payload, timeout=10),
            STRAIGHT: lambda: forward(request, timeout=10),
            THROUGH: lambda: infer(asked, timeout=10),
        }


async def _until_up(router: ChildProcess, call: Call) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        try:
            await call()
            return
        except grpc.aio.AioRpcError:
            if router.returncode is not None or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)
