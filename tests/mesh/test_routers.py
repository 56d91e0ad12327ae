"""Two routers that share nothing but etcd: one is killed, frozen, restarted, and no client of the library notices."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from stagemesh.services.stage.sampler import choose
from transformers import LlamaForCausalLM

from stagemesh import AsyncClient
from stagemesh.client import AsyncGenerationStream, Generation
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1.stage_pb2 import Sampling

from .traffic import PROMPTS, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

STREAMS = 12
TOKENS = 120
NOISE = 1e-4
NAMES = ("router", "router-1")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(llama: Path) -> AsyncIterator[LocalMesh]:
    """One stage, since it is the routers that go; one that is to go hands its streams over at once."""
    async with LocalMesh(
        stages=1,
        replicas=1,
        routers=2,
        http_port=0,
        grpc_port=0,
        threads=1,
        memory=2 * 2**30,
        flags={"router": {"drain-s": 0}},
    ) as mesh:
        await mesh.deploy(llama, "llama", cache=False)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client(timeout_s=60) as client:
        yield client


def begin(client: AsyncClient, number: int, **settings: float) -> AsyncGenerationStream:
    """Half of the streams are greedy, half sampled with a seed that nobody named."""
    chosen = {"temperature": 0.0 if number % 2 else 1.0, "logprobs": 1, **settings}
    return client.stream(
        "llama", token_ids=PROMPTS[number % len(PROMPTS)], max_tokens=TOKENS, ignore_eos=True, **chosen
    )


def seed_of(stream: AsyncGenerationStream) -> int:
    """The seed that the router drew, out of the stream's resume token."""
    return int.from_bytes(stream._received.request().resume.token[1:9], "little")


@torch.inference_mode()
def on_the_edge(folder: Path, number: int, tokens: tuple[int, ...], at: int, seed: int) -> bool:
    """Whether token `at` changes with the last bits of its logits: a replay adds up in another order than steps do."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = PROMPTS[number % len(PROMPTS)]
    logits = model(torch.tensor([[*prompt, *tokens[:at]]])).logits[0, -1]
    sampling = Sampling(temperature=float(number % 2 == 0), seed=seed)
    noise = torch.Generator().manual_seed(0)
    drawn = (torch.randn(logits.shape, generator=noise) * NOISE for _ in range(200))
    return len({choose(logits + each, sampling, len(prompt) + at).id for each in drawn}) > 1


async def check(
    folder: Path, client: AsyncClient, streams: list[AsyncGenerationStream], got: list[Generation]
) -> None:
    """Each answer is the one that the mesh gives when nothing happens to it."""
    same = 0
    calm = [begin(client, number, seed=seed_of(stream)) for number, stream in enumerate(streams)]
    wanted = await asyncio.gather(*(stream.generation() for stream in calm))
    for number, (generation, calm_one) in enumerate(zip(got, wanted, strict=True)):
        assert len(generation.token_ids) == TOKENS
        pairs = zip(generation.token_ids, calm_one.token_ids, strict=True)
        other = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
        if other is not None:
            seed = seed_of(streams[number])
            assert on_the_edge(folder, number, generation.token_ids, other, seed), (number, other)
            continue
        same += 1
        assert generation.text == calm_one.text
        assert generation.usage == calm_one.usage
        assert generation.finish_reason == "length"
        assert generation.logprobs == pytest.approx(calm_one.logprobs, abs=1e-4)
    assert same >= STREAMS - 2
    assert len({generation.token_ids for generation in got}) > STREAMS // 2


async def through(
    mesh: LocalMesh, client: AsyncClient, fault: Callable[[str], Awaitable[None]]
) -> tuple[list[AsyncGenerationStream], list[Generation]]:
    """Streams, and a fault of the router that they come from once each has a few tokens."""
    streams = [begin(client, number) for number in range(STREAMS)]
    begun = asyncio.Event()
    running = 0

    async def read(stream: AsyncGenerationStream) -> Generation:
        nonlocal running
        for _ in range(5):
            await anext(stream)
        running += 1
        if running == STREAMS:
            begun.set()
        return await stream.generation()

    reading = [asyncio.create_task(read(stream)) for stream in streams]
    async with asyncio.timeout(60):
        await begun.wait()
        await fault(NAMES[mesh.grpc_addresses.index(client.address)])
        return streams, await asyncio.gather(*reading)


async def back(mesh: LocalMesh, name: str, without: int) -> None:
    """Wait until another process fills the router's place and answers."""
    address = mesh.grpc_addresses[NAMES.index(name)]

    async def answers() -> bool:
        if mesh.service_process(name).pid == without:
            return False
        async with AsyncClient(address, timeout_s=5, attempts=1) as client:
            try:
                return [model.ready for model in await client.models()] == [True]
            except Exception:
                return False

    await until(answers, within_s=60)


async def test_a_killed_router_fails_nobody(llama: Path, mesh: LocalMesh, client: AsyncClient) -> None:
    killed = []

    async def kill(name: str) -> None:
        killed.append((name, mesh.service_process(name).pid))
        mesh.service_process(name).send_signal(signal.SIGKILL)

    streams, got = await through(mesh, client, kill)
    stats = client.stats
    print(stats)
    assert (stats.resumed, stats.gave_up) == (STREAMS, 0)
    assert stats.moves >= STREAMS
    await check(llama, client, streams, got)
    await back(mesh, *killed[0])


async def test_a_rolling_restart_of_the_routers_fails_nobody(mesh: LocalMesh, client: AsyncClient) -> None:
    workers = range(4)
    calm = [await begin(client, 2 * number + 1).generation() for number in workers]
    over = asyncio.Event()
    done: list[tuple[int, Generation]] = []

    async def work(number: int) -> None:
        while not over.is_set():
            done.append((number, await begin(client, 2 * number + 1).generation()))

    working = [asyncio.create_task(work(number)) for number in workers]
    await until(lambda: len(done) > len(workers), within_s=60)
    for _ in NAMES:  # each in turn: the one that the streams come from, which then come from the other
        name = NAMES[mesh.grpc_addresses.index(client.address)]
        pid = mesh.service_process(name).pid
        mesh.service_process(name).send_signal(signal.SIGTERM)
        await back(mesh, name, pid)
    over.set()
    await asyncio.gather(*working)
    print(client.stats, len(done))
    assert client.stats.gave_up == 0
    assert client.stats.resumed >= len(NAMES)
    assert all(generation.token_ids == calm[number].token_ids for number, generation in done)
    assert all(generation.text == calm[number].text for number, generation in done)


async def test_a_frozen_router_fails_nobody(llama: Path, mesh: LocalMesh, client: AsyncClient) -> None:
    frozen = []

    async def freeze(name: str) -> None:
        frozen.append(mesh.service_process(name))
        frozen[0].send_signal(signal.SIGSTOP)

    try:
        streams, got = await through(mesh, client, freeze)
    finally:
        for process in frozen:
            process.send_signal(signal.SIGCONT)
    print(client.stats)
    assert (client.stats.resumed, client.stats.gave_up) == (STREAMS, 0)
    await check(llama, client, streams, got)
