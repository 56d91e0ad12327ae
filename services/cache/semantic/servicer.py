"""The semantic layer's RPCs: they check what comes in, and count."""

import math
from typing import Any

import grpc
import numpy as np

from stagemesh.errors import InvalidArgument
from stagemesh.v1 import semantic_pb2 as pb
from stagemesh.v1.semantic_pb2_grpc import SemanticServiceServicer

from .evidence import KINDS
from .worker import SemanticWorker

KEY_BYTES = 32
MAX_DIMENSION = 8192
MAX_TEXT = 4096
MAX_ANSWER = 64 * 1024
MAX_NAME = 256
MAX_TAGS = 16
MAX_USAGE = 1024


class SemanticServicer(SemanticServiceServicer):
    """What is wrong with a request is said by its field; the layer lives on."""

    def __init__(self, worker: SemanticWorker) -> None:
        self._worker = worker

    def __repr__(self) -> str:
        return f"SemanticServicer({self._worker!r})"

    async def Find(
        self, request: pb.SemanticFindRequest, context: grpc.aio.ServicerContext
    ) -> pb.SemanticFindResponse:
        """The kept question most like this one, and whether its answer may be given."""
        _check(request)
        _check_vector(request.vector, "vector")
        found = await self._worker.call(lambda layer: layer.find(request))
        self._worker.measures.finds.labels("served" if found.serve else "refused").inc()
        return found

    async def Keep(
        self, request: pb.SemanticKeepRequest, context: grpc.aio.ServicerContext
    ) -> pb.SemanticKeepResponse:
        """A question whose answer was stored."""
        _check(request)
        _check_key(request.key, "key")
        _check_vector(request.vector, "vector")
        if len(request.tags) > MAX_TAGS or any(not 0 < len(tag) <= MAX_NAME for tag in request.tags):
            raise InvalidArgument(f"tags: at most {MAX_TAGS}, of 1 to {MAX_NAME} characters", field="tags")
        return await self._worker.call(lambda layer: layer.keep(request))

    async def Judge(
        self, request: pb.SemanticJudgeRequest, context: grpc.aio.ServicerContext
    ) -> pb.SemanticJudgeResponse:
        """Two answers to alike questions: evidence."""
        _check(request)
        _check_key(request.key, "key")
        if request.kind not in KINDS:
            raise InvalidArgument(f"kind: must be one of {', '.join(KINDS)}", field="kind")
        if not (math.isfinite(request.similarity) and 0 <= request.similarity <= 1.001):
            raise InvalidArgument("similarity: must be within 0..1", field="similarity")
        for field in ("kept_answer", "real_answer"):
            if len(getattr(request, field)) > MAX_ANSWER:
                raise InvalidArgument(f"{field}: longer than {MAX_ANSWER} characters", field=field)
        for field in ("kept_vector", "real_vector"):
            if getattr(request, field):
                _check_vector(getattr(request, field), field)
        found = await self._worker.call(lambda layer: layer.judge(request))
        served = "yes" if request.served else "no"
        self._worker.measures.verdicts.labels(served, "right" if found.same else "wrong").inc()
        return found

    async def Count(
        self, request: pb.CacheUsageRequest, context: grpc.aio.ServicerContext
    ) -> pb.CacheUsageResponse:
        """What routers answered from the caches since they told last."""
        if len(request.usage) > MAX_USAGE or any(
            not 0 < len(each.model) <= MAX_NAME for each in request.usage
        ):
            raise InvalidArgument(f"usage: at most {MAX_USAGE} models with a name each", field="usage")
        await self._worker.call(lambda layer: layer.count(request))
        return pb.CacheUsageResponse()

    async def Report(
        self, request: pb.CacheReportRequest, context: grpc.aio.ServicerContext
    ) -> pb.CacheReport:
        """What is known of a model, or of each."""
        return await self._worker.call(lambda layer: layer.report(request.model))

    async def Switch(
        self, request: pb.SemanticSwitchRequest, context: grpc.aio.ServicerContext
    ) -> pb.SemanticSwitchResponse:
        """What an operator orders."""
        if request.order not in (pb.SEMANTIC_ORDER_OFF, pb.SEMANTIC_ORDER_ON, pb.SEMANTIC_ORDER_RESET):
            raise InvalidArgument("order: must be off, on or reset", field="order")
        scopes = await self._worker.call(lambda layer: layer.switch(request))
        return pb.SemanticSwitchResponse(scopes=scopes)


def _check(request: Any) -> None:
    if not 0 < len(request.tenant) <= MAX_NAME:
        raise InvalidArgument(f"tenant: must have 1 to {MAX_NAME} characters", field="tenant")
    scope = request.scope
    for field in ("model", "revision", "encoder"):
        least = 0 if field == "revision" else 1
        if not least <= len(getattr(scope, field)) <= 2 * MAX_NAME:
            raise InvalidArgument(
                f"scope.{field}: must have {least} to {2 * MAX_NAME} characters", field=f"scope.{field}"
            )
    _check_key(request.partition, "partition")
    text = getattr(request, "text", None)
    if text is not None and not 0 < len(text) <= MAX_TEXT:
        raise InvalidArgument(f"text: must have 1 to {MAX_TEXT} characters", field="text")


def _check_key(key: bytes, field: str) -> None:
    if len(key) != KEY_BYTES:
        raise InvalidArgument(f"{field}: must be a SHA-256 of {KEY_BYTES} bytes, not {len(key)}", field=field)


def _check_vector(data: bytes, field: str) -> None:
    if not data or len(data) % 4 or len(data) > 4 * MAX_DIMENSION:
        raise InvalidArgument(f"{field}: must be 1 to {MAX_DIMENSION} numbers of 32 bits", field=field)
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise InvalidArgument(f"{field}: every number must be finite", field=field)
