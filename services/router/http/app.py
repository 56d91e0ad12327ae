"""The HTTP application: which path is answered where."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stagemesh import metrics

from ..score import Scoring
from .body import MAX_BODY_BYTES
from .chat import chat
from .classify import classify
from .completions import completions
from .core import Core
from .embeddings import embeddings
from .endpoint import endpoint, http_exception
from .models import get_model, health, list_models
from .recording import Recording
from .rerank import rerank


def create_app(core: Core, *, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """Return the OpenAI-compatible application on top of the router's core.

    A body beyond `max_body_bytes` is refused with status 413 without being read whole.
    """
    scoring = Scoring(core)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})

    return Starlette(
        routes=[
            Route("/v1/models", endpoint(core, list_models(core)), methods=["GET"]),
            Route("/v1/models/{model:path}", endpoint(core, get_model(core)), methods=["GET"]),
            Route("/v1/completions", endpoint(core, completions(core, max_body_bytes)), methods=["POST"]),
            Route("/v1/chat/completions", endpoint(core, chat(core, max_body_bytes)), methods=["POST"]),
            Route("/v1/embeddings", endpoint(core, embeddings(core, max_body_bytes)), methods=["POST"]),
            Route("/v1/rerank", endpoint(core, rerank(scoring, max_body_bytes)), methods=["POST"]),
            Route("/v1/classify", endpoint(core, classify(scoring, max_body_bytes)), methods=["POST"]),
            Route("/health", health(core), methods=["GET"]),
            Route("/metrics", show_metrics, methods=["GET"]),
        ],
        middleware=[Middleware(Recording, core=core)],
        exception_handlers={HTTPException: http_exception},
    )
