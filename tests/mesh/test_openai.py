"""The unmodified `openai` client against a mesh."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from stagemesh.local.mesh import LocalMesh

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def remote(mesh: LocalMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"http://{mesh.http_address}/v1", api_key="none", max_retries=0)
    yield client
    await client.close()


async def test_a_streamed_chat(remote: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    whole = await remote.chat.completions.create(
        model="llama", messages=messages, max_tokens=12, temperature=0
    )
    stream = await remote.chat.completions.create(
        model="llama",
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text == whole.choices[0].message.content != ""
    assert reasons[-1] in ("length", "stop")
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens > 0


async def test_a_streamed_completion_and_the_cache(remote: openai.AsyncOpenAI) -> None:
    def create(**more: object) -> object:
        return remote.completions.with_raw_response.create(
            model="llama", prompt="def f(x):", max_tokens=10, temperature=0, **more
        )

    first = await create()
    second = await create()
    assert first.headers["x-stagemesh-cache"] == "miss"
    assert second.headers["x-stagemesh-cache"] == "hit"
    assert first.parse().choices[0].text == second.parse().choices[0].text != ""
    stream = await remote.completions.create(
        model="llama", prompt="def f(x):", max_tokens=10, temperature=0, stream=True
    )
    assert "".join([c.choices[0].text async for c in stream if c.choices]) == first.parse().choices[0].text


async def test_models_are_listed(remote: openai.AsyncOpenAI) -> None:
    assert {"llama", "llama-4", "minilm-3"} <= {model.id async for model in remote.models.list()}
