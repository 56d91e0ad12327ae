"""`GET /v1/models`, `/v1/models/{id}` and `/health`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stagemesh.errors import NotFound
from stagemesh.v1.inference_pb2 import ModelInfo

from ..context import RequestContext
from .core import Core
from .endpoint import Handler


def list_models(core: Core) -> Handler:
    """Return the handler of the list."""

    async def handle(request: Request, context: RequestContext) -> Response:
        return JSONResponse({"object": "list", "data": [_model(info) for info in core.models()]})

    return handle


def get_model(core: Core) -> Handler:
    """Return the handler of one model."""

    async def handle(request: Request, context: RequestContext) -> Response:
        name = request.path_params["model"]
        for info in core.models():
            if info.spec.name == name:
                return JSONResponse(_model(info))
        raise NotFound(f"model: no model named {name[:80]!r} is deployed", field="model")

    return handle


def health(core: Core) -> Any:
    """Return the endpoint of `/health`: 200 when a model is ready, or sleeps, or none is deployed, else 503."""

    async def handle(request: Request) -> Response:
        models = core.models()
        # A model that sleeps serves: it wakes for the first request.
        ready = sum(info.ready or info.asleep for info in models)
        status = "draining" if core.draining else "ok" if ready or not models else "loading"
        document = {"status": status, "models": len(models), "models_ready": ready}
        return JSONResponse(document, status_code=200 if status == "ok" else 503)

    return handle


def _model(info: ModelInfo) -> dict[str, Any]:
    spec = info.spec
    return {
        "id": spec.name,
        "object": "model",
        "created": spec.created_unix_ms // 1000,
        "owned_by": "stagemesh",
        # Beyond OpenAI's.
        "ready": info.ready,
        "asleep": info.asleep,
        "task": spec.task,
        "context_length": spec.context_length,
    }
