"""The application behind a real uvicorn on a real socket: clients that leave, bodies without end, the openai client."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from stagemesh.services.router.http.app import create_app

from stagemesh.errors import Unavailable

from .conftest import ScriptedCore

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def address(core: ScriptedCore) -> AsyncIterator[tuple[str, int]]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(core), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()
    server.should_exit = True
    await task
    listener.close()


@pytest.fixture
async def client(address: tuple[str, int]) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://{address[0]}:{address[1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as found:
        yield found


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_openai_client(client: openai.AsyncOpenAI, core: ScriptedCore) -> None:
    assert [model.id async for model in client.models.list()] == ["demo"]
    assert (await client.models.retrieve("demo")).owned_by == "stagemesh"
    whole = await client.completions.create(model="demo", prompt="x", max_tokens=3, temperature=0)
    assert whole.choices[0].text == "Hello wörld 😀"
    stream = await client.completions.create(model="demo", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello wörld 😀"
    chat = await client.chat.completions.create(model="demo", messages=MESSAGES, seed=3, stop=["z"])
    assert chat.choices[0].message.content == "Hello wörld 😀"
    again = [*MESSAGES, chat.choices[0].message.model_dump(), *MESSAGES]
    await client.chat.completions.create(model="demo", messages=again)
    pieces = []
    streamed = await client.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    async for chunk in streamed:
        pieces.append(chunk)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "Hello wörld 😀"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.total_tokens == 6
    vectors = await client.embeddings.create(model="demo", input=["a", "b"])
    np.testing.assert_allclose(vectors.data[1].embedding, np.arange(4, 8, dtype=np.float32) / 3)


async def test_the_openai_client_sees_typed_errors(client: openai.AsyncOpenAI, core: ScriptedCore) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="none", prompt="x")
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="demo", prompt="x", n=300)
    assert bad.value.param == "n"
    core.fail(Unavailable("replica went away"), after=2)
    stream = await client.completions.create(model="demo", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="went away"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_client_that_leaves_ends_its_generation(
    address: tuple[str, int], core: ScriptedCore, stream: bool, after: int
) -> None:
    core.hang_after = after
    reader, writer = await asyncio.open_connection(*address)
    body = json.dumps({"model": "demo", "prompt": ["x", "y"], "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await eventually(lambda: core.running == 2)
    if stream and after:
        assert b"Hello" in await reader.readuntil(b"Hello")
    writer.close()
    await eventually(lambda: core.running == 0)
    assert core.cancelled == 2


async def test_a_gigabyte_that_is_announced_is_refused_at_once(
    address: tuple[str, int], core: ScriptedCore
) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n{")
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"}}")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"param":"body","code":"body_too_large"' in answer
    writer.close()
    await eventually(lambda: core.recorded == [("/v1/completions", 413)])


@pytest.mark.parametrize(
    "headers", [{}, {"expect": "100-continue"}, {"content-length": str(128 * 2**20)}], ids=str
)
async def test_a_client_that_sends_everything_first_reads_the_refusal(
    address: tuple[str, int], core: ScriptedCore, headers: dict[str, str]
) -> None:
    piece = b"x" * 2**20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield piece

    async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=60) as http:
        response = await http.post("/v1/completions", content=pieces(), headers=headers)
        assert response.status_code == 413, response.text
        assert response.json()["error"]["param"] == "body"
        good = await http.post("/v1/completions", json={"model": "demo", "prompt": "x"})
    assert good.status_code == 200


async def test_several_answers_come_interleaved_and_the_prompt_counts_once(
    client: openai.AsyncOpenAI,
) -> None:
    texts: dict[int, str] = {}
    ends: dict[int, str | None] = {}
    order: list[int] = []
    usage = None
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "x"}],
        n=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            order.append(choice.index)
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "Hello wörld 😀", 1: "HELLO WÖRLD 😀", 2: "Hello wörld 😀"}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}
    assert order != sorted(order), "they are to come as they are made"
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 9)
    whole = await client.completions.create(model="demo", prompt=["x", "y"], n=2)
    assert [(each.index, each.text[:5]) for each in whole.choices] == [
        (0, "Hello"),
        (1, "HELLO"),
        (2, "Hello"),
        (3, "HELLO"),
    ]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 12)
