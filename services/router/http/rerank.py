"""`POST /v1/rerank`: documents in the order of their relevance to a query."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..context import RequestContext
from ..score import Scoring
from .body import read_json
from .disconnect import until_disconnect
from .endpoint import Handler
from .headers import answer_headers
from .schema import RerankBody, parse


def rerank(scoring: Scoring, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(RerankBody, await read_json(request, max_body_bytes))
        texts = [each if isinstance(each, str) else each.text for each in body.documents]
        scored = await until_disconnect(request.receive, scoring.rank(body.model, body.query, texts, context))
        scores = scored.scores[:, 0].tolist()
        best = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
        results: list[dict[str, Any]] = []
        for index in best:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if body.return_documents:
                result["document"] = {"text": texts[index]}
            results.append(result)
        document = {
            "id": context.request_id,
            "model": body.model,
            "results": results,
            "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        }
        return JSONResponse(document, headers=answer_headers(context.request_id, scored.cache, scored.route))

    return handle
