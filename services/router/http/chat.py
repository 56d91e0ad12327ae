"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stagemesh.v1.inference_pb2 import GenerateResponse, Usage

from ..context import RequestContext
from .body import read_json
from .collect import collect, usage_body
from .core import Core
from .disconnect import until_disconnect
from .endpoint import Handler
from .headers import answer_headers
from .logprobs import TokenText, chat_logprobs
from .pump import Pump
from .schema import ChatBody, parse
from .sse import SseResponse
from .to_generate import chat_request


def chat(core: Core, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(ChatBody, await read_json(request, max_body_bytes))
        asked = chat_request(body, request.headers)
        token_text = (await core.text(body.model)).token_text if body.logprobs else None
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
                    headers=answer_headers(context.request_id, first.cache, first.route),
                    seconds=context.deadline - time.monotonic(),
                )
            first, (answer,) = await until_disconnect(request.receive, collect(pump, 1))
        finally:
            if not streaming:
                await pump.close()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": shape.logprobs(answer.tokens),
            "finish_reason": answer.finish_reason or None,
        }
        document = shape.document("chat.completion", [choice]) | {"usage": usage_body([answer.usage])}
        return JSONResponse(document, headers=answer_headers(context.request_id, first.cache, first.route))

    return handle


class _Shape:
    """OpenAI's chat documents of one request."""

    def __init__(self, body: ChatBody, context: RequestContext, token_text: TokenText | None) -> None:
        self._id = f"chatcmpl-{context.request_id}"
        self._created = int(time.time())
        self._model = body.model
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
        """Yield the role, the text as it comes, the reason for the end, then the usage if it was asked for."""
        usages: list[Usage] = []
        yield self._chunk({"role": "assistant", "content": ""})
        async for _, response in pump:
            if response.HasField("usage"):
                usages.append(response.usage)
            if response.text or (response.tokens and self._token_text is not None):
                yield self._chunk({"content": response.text}, logprobs=self.logprobs(response.tokens))
            if response.finish_reason:
                yield self._chunk({}, finish_reason=response.finish_reason)
        if self._usage_wanted:
            yield self.document("chat.completion.chunk", []) | {"usage": usage_body(usages)}

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        more = {"usage": None} if self._usage_wanted else {}
        return self.document("chat.completion.chunk", [choice]) | more
