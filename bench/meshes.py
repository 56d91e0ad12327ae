"""Whole meshes for benchmarks: real processes on loopback, one thread per stage unless told otherwise."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping

import numpy as np

from bench.checkpoints import SHAPES, checkpoint
from bench.options import say
from bench.streams import Stream
from stagemesh import AsyncClient
from stagemesh.local import LocalMesh, deployment

DTYPES = {"fp32": "F32", "bf16": "BF16"}
_NODE_BYTES = 3 * 2**30


@contextlib.asynccontextmanager
async def mesh(
    nodes: int, threads: int = 1, env: Mapping[str, str] | None = None
) -> AsyncIterator[LocalMesh]:
    """A mesh of `nodes` stage processes with that many compute threads each; `env` is added to all processes'."""
    say(f"starting a mesh of {nodes} stage process{'' if nodes == 1 else 'es'} x {threads} thread(s)")
    async with LocalMesh(
        stages=nodes,
        replicas=1,
        http_port=0,
        grpc_port=0,
        threads=threads,
        memory=_NODE_BYTES,
        env=env,
        progress=_tell_of_deaths,
    ) as running:
        yield running


def _tell_of_deaths(line: str) -> None:
    """Pass on why a process is started again: whatever was being measured then is void."""
    if "starting it again" in line:
        say(line)


@contextlib.asynccontextmanager
async def deployed(running: LocalMesh, name: str, dtype: str, stages: int) -> AsyncIterator[str]:
    """The checkpoint `name` deployed on the mesh without a cache, by its model name; undeployed afterwards."""
    model = f"{name}-{dtype}-{stages}"
    await running.deploy(checkpoint(name), model, stages=stages, dtype=DTYPES[dtype], cache=False)
    try:
        yield model
    finally:
        await deployment.undeploy(running.registry_address, model)


def prompts(name: str, count: int, length: int, seed: int = 7) -> list[list[int]]:
    """The same random token ids for every contender, ids 0 and 1 (begin, end) left out.

    A round whose prompts count takes a seed of its own: the KV of prompts that came before would be used again.
    """
    ids = np.random.default_rng(seed).integers(2, SHAPES[name].vocab, (count, length))
    return [[int(token) for token in row] for row in ids]


async def stream(client: AsyncClient, model: str, prompt: list[int], new_tokens: int) -> Stream:
    """Generate greedily and note when each token comes."""
    found = Stream()
    async with client.stream(
        model, token_ids=prompt, max_tokens=new_tokens, temperature=0.0, ignore_eos=True, cache=False
    ) as chunks:
        async for chunk in chunks:
            found.add(chunk.token_ids, time.perf_counter())
    return found
