"""A core with scripted answers: the HTTP side alone is under test."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from stagemesh.services.router.context import RequestContext
from stagemesh.services.router.http.app import create_app
from stagemesh.services.router.text.tokenizers import ModelText, load

from stagemesh.errors import NotFound, StagemeshError, Unauthenticated
from stagemesh.v1.inference_pb2 import (
    CacheStatus,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    ModelInfo,
    Usage,
)
from stagemesh.v1.registry_pb2 import ModelSpec
from stagemesh.v1.stage_pb2 import RouteHop, Token, TokenAlternative
from stagemesh.v1.tensor_pb2 import Tensor

DEMO = Path(__file__).parents[2] / "examples/demo_model/model"
ROUTE = [RouteHop(stage=0, replica_id="demo-0-a"), RouteHop(stage=1, replica_id="demo-1-b")]


class ScriptedCore:
    """Answers every prompt with `words`; remembers what it was asked."""

    def __init__(self) -> None:
        self.draining = False
        self.ready = True
        self.deployed = True
        self.words = ["Hello", " wörld", " 😀"]
        self.requests: list[GenerateRequest] = []
        self.embeds: list[EmbedRequest] = []
        self.contexts: list[RequestContext] = []
        self.recorded: list[tuple[str, int]] = []
        self.error: BaseException | None = None
        self.error_after = 0
        self.hang_after: int | None = None
        self.running = 0
        self.cancelled = 0
        self.api_key = ""
        self.cache = CacheStatus.CACHE_STATUS_MISS
        self._text: ModelText | None = None

    def context(self, headers: Mapping[str, str]) -> RequestContext:
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            raise Unauthenticated("unknown API key", field="authorization")
        context = RequestContext(
            request_id=headers.get("x-request-id") or "made-up",
            tenant="default",
            deadline=time.monotonic() + 60,
        )
        self.contexts.append(context)
        return context

    async def generate(
        self, request: GenerateRequest, context: RequestContext
    ) -> AsyncIterator[GenerateResponse]:
        self.requests.append(request)
        self._check(request.model)
        self.running += 1
        try:
            if self.error is not None and self.error_after == 0:
                raise self.error
            count = request.n or 1
            for answer in range(count):
                yield GenerateResponse(
                    index=answer, request_id=context.request_id, cache=self.cache, route=ROUTE
                )
            for index, word in enumerate(self.words):
                if self.error is not None and index + 1 == self.error_after:
                    raise self.error
                if self.hang_after == index:
                    await asyncio.sleep(3600)
                token = Token(id=10 + index, position=3 + index)
                if request.HasField("logprobs"):
                    token.logprob = -0.5 * (index + 1)
                    token.alternatives.append(TokenAlternative(id=20, logprob=-2.0))
                for answer in range(count):
                    yield GenerateResponse(
                        index=answer, text=word.upper() if answer % 2 else word, tokens=[token]
                    )
                await asyncio.sleep(0)
            usage = Usage(prompt_tokens=3, completion_tokens=len(self.words))
            for answer in range(count):
                yield GenerateResponse(index=answer, finish_reason="stop", usage=usage)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def embed(self, request: EmbedRequest, context: RequestContext) -> EmbedResponse:
        self.embeds.append(request)
        self._check(request.model)
        if self.error is not None:
            raise self.error
        count = len(request.texts) + len(request.tokens)
        rows = np.arange(count * 4, dtype="<f4").reshape(count, 4) / 3
        return EmbedResponse(
            embeddings=Tensor(dtype="F32", shape=[count, 4], data=rows.tobytes()),
            usage=Usage(prompt_tokens=5 * count),
            cache=CacheStatus.CACHE_STATUS_HIT,
        )

    def models(self) -> list[ModelInfo]:
        spec = ModelSpec(name="demo", task="generate", context_length=1024, created_unix_ms=1_700_000_000_123)
        return [ModelInfo(spec=spec, ready=self.ready)] if self.deployed else []

    async def text(self, model: str, context: RequestContext) -> ModelText:
        self._check(model)
        if self._text is None:
            self._text = await asyncio.to_thread(
                load, ModelSpec(name="demo", source=str(DEMO), context_length=1024)
            )
        return self._text

    def record_http(self, path: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.recorded.append((path, status))

    def fail(self, error: StagemeshError | Exception, *, after: int = 0) -> None:
        self.error, self.error_after = error, after

    def _check(self, model: str) -> None:
        if model != "demo":
            raise NotFound(f"model: no model named {model!r} is deployed", field="model")


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore()


@pytest.fixture
async def http(core: ScriptedCore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(core))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        yield client
