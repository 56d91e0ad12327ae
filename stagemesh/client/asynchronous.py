"""The client for asyncio. `sync.Client` has the same methods."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc.aio
import numpy.typing as npt
from google.protobuf.message import Message

from stagemesh.client.asynchronous_stream import AsyncGenerationStream
from stagemesh.client.failover import ATTEMPTS, ClientStats, Failover, Journey
from stagemesh.client.requests import (
    ChatMessage,
    GenerateOptions,
    embed_request,
    generate_request,
    infer_request,
)
from stagemesh.client.results import (
    Embedding,
    Generation,
    Inference,
    embedding_of,
    inference_of,
)
from stagemesh.client.targets import addresses_of
from stagemesh.client.wire import call_metadata, failure_of
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import inference_pb2, inference_pb2_grpc

T = TypeVar("T")


class AsyncClient:
    """A client of a mesh, by the gRPC port of its routers. Use it as `async with AsyncClient() as client`, or call `aclose()`.

    `address` is host:port, or several with commas between them or as a list. It keeps to one router, and goes to
    another one when that breaks, freezes, shuts down or is overloaded; streams go on where they stopped. A call is
    tried at most `attempts` times without anything new from a router; 1 turns that off. `stats` says what happened.
    `timeout_s` is the deadline of each call, over all attempts, and travels with it through every stage; each method
    takes its own.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:8001",
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._timeout_s = timeout_s
        self._api_key = api_key
        addresses = addresses_of(address)
        self._failover = Failover(addresses, attempts=attempts, rng=random.Random(), now=time.monotonic())
        self._channels = {each: create_channel(each) for each in addresses}
        self._stubs = {
            each: inference_pb2_grpc.InferenceServiceStub(channel) for each, channel in self._channels.items()
        }

    @property
    def address(self) -> str:
        """host:port of the router that is asked now."""
        return self._failover.stats().target

    @property
    def stats(self) -> ClientStats:
        """What became of its calls so far: retries, moves to other routers, resumed streams."""
        return self._failover.stats()

    def __repr__(self) -> str:
        return f"AsyncClient({','.join(self._channels)!r})"

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
        call = self._call(request_id)
        return AsyncGenerationStream(
            request,
            self._begin(timeout_s),
            lambda again, journey: self._stubs[journey.address].Generate(
                again, timeout=journey.left(time.monotonic()), metadata=call
            ),
        )

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        cache: bool = True,
        cache_control: str = "",
        timeout_s: float | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run named arrays of shape [batch, ...] through the model; without `outputs`, its default ones.

        `cache_control` is a text such as "no-store" or "ttl=60, namespace=docs", see `cache_control.cache_control_of`.
        """
        answer = await self.infer_detailed(
            model, inputs, outputs, cache=cache, cache_control=cache_control, timeout_s=timeout_s
        )
        return dict(answer.outputs)

    async def infer_detailed(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        cache: bool = True,
        cache_control: str = "",
        timeout_s: float | None = None,
    ) -> Inference:
        """Like `infer`, with the route and the cache's part."""
        request = infer_request(model, inputs, outputs, cache, cache_control)
        return inference_of(await self._answer(lambda stub: stub.Infer, request, timeout_s))

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        cache_control: str = "",
        timeout_s: float | None = None,
    ) -> npt.NDArray[Any]:
        """Embed texts; returns float32 of shape [texts, dimension]."""
        return (
            await self.embed_detailed(model, texts, cache_control=cache_control, timeout_s=timeout_s)
        ).vectors

    async def embed_detailed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        cache_control: str = "",
        timeout_s: float | None = None,
    ) -> Embedding:
        """Like `embed`, with usage, route and the cache's part."""
        request = embed_request(model, texts, cache_control)
        return embedding_of(await self._answer(lambda stub: stub.Embed, request, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[inference_pb2.ModelInfo]:
        """Every deployed model, and whether each of its stages has a ready replica."""
        request = inference_pb2.ListModelsRequest()
        response = await self._answer(lambda stub: stub.ListModels, request, timeout_s)
        return list(response.models)

    async def status(self, *, timeout_s: float | None = None) -> inference_pb2.MeshStatus:
        """The mesh in the router's view: replicas with their load, models, nodes, services."""
        request = inference_pb2.GetMeshStatusRequest()
        return await self._answer(lambda stub: stub.GetMeshStatus, request, timeout_s)

    async def aclose(self) -> None:
        """Close the connections; running calls are cancelled."""
        self._failover.closed = True
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _begin(self, timeout_s: float | None) -> Journey:
        now = time.monotonic()
        return self._failover.begin(now + (self._timeout_s if timeout_s is None else timeout_s), now)

    def _call(self, request_id: str | None = None) -> tuple[tuple[str, str], ...]:
        """The metadata of every attempt: they go by one request id."""
        return call_metadata(self._api_key, request_id)

    async def _answer(
        self,
        method: Callable[[inference_pb2_grpc.InferenceServiceStub], Callable[..., Awaitable[T]]],
        request: Message,
        timeout_s: float | None,
    ) -> T:
        """The answer to a unary call, from whichever router gives one."""
        journey, metadata = self._begin(timeout_s), self._call()
        while True:
            call = method(self._stubs[journey.address])
            try:
                answer = await call(request, timeout=journey.left(time.monotonic()), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error, journey.address)
            else:
                journey.heard()
                return answer
            await asyncio.sleep(journey.failed(failure, time.monotonic()))
