"""The client for asyncio. `sync.Client` has the same methods."""

import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc.aio
import numpy.typing as npt

from stagemesh.client.requests import (
    ChatMessage,
    GenerateOptions,
    embed_request,
    generate_request,
    infer_request,
)
from stagemesh.client.results import (
    Chunk,
    Embedding,
    Generation,
    GenerationBuilder,
    Inference,
    RouteHop,
    embedding_of,
    inference_of,
)
from stagemesh.client.wire import call_metadata, translate
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import inference_pb2, inference_pb2_grpc

T = TypeVar("T")


class AsyncGenerationStream:
    """Chunks of one generation, as they come: `async for chunk in stream`.

    `route`, `cache` and `request_id` are known from the first chunk on; `generation()` drains what is left and
    returns the whole. Leaving the loop early: `await stream.aclose()` (or `async with`) cancels the generation
    on every stage. Raises what `stagemesh.errors` names.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._responses = aiter(call)
        self._builder = GenerationBuilder(started=time.monotonic())
        self._ended: float | None = None

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """One replica per stage; empty before the first chunk and when the cache answered."""
        return self._builder.route

    @property
    def cache(self) -> str:
        """`hit`, `miss`, `bypass` or `error`; empty before the first chunk."""
        return self._builder.cache

    @property
    def request_id(self) -> str:
        """The id under which the router logged and traced the request."""
        return self._builder.request_id

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        try:
            response = await anext(self._responses)
        except StopAsyncIteration:
            self._ended = self._ended or time.monotonic()
            raise
        except grpc.aio.AioRpcError as error:
            raise translate(error, self._address) from None
        return self._builder.add(response, time.monotonic())

    async def generation(self) -> Generation:
        """Read to the end and return the whole generation."""
        async for _ in self:
            pass
        return self._builder.build(self._ended or time.monotonic())

    async def aclose(self) -> None:
        """Cancel the generation if it still runs."""
        self._call.cancel()

    async def __aenter__(self) -> "AsyncGenerationStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncClient:
    """A client of one router's gRPC port. Use it as `async with AsyncClient() as client`, or call `aclose()`.

    `timeout_s` is the deadline of each call and travels with it through every stage; each method takes its own.
    """

    def __init__(
        self, address: str = "127.0.0.1:8001", *, api_key: str | None = None, timeout_s: float = 120.0
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._api_key = api_key
        self._channel = create_channel(address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    @property
    def address(self) -> str:
        """host:port of the router."""
        return self._address

    def __repr__(self) -> str:
        return f"AsyncClient({self._address!r})"

    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generate from a prompt, chat messages or token ids, and return when it is finished."""
        stream = self.stream(
            model,
            prompt,
            messages=messages,
            token_ids=token_ids,
            request_id=request_id,
            timeout_s=timeout_s,
            **options,
        )
        async with stream:
            return await stream.generation()

    def stream(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """Start a generation and return its chunks as an async iterator."""
        request = generate_request(model, prompt, messages, token_ids, options)
        return AsyncGenerationStream(
            self._stub.Generate(request, **self._call(timeout_s, request_id)), self._address
        )

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        cache: bool = True,
        timeout_s: float | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run named arrays of shape [batch, ...] through the model; without `outputs`, its default ones."""
        answer = await self.infer_detailed(model, inputs, outputs, cache=cache, timeout_s=timeout_s)
        return dict(answer.outputs)

    async def infer_detailed(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        cache: bool = True,
        timeout_s: float | None = None,
    ) -> Inference:
        """Like `infer`, with the route and the cache's part."""
        request = infer_request(model, inputs, outputs, cache)
        return inference_of(await self._answer(self._stub.Infer(request, **self._call(timeout_s))))

    async def embed(
        self, model: str, texts: str | Sequence[str], *, timeout_s: float | None = None
    ) -> npt.NDArray[Any]:
        """Embed texts; returns float32 of shape [texts, dimension]."""
        return (await self.embed_detailed(model, texts, timeout_s=timeout_s)).vectors

    async def embed_detailed(
        self, model: str, texts: str | Sequence[str], *, timeout_s: float | None = None
    ) -> Embedding:
        """Like `embed`, with usage, route and the cache's part."""
        request = embed_request(model, texts)
        return embedding_of(await self._answer(self._stub.Embed(request, **self._call(timeout_s))))

    async def models(self, *, timeout_s: float | None = None) -> list[inference_pb2.ModelInfo]:
        """Every deployed model, and whether each of its stages has a ready replica."""
        request = inference_pb2.ListModelsRequest()
        response = await self._answer(self._stub.ListModels(request, **self._call(timeout_s)))
        return list(response.models)

    async def status(self, *, timeout_s: float | None = None) -> inference_pb2.MeshStatus:
        """The mesh in the router's view: replicas with their load, models, nodes, services."""
        request = inference_pb2.GetMeshStatusRequest()
        return await self._answer(self._stub.GetMeshStatus(request, **self._call(timeout_s)))

    async def aclose(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _call(self, timeout_s: float | None, request_id: str | None = None) -> dict[str, Any]:
        return {
            "timeout": self._timeout_s if timeout_s is None else timeout_s,
            "metadata": call_metadata(self._api_key, request_id),
        }

    async def _answer(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise translate(error, self._address) from None
