"""What HTTP needs of the router's core; `services/router/core.py` is the real one."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from stagemesh.v1.inference_pb2 import (
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    InferRequest,
    InferResponse,
    ModelInfo,
)
from stagemesh.v1.registry_pb2 import ModelSpec

from ..context import RequestContext
from ..text.model import ModelText


class Core(Protocol):
    """The router's core as HTTP sees it; every method raises `errors.StagemeshError`."""

    @property
    def draining(self) -> bool:
        """Whether the router is shutting down."""

    def context(self, headers: Mapping[str, str]) -> RequestContext:
        """Authenticate and give the request its id, tenant and deadline."""

    def generate(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[GenerateResponse]:
        """Yield the answer; the first response carries request_id, cache and route."""

    async def embed(self, request: EmbedRequest, context: RequestContext) -> EmbedResponse:
        """Return the embeddings."""

    async def infer(self, request: InferRequest, context: RequestContext) -> InferResponse:
        """Return named tensors."""

    def models(self) -> Sequence[ModelInfo]:
        """Every deployed model."""

    def spec(self, model: str, ctx: RequestContext) -> ModelSpec:
        """Return the model's record, of the revision that the request goes to."""

    async def text(self, model: str, ctx: RequestContext) -> ModelText:
        """Return the model's text side, of the revision that the request goes to."""

    def record_http(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
