"""What does each added stage cost a decode step, compute subtracted?

A model of almost no compute is deployed in 1, 2 and 4 stages, and one session decodes at its head. What a step takes
beyond the stages' computing is the way around the ring: no hop with one stage, two with 2, four with 4. The first two cost more
than the next two, whose processes are awake anyway, so a hop is a fourth of what the ring of 4 takes more than one stage. Beside
it, in the same rounds: a 4 KiB ping-pong on an open grpc.aio stream, with gRPC's default settings at both ends.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc.aio

from bench.bare import SERVICE
from bench.children import server
from bench.head import Head, find_head
from bench.meshes import deployed, mesh, prompts
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Bound, Result, Series

STAGES = (1, 2, 4)
HOPS = {1: 0, 2: 2, 4: 4}
"""Messages that a decode step sends on its way around."""
TOKENS, QUICK_TOKENS = 300, 30
PINGS = 1000
PAYLOAD = bytes(4096)
ROUNDS = 9
RTT = "ping-pong, 4 KiB"


async def run(options: Options) -> Result:
    """Measure each number of stages and the ping-pong, interleaved."""
    result = Result("hop", "time of a decode step beyond the stages' computing, microseconds")
    outside: dict[int, list[float]] = {stages: [] for stages in STAGES}
    compute: dict[int, list[float]] = {stages: [] for stages in STAGES}
    rtt: list[float] = []
    tokens = QUICK_TOKENS if options.quick else TOKENS
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(server("bench.bare"))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        running = await stack.enter_async_context(mesh(max(STAGES)))
        client = await stack.enter_async_context(running.client())
        heads: dict[int, Head] = {}
        for stages in STAGES:
            model = await stack.enter_async_context(deployed(running, "micro", "fp32", stages))
            heads[stages] = await stack.enter_async_context(await find_head(client, model))
        prompt = prompts("micro", 1, 4)[0]
        contenders: list[Head | None] = [None, *heads.values()]
        count = {id(head): stages for stages, head in heads.items()}
        # One round more than is counted: the first warms up.
        for number, head in interleaved(contenders, options.times(ROUNDS) + 1):
            if head is None:
                pinged = await ping_pong(channel, PINGS // 10 if options.quick else PINGS)
                if number:
                    rtt.append(pinged * 1e6)
                continue
            session = await head.generate(prompt, tokens)
            if number:
                outside[count[id(head)]].append((session.step_s - session.compute_s) * 1e6)
                compute[count[id(head)]].append(session.compute_s * 1e6)
    result.series.append(Series("bare gRPC", RTT, "us", rtt))
    for stages in STAGES:
        result.series.append(Series("step beyond computing", f"{stages} stage(s)", "us", outside[stages]))
    for stages in STAGES:
        result.series.append(Series("computing of a step", f"{stages} stage(s)", "us", compute[stages]))
    result.notes.append("a hop is a fourth of what the ring of 4 stages takes more than one stage alone")
    for key, name, few, many, bound in (
        ("hop_vs_grpc_rtt", "of four", 1, 4, Bound(1.0, at_most=True)),
        ("first_two_hops_each_vs_grpc_rtt", "of the first two", 1, 2, None),
        ("next_two_hops_each_vs_grpc_rtt", "of the next two", 2, 4, None),
    ):
        hops = HOPS[many] - HOPS[few]
        values = [(b - a) / hops for a, b in zip(outside[few], outside[many], strict=True)]
        if min(values) > 0:
            result.ratio(key, paired_ratio(values, rtt), bound)
            result.series.append(Series("one hop", name, "us", values))
        else:
            result.not_measured[key] = "noise: a ring with more stages seemed no slower than one with fewer"
    say(f"{len(rtt)} rounds")
    return result


async def ping_pong(channel: grpc.aio.Channel, count: int) -> float:
    """Seconds of one 4 KiB round trip on an open bidirectional stream."""
    answers: asyncio.Queue[bytes] = asyncio.Queue(1)

    async def balls() -> AsyncIterator[bytes]:
        for _ in range(count + 1):
            yield PAYLOAD
            await answers.get()

    call = channel.stream_stream(f"/{SERVICE}/PingPong", None, None)(balls(), timeout=60)
    started = 0.0
    async for answer in call:
        started = started or time.perf_counter()  # the first opened the stream
        answers.put_nowait(answer)
    return (time.perf_counter() - started) / count
