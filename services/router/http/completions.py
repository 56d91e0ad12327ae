"""`POST /v1/completions`."""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stagemesh.v1.inference_pb2 import GenerateResponse, Usage

from ..context import RequestContext
from ..pump import Pump
from .body import read_json
from .collect import collect, usage_body
from .core import Core
from .disconnect import until_disconnect
from .endpoint import Handler, context_of
from .headers import answer_headers
from .logprobs import CompletionLogprobs
from .schema import CompletionBody, parse
from .sse import SseResponse
from .to_generate import completion_requests


def completions(core: Core, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(CompletionBody, await read_json(request, max_body_bytes))
        asked = completion_requests(body, request.headers)
        n = body.n or 1
        shape = _Shape(body, context, len(asked) * n)
        if body.logprobs is not None:
            shape.with_logprobs((await core.text(body.model, context)).token_text)
        pump = Pump([core.generate(one, context_of(context, i, len(asked))) for i, one in enumerate(asked)])
        streaming = False
        try:
            if body.stream:
                first = await until_disconnect(request.receive, pump.peek())
                streaming = True
                return SseResponse(
                    shape.events(pump),
                    pump.close,
                    headers=answer_headers(context.request_id, first.cache, first.route, first.semantic),
                    seconds=context.deadline - time.monotonic(),
                )
            first, answers = await until_disconnect(request.receive, collect(pump, len(asked), n))
        finally:
            if not streaming:
                await pump.close()
        choices = [
            shape.choice(index, answer.text, list(answer.tokens), answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        document = shape.document(choices) | {"usage": usage_body([answer.usage for answer in answers], n)}
        return JSONResponse(
            document, headers=answer_headers(context.request_id, first.cache, first.route, first.semantic)
        )

    return handle


class _Shape:
    """OpenAI's text_completion documents of one request."""

    def __init__(self, body: CompletionBody, context: RequestContext, count: int) -> None:
        self._id = f"cmpl-{context.request_id}"
        self._created = int(time.time())
        self._model = body.model
        self._count = count
        self._n = body.n or 1
        self._usage_wanted = body.stream_options is not None and body.stream_options.include_usage
        self._logprobs: list[CompletionLogprobs] = []

    def with_logprobs(self, token_text: Any) -> None:
        self._logprobs = [CompletionLogprobs(token_text) for _ in range(self._count)]

    def document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def choice(self, index: int, text: str, tokens: list[Any], finish_reason: str) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].of(tokens) if self._logprobs else None,
            "finish_reason": finish_reason or None,
        }

    async def events(self, pump: Pump[GenerateResponse]) -> AsyncIterator[dict[str, Any]]:
        """Yield a document for each response that says something, then the usage if it was asked for."""
        usages: list[Usage] = []
        more = {"usage": None} if self._usage_wanted else {}
        async for prompt, response in pump:
            if response.HasField("usage"):
                usages.append(response.usage)
            if not (response.text or response.tokens or response.finish_reason):
                continue
            index = prompt * self._n + response.index
            choice = self.choice(index, response.text, list(response.tokens), response.finish_reason)
            if response.text or response.finish_reason or choice["logprobs"]:
                yield self.document([choice]) | more
        if self._usage_wanted:
            yield self.document([]) | {"usage": usage_body(usages, self._n)}
