"""`POST /v1/embeddings`."""

import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stagemesh.v1.tensor_pb2 import Tensor

from ..context import RequestContext
from .body import read_json
from .core import Core
from .disconnect import until_disconnect
from .endpoint import Handler
from .headers import answer_headers
from .schema import EmbeddingBody, parse
from .to_generate import embed_request


def embeddings(core: Core, max_body_bytes: int) -> Handler:
    """Return the handler."""

    async def handle(request: Request, context: RequestContext) -> Response:
        body = parse(EmbeddingBody, await read_json(request, max_body_bytes))
        asked = embed_request(body)
        answer = await until_disconnect(request.receive, core.embed(asked, context))
        rows = encode_rows(answer.embeddings, in_base64=body.encoding_format == "base64")
        document = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": body.model,
            "usage": {
                "prompt_tokens": answer.usage.prompt_tokens,
                "total_tokens": answer.usage.prompt_tokens,
            },
        }
        return JSONResponse(document, headers=answer_headers(context.request_id, answer.cache, answer.route))

    return handle


def encode_rows(tensor: Tensor, *, in_base64: bool) -> list[Any]:
    """Return each row of an F32 [count, dimension] tensor as floats, or as base64 of little-endian F32."""
    count, dimension = tensor.shape
    rows = np.frombuffer(tensor.data, dtype="<f4").reshape(count, dimension)
    if in_base64:
        return [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
    return rows.tolist()
