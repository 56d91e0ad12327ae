"""The same on a real mesh: three replicas of a small model, prompts made from the trace's blocks, real blocks of KV.

Whole conversations of the trace, in its order, one request after the other at a steady pace. A block of 512 tokens becomes
one of 16, made from its id, so that what was shared is shared; every policy gets the model deployed anew, with empty KV.
What a prompt was spared is what its head said; what one cache could have spared is counted beside it.
"""

import asyncio
import re
import time
import urllib.request
from collections import Counter

import numpy as np

from bench.checkpoints import SHAPES, checkpoint
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.prefix_trace import BLOCK_TOKENS, Recorded
from bench.result import Bound, Result, Series
from stagemesh import AsyncClient
from stagemesh.local import LocalMesh, deployment
from stagemesh.prefix import BLOCK

KEYS = ("mesh_saved_vs_p2c", "mesh_first_token_p50_vs_p2c", "mesh_first_token_p99_vs_p2c")
POLICIES = ("prefix_affinity", "p2c_ewma")
MODEL, QUICK_MODEL = "tiny", "micro"
REPLICAS = 3
REQUESTS, QUICK_REQUESTS = 90, 24
WARM_UP = 12
"""Requests that are played before anything counts: the first passes of a process take longer than all others."""
ROUNDS = 3
TURNS = 3
"""Requests that a conversation has at least to be played."""
SCALE = BLOCK_TOKENS // BLOCK
LONGEST = 40_000
"""Tokens of the trace; longer prompts are left out, with all of their conversation."""
EVERY_S, QUICK_EVERY_S = 0.2, 0.05
SESSIONS = 5
"""That a replica has KV for at full length: 20,480 tokens, or 655,360 of the trace."""
DONE_S = 120.0


def conversations(trace: list[Recorded], most: int) -> list[Recorded]:
    """Requests of conversations of at least `TURNS`, in the trace's order, at most `most`.

    The first block is the same in most prompts; those of one conversation share the second one.
    """
    with_second = [each for each in trace if len(each.full) > 1]
    turns = Counter(each.ids[1] for each in with_second)
    too_long = {each.ids[1] for each in with_second if each.prompt > LONGEST}
    return [each for each in with_second if turns[each.ids[1]] >= TURNS and each.ids[1] not in too_long][
        :most
    ]


def prompt_of(asked: Recorded, vocab: int) -> list[int]:
    """Its prompt, a 32nd as long: the same blocks at the same places for equal ids, and what is left of its last one."""
    tokens: list[int] = []
    for number in asked.full:
        tokens += [int(token) for token in np.random.default_rng(number).integers(2, vocab, BLOCK)]
    rest = max(1, asked.prompt % BLOCK_TOKENS // SCALE)
    last = asked.ids[-1] if len(asked.ids) > len(asked.full) else 0
    return [*tokens, *(int(token) for token in np.random.default_rng([1, last]).integers(2, vocab, rest))]


def best(trace: list[Recorded]) -> int:
    """Tokens that one cache without limit would have spared these prompts, as they are played."""
    known: set[int] = set()
    spared = 0
    for asked in trace:
        count = next((at for at, number in enumerate(asked.full) if number not in known), len(asked.full))
        spared += count * BLOCK
        known.update(asked.full)
    return spared


async def measure(result: Result, trace: list[Recorded], options: Options) -> None:
    """Play the conversations under each policy, as often as is asked for."""
    name = QUICK_MODEL if options.quick else MODEL
    every_s = QUICK_EVERY_S if options.quick else EVERY_S
    played = conversations(trace, QUICK_REQUESTS if options.quick else REQUESTS)
    if len(played) < 2:
        for key in KEYS:
            result.not_measured[key] = f"the trace has no conversations of {TURNS} turns"
        return
    prompts = [prompt_of(asked, SHAPES[name].vocab) for asked in played]
    total = sum(map(len, prompts))
    spared: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    middle: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    late: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    say(f"starting a mesh of {REPLICAS} stage processes")
    async with LocalMesh(
        stages=1,
        replicas=REPLICAS,
        http_port=0,
        grpc_port=0,
        threads=1,
        memory=3 * 2**30,
        flags={"stage": {"max-sessions": SESSIONS}},
    ) as mesh:
        await _play(mesh, name, POLICIES[1], played[:WARM_UP], prompts[:WARM_UP], every_s)
        for _, policy in interleaved(POLICIES, options.times(ROUNDS)):
            firsts, tokens = await _play(mesh, name, policy, played, prompts, every_s)
            spared[policy].append(tokens / total)
            middle[policy].append(float(np.quantile(firsts, 0.5)))
            late[policy].append(float(np.quantile(firsts, 0.99)))
            say(
                f"mesh, {policy}: {tokens / total:.1%} saved, first token p50 {middle[policy][-1]:.3f} s "
                f"p99 {late[policy][-1]:.3f} s"
            )
    group = f"a mesh, {name}, {REPLICAS} replicas"
    result.series.append(
        Series(
            f"{group}: prompt tokens not computed", "one cache, no limit", "%", [100 * best(played) / total]
        )
    )
    for policy in POLICIES:
        values = [100 * each for each in spared[policy]]
        result.series.append(Series(f"{group}: prompt tokens not computed", policy, "%", values))
    for word, found in (("p50", middle), ("p99", late)):
        for policy in POLICIES:
            result.series.append(Series(f"{group}: first token, {word}", policy, "s", found[policy]))
    ours, usual = POLICIES
    if min(spared[usual]) > 0:
        bound = None if options.quick else Bound(1.5)
        result.ratio(KEYS[0], paired_ratio(spared[ours], spared[usual]), bound)
    else:
        result.not_measured[KEYS[0]] = f"{usual} spared nothing at all"
    for key, found in ((KEYS[1], middle), (KEYS[2], late)):
        bound = None if options.quick else Bound(1.0, at_most=True)
        result.ratio(key, paired_ratio(found[ours], found[usual]), bound)
    result.notes.append(
        f"mesh: {len(played)} requests of conversations of {TURNS} turns or more, one every {every_s:g} s, a 32nd as long as "
        f"recorded ({total:,} prompt tokens), {SESSIONS * 4096:,} tokens of KV each"
    )


async def _play(
    mesh: LocalMesh, name: str, policy: str, played: list[Recorded], prompts: list[list[int]], every_s: float
) -> tuple[list[float], float]:
    """Seconds to each first token, and the prompt tokens that were spared in all."""
    model = f"{name}-{policy}".replace("_", "-")
    before = await asyncio.to_thread(_spared, mesh.http_address, model)
    await mesh.deploy(
        checkpoint(name), model, stages=1, replicas=REPLICAS, dtype="F32", cache=False, policy=policy
    )
    try:
        async with mesh.client(timeout_s=DONE_S) as client:
            start = time.monotonic() + every_s

            async def one(index: int) -> float:
                await asyncio.sleep(max(0.0, start + index * every_s - time.monotonic()))
                answer = max(1, played[index].answer // SCALE)
                return await _first_token(client, model, prompts[index], answer)

            firsts = await asyncio.gather(*(one(index) for index in range(len(prompts))))
        return list(firsts), await asyncio.to_thread(_spared, mesh.http_address, model) - before
    finally:
        await deployment.undeploy(mesh.registry_address, model)


async def _first_token(client: AsyncClient, model: str, prompt: list[int], answer: int) -> float:
    generation = await client.generate(
        model, token_ids=prompt, max_tokens=answer, temperature=0.0, ignore_eos=True, cache=False
    )
    return generation.first_token_s


def _spared(address: str, model: str) -> float:
    """Since the router started."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text = page.read().decode()
    pattern = rf'^stagemesh_router_prefix_hit_tokens_total{{model="{model}"}} (\S+)'
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))
