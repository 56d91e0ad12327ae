"""Do two stages of one thread each keep up with one process of two threads on stateless batches?

One request of 8 x 128 tokens after the other on `small` fp32, logits included on both sides, which must be the same.
`stage_busy` is the share of time that the less busy stage computes in a steady stream of such requests, where the next one
is there before the pipeline is empty; `stage_busy_one_request` that of one request alone, filling and draining included:
eight samples over two stages cannot be above 8/9. Both are taken from the stages' own timings at the head, which is sent
the micro-batches that the router cuts.
"""

import asyncio
import contextlib
import time

import numpy as np

from bench.checkpoints import checkpoint
from bench.head import Head, HeadForward, busy, find_head
from bench.meshes import deployed, mesh, prompts
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio, quartiles
from bench.reference import Reference
from bench.result import Bound, Result, Series
from stagemesh.tensor import from_numpy
from stagemesh.v1 import stage_pb2

SAMPLES, LENGTH = 8, 128
ROUNDS = 9
# Micro-batches at the head at once in the steady stream, and those answered before and after what is counted.
IN_STREAM, MARGIN = 8, 4
REQUESTS = 6
# The two sides sum in another order.
TOLERANCE = 1e-3
SINGLE, ONE_REQUEST, EIGHT = "whole, 2 threads", "2 stages, one request", "2 stages, 8 requests at once"


async def run(options: Options) -> Result:
    """Measure the whole model, one request and eight requests at once, interleaved."""
    result = Result("pipeline", f"stateless forward of {SAMPLES} x {LENGTH} tokens, 2 stages x 1 thread")
    name = "tiny" if options.quick else "small"
    rows = prompts(name, SAMPLES, LENGTH)
    ids = np.array(rows, dtype=np.int64)
    rates: dict[str, list[float]] = {SINGLE: [], ONE_REQUEST: [], EIGHT: []}
    stream: list[float] = []
    one_request: list[float] = []
    worst = 0.0
    reference = await asyncio.to_thread(Reference, await asyncio.to_thread(checkpoint, name), "fp32")
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(mesh(2))
        client = await stack.enter_async_context(running.client())
        model = await stack.enter_async_context(deployed(running, name, "fp32", 2))
        head = await stack.enter_async_context(await find_head(client, model))
        # One sample each, as the router cuts it.
        parts = [
            stage_pb2.ForwardRequest(
                lengths=[LENGTH], inputs=[from_numpy("input_ids", row)], outputs=["logits"]
            )
            for row in ids
        ]
        # One round more than is counted: the first warms up.
        for number, contender in interleaved(list(rates), options.times(ROUNDS) + 1):
            started = time.perf_counter()
            if contender == SINGLE:
                taken, expected = await asyncio.to_thread(reference.forward, rows)
            else:
                requests = [ids] if contender == ONE_REQUEST else list(ids[:, None])
                answers = await asyncio.gather(
                    *(client.infer(model, {"input_ids": request}, cache=False) for request in requests)
                )
                taken = time.perf_counter() - started
                given = np.concatenate([answer["logits"] for answer in answers])
                worst = max(worst, float(np.abs(given - expected).max()))
            if number:
                rates[contender].append(SAMPLES * LENGTH / taken)
            if contender == ONE_REQUEST:
                alone, steady = await _alone(head, parts), await _steady(head, parts)
                if number:
                    one_request.append(alone)
                    stream.append(steady)
    if worst > TOLERANCE:
        raise RuntimeError(f"the mesh's logits differ from the whole model's by {worst:g}")
    say(f"{len(stream)} rounds")
    for contender, values in rates.items():
        result.series.append(Series(f"{name} fp32", contender, "tok/s", values))
    group = "share of time that the less busy stage computes"
    result.series.append(Series(group, "steady stream of requests", "", stream))
    result.series.append(Series(group, "one request alone", "", one_request))
    result.ratio("pipeline_vs_single", paired_ratio(rates[ONE_REQUEST], rates[SINGLE]), Bound(1.0))
    result.ratio("pipeline_vs_single_8_requests", paired_ratio(rates[EIGHT], rates[SINGLE]))
    result.ratio("stage_busy", _share(stream), Bound(0.9))
    result.ratio("stage_busy_one_request", _share(one_request))
    result.notes += [
        "stage_busy is of a steady stream at the head, where the next request is there before the pipeline is empty; "
        "stage_busy_one_request of one request alone, which eight samples over two stages bound by 8/9",
        "the last stage also computes the logits, so the first one waits for it at times even in a steady stream",
        f"logits of both sides differ by {worst:.1g} at most",
    ]
    return result


def _share(values: list[float]) -> Ratio:
    low, middle, high = quartiles(values)
    return Ratio(middle, low, high, len(values))


async def _alone(head: Head, parts: list[stage_pb2.ForwardRequest]) -> float:
    """How busy the less busy stage is from when one request is sent until it is answered."""
    answers = await asyncio.gather(*(head.forward(part) for part in parts))
    begin, end = min(one.sent for one in answers), max(one.answered for one in answers)
    return busy(answers, begin, end)


async def _steady(head: Head, parts: list[stage_pb2.ForwardRequest]) -> float:
    """The same while requests follow one another without a gap; the beginning and the end are left out."""
    room = asyncio.Semaphore(IN_STREAM)

    async def one(part: stage_pb2.ForwardRequest) -> HeadForward:
        async with room:
            return await head.forward(part)

    answers = await asyncio.gather(*(one(part) for part in parts * REQUESTS))
    ended = sorted(one.answered for one in answers)
    return busy(answers, ended[MARGIN - 1], ended[-MARGIN - 1])
