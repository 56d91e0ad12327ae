"""How long do eight running streams stall while a 2,000-token prompt arrives?

`stall_vs_step`: the 99th percentile of the streams' inter-token times from when the prompt is sent until its first
token is there, over their median before. `small` fp32, two stages of one thread, through the router.
"""

import asyncio
import time

from bench.meshes import deployed, mesh, prompts, stream
from bench.options import Options, say
from bench.paired import paired_ratio
from bench.result import Bound, Result, Series
from bench.streams import Stream, stall
from stagemesh import AsyncClient

STREAMS = 8
PROMPT, QUICK_PROMPT = 2000, 200
# Tokens each stream has before the prompt arrives, and at most after that.
BEFORE, AFTER = 30, 150
ROUNDS = 5
# The gap in which the prompt's first token came ends within this.
_TAIL_S = 0.3


async def run(options: Options) -> Result:
    """Several times: eight streams, then the prompt."""
    result = Result("prefill", "inter-token time of 8 streams while a long prompt arrives, milliseconds")
    name, length = ("tiny", QUICK_PROMPT) if options.quick else ("small", PROMPT)
    before: list[float] = []
    during: list[float] = []
    first: list[float] = []
    async with (
        mesh(2) as running,
        running.client() as client,
        deployed(running, name, "fp32", 2) as model,
    ):
        for number in range(options.times(ROUNDS) + 1):
            step, worst, first_token = await _stall(client, model, name, length, number)
            if number == 0:
                continue  # it warmed up
            before.append(step * 1e3)
            during.append(worst * 1e3)
            first.append(first_token * 1e3)
            say(f"median {step * 1e3:.1f} ms before, p99 {worst * 1e3:.1f} ms during")
    group = f"{name} fp32, {STREAMS} streams"
    result.series.append(Series(group, "median before", "ms", before))
    result.series.append(Series(group, "p99 during", "ms", during))
    result.series.append(Series(group, f"first token of {length}", "ms", first))
    result.ratio("stall_vs_step", paired_ratio(during, before), Bound(3.0, at_most=True))
    return result


async def _stall(
    client: AsyncClient, model: str, name: str, length: int, seed: int
) -> tuple[float, float, float]:
    """Median gap before, p99 gap during, and the prompt's time to its first token, in seconds."""
    ready, done = asyncio.Event(), asyncio.Event()
    seen = [Stream() for _ in range(STREAMS)]

    async def decode(own: Stream, prompt: list[int]) -> None:
        chunks = client.stream(
            model, token_ids=prompt, max_tokens=BEFORE + AFTER, temperature=0.0, ignore_eos=True, cache=False
        )
        async with chunks:
            async for chunk in chunks:
                own.add(chunk.token_ids, time.perf_counter())
                if min(len(one.tokens) for one in seen) >= BEFORE:
                    ready.set()
                if done.is_set():
                    return

    async with asyncio.TaskGroup() as group:
        for own, prompt in zip(seen, prompts(name, STREAMS, 16, seed), strict=True):
            group.create_task(decode(own, prompt))
        await ready.wait()
        sent = time.perf_counter()
        answer = await stream(client, model, prompts(name, 1, length, seed)[0], 1)
        await asyncio.sleep(_TAIL_S)
        done.set()
    answered = answer.times[0]
    return *stall(seen, sent, answered), answered - sent
