"""Do two stages of one thread each keep up with one process of two threads on stateless batches?

One request of 8 x 128 tokens after the other on `small` fp32, logits included on both sides. `stage_busy` is the share
of time that the less busy stage computes, taken from the stages' own timings of the same batch at the head.
"""

import asyncio
import contextlib
import time

import numpy as np

from bench.checkpoints import checkpoint
from bench.head import find_head
from bench.meshes import deployed, mesh, prompts
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio, quartiles
from bench.reference import Reference
from bench.result import Bound, Result, Series
from stagemesh.tensor import from_numpy
from stagemesh.v1 import stage_pb2

SAMPLES, LENGTH = 8, 128
ROUNDS = 9
SINGLE, ONE_REQUEST, EIGHT = "whole, 2 threads", "2 stages, one request", "2 stages, 8 requests at once"


async def run(options: Options) -> Result:
    """Measure the whole model, one request and eight requests at once, interleaved."""
    result = Result("pipeline", f"stateless forward of {SAMPLES} x {LENGTH} tokens, 2 stages x 1 thread")
    name = "tiny" if options.quick else "small"
    rows = prompts(name, SAMPLES, LENGTH)
    ids = np.array(rows, dtype=np.int64)
    rates: dict[str, list[float]] = {SINGLE: [], ONE_REQUEST: [], EIGHT: []}
    busy: list[float] = []
    reference = await asyncio.to_thread(Reference, await asyncio.to_thread(checkpoint, name), "fp32")
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(mesh(2))
        client = await stack.enter_async_context(running.client())
        model = await stack.enter_async_context(deployed(running, name, "fp32", 2))
        head = await stack.enter_async_context(await find_head(client, model))
        at_head = stage_pb2.ForwardRequest(
            lengths=[LENGTH] * SAMPLES,
            inputs=[from_numpy("input_ids", ids.reshape(-1))],
            outputs=["logits"],
        )
        # One round more than is counted: the first warms up.
        for number, contender in interleaved(list(rates), options.times(ROUNDS) + 1):
            started = time.perf_counter()
            if contender == SINGLE:
                taken = await asyncio.to_thread(reference.forward, rows)
            else:
                parts = [ids] if contender == ONE_REQUEST else list(ids[:, None])
                await asyncio.gather(
                    *(client.infer(model, {"input_ids": part}, cache=False) for part in parts)
                )
                taken = time.perf_counter() - started
            if number:
                rates[contender].append(SAMPLES * LENGTH / taken)
            if contender == ONE_REQUEST:
                forward = await head.forward(at_head)
                if number:
                    busy.append(min(forward.compute_s) / forward.taken_s)
    say(f"{len(busy)} rounds")
    for contender, values in rates.items():
        result.series.append(Series(f"{name} fp32", contender, "tok/s", values))
    result.series.append(Series("share of time that a stage computes", "less busy stage", "", busy))
    result.ratio("pipeline_vs_single", paired_ratio(rates[ONE_REQUEST], rates[SINGLE]), Bound(1.0))
    result.ratio("pipeline_vs_single_8_requests", paired_ratio(rates[EIGHT], rates[SINGLE]))
    low, middle, high = quartiles(busy)
    result.ratio("stage_busy", Ratio(middle, low, high, len(busy)), Bound(0.9))
    result.notes.append("stage_busy is of one request at a time at the head, without the router")
    return result
