"""`POST /v1/classify`: the score of each class for each text."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..context import RequestContext
from ..score import Scoring
from .body import read_json
from .disconnect import until_disconnect
from .endpoint import Handler
from .headers import answer_headers
from .schema import ClassifyBody, parse


def classify(scoring: Scoring, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(ClassifyBody, await read_json(request, max_body_bytes))
        texts = [body.input] if isinstance(body.input, str) else body.input
        scored = await until_disconnect(request.receive, scoring.classify(body.model, texts, context))
        data = []
        for index, row in enumerate(scored.scores.tolist()):
            best = max(range(len(row)), key=row.__getitem__)
            data.append(
                {
                    "object": "classification",
                    "index": index,
                    "label": scored.labels[best],
                    "score": row[best],
                    "scores": [
                        {"label": label, "score": score}
                        for label, score in zip(scored.labels, row, strict=True)
                    ],
                }
            )
        document = {
            "object": "list",
            "data": data,
            "model": body.model,
            "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        }
        return JSONResponse(document, headers=answer_headers(context.request_id, scored.cache, scored.route))

    return handle
