"""`POST /v1/chat/completions`."""

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
from .endpoint import Handler
from .headers import answer_headers
from .logprobs import TokenText, chat_logprobs
from .schema import ChatBody, parse
from .sse import SseResponse
from .to_generate import chat_request


def chat(core: Core, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(ChatBody, await read_json(request, max_body_bytes))
        asked = chat_request(body, request.headers)
        token_text = (await core.text(body.model, context)).token_text if body.logprobs else None
        shape = _Shape(body, context, token_text)
        pump = Pump([core.generate(asked, context)])
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
            first, answers = await until_disconnect(request.receive, collect(pump, 1, shape.n))
        finally:
            if not streaming:
                await pump.close()
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": shape.logprobs(answer.tokens),
                "finish_reason": answer.finish_reason or None,
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_body([answer.usage for answer in answers], shape.n)
        document = shape.document("chat.completion", choices) | {"usage": usage}
        return JSONResponse(
            document, headers=answer_headers(context.request_id, first.cache, first.route, first.semantic)
        )

    return handle


class _Shape:
    """OpenAI's chat documents of one request."""

    def __init__(self, body: ChatBody, context: RequestContext, token_text: TokenText | None) -> None:
        self._id = f"chatcmpl-{context.request_id}"
        self._created = int(time.time())
        self._model = body.model
        self.n = body.n or 1
        self._token_text = token_text
        self._usage_wanted = body.stream_options is not None and body.stream_options.include_usage

    def document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def logprobs(self, tokens: Any) -> dict[str, Any] | None:
        return chat_logprobs(tokens, self._token_text) if self._token_text is not None else None

    async def events(self, pump: Pump[GenerateResponse]) -> AsyncIterator[dict[str, Any]]:
        """Yield each answer's role, text as it comes, and reason for its end; then the usage if it was asked for."""
        usages: list[Usage] = []
        begun: set[int] = set()
        async for _, response in pump:
            index = response.index
            if index not in begun:
                begun.add(index)
                yield self._chunk(index, {"role": "assistant", "content": ""})
            if response.HasField("usage"):
                usages.append(response.usage)
            if response.text or (response.tokens and self._token_text is not None):
                yield self._chunk(index, {"content": response.text}, logprobs=self.logprobs(response.tokens))
            if response.finish_reason:
                yield self._chunk(index, {}, finish_reason=response.finish_reason)
        if self._usage_wanted:
            yield self.document("chat.completion.chunk", []) | {"usage": usage_body(usages, self.n)}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        more = {"usage": None} if self._usage_wanted else {}
        return self.document("chat.completion.chunk", [choice]) | more
