"""Texts to the scores of a classifier, and documents to their relevance: tokenise, infer, activate."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stagemesh.errors import DeadlineExceeded, FailedPrecondition, InternalError, InvalidArgument, OutOfRange
from stagemesh.tensor import from_numpy
from stagemesh.v1.inference_pb2 import InferRequest, InferResponse
from stagemesh.v1.registry_pb2 import ModelSpec
from stagemesh.v1.stage_pb2 import RouteHop

from .context import RequestContext
from .heads import activate, classify_activation, label_names, rank_activation
from .lossless import BITS, convert
from .signature import MASK, signature_of
from .text.model import ModelText
from .text.pairs import PairText, PairTexts

LOGITS = "logits"
MAX_TEXTS = 2048


class Core(Protocol):
    """What scoring needs of the router's core."""

    def spec(self, model: str, ctx: RequestContext) -> ModelSpec:
        """The revision of a model that the request goes to."""

    async def text(self, model: str, ctx: RequestContext) -> ModelText:
        """The model's text side."""

    async def infer(self, request: InferRequest, ctx: RequestContext) -> InferResponse:
        """Named tensors through the model."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores [N, labels], finite, and how they were made; `tokens` counts all texts'."""

    scores: np.ndarray
    labels: list[str]
    tokens: int
    cache: int
    route: Sequence[RouteHop]


class Scoring:
    """Asks models for the task "rank" or "classify"; keeps their tokenizers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pairs = PairTexts()

    async def rank(self, model: str, query: str, documents: Sequence[str], ctx: RequestContext) -> Scored:
        """The relevance of each document to the query, scores [N, 1].

        Raises `FailedPrecondition` for a model that is not for ranking, `InvalidArgument` or `OutOfRange` naming
        `query` or the document.
        """
        spec = self._spec(model, "rank", ctx)
        if not query:
            raise InvalidArgument("query: is empty", field="query")
        _check_texts(documents, "documents")
        pair = await self._pair(spec, ctx)
        scored = await self._logits(spec, pair, [query] * len(documents), documents, ctx)
        if scored.scores.shape[1] != 1:
            raise InternalError(f"model {spec.name!r} gave {scored.scores.shape[1]} scores for one document")
        return _activated(scored, rank_activation(pair.config), [])

    async def classify(self, model: str, texts: Sequence[str], ctx: RequestContext) -> Scored:
        """The score of each class for each text, by the checkpoint's own kind of problem."""
        spec = self._spec(model, "classify", ctx)
        _check_texts(texts, "input")
        pair = await self._pair(spec, ctx)
        scored = await self._logits(spec, pair, texts, None, ctx)
        count = scored.scores.shape[1]
        names = label_names(spec.labels, pair.config, count)
        return _activated(scored, classify_activation(pair.config, count), names)

    def _spec(self, model: str, task: str, ctx: RequestContext) -> ModelSpec:
        spec = self._core.spec(model, ctx)
        if spec.task != task:
            raise FailedPrecondition(
                f"model: {spec.name!r} is for {spec.task!r}, it cannot be asked to {task}", field="model"
            )
        return spec

    async def _pair(self, spec: ModelSpec, ctx: RequestContext) -> PairText:
        try:
            async with asyncio.timeout(max(ctx.deadline - time.monotonic(), 0)):
                # Loaded by whoever comes first; it also says clearly when there is no tokenizer.
                if not (await self._core.text(spec.name, ctx)).has_tokenizer:
                    raise FailedPrecondition(
                        f"model: {spec.name!r} has no tokenizer; send tensors", field="model"
                    )
                return await self._pairs.get(spec)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the model's tokenizer was being loaded"
            ) from None

    async def _logits(
        self,
        spec: ModelSpec,
        pair: PairText,
        texts: Sequence[str],
        seconds: Sequence[str] | None,
        ctx: RequestContext,
    ) -> Scored:
        columns = await asyncio.to_thread(pair.encode, texts, seconds)
        lengths = [len(row) for row in next(iter(columns.values()))]
        answer = await self._core.infer(_request(spec, columns, lengths), ctx)
        (tensor,) = answer.outputs
        array = np.frombuffer(tensor.data, BITS[tensor.dtype]).reshape(tuple(tensor.shape))
        logits = convert(array, tensor.dtype, "F64", "logits")
        if logits.ndim != 2 or logits.shape[0] != len(texts) or not logits.shape[1]:
            raise InternalError(f"model {spec.name!r} gave logits of shape {list(logits.shape)}")
        return Scored(logits, [], sum(lengths), answer.cache, answer.route)


def _activated(scored: Scored, activation: str, labels: list[str]) -> Scored:
    scores = activate(scored.scores, activation)
    if not bool(np.isfinite(scores).all()):
        raise InternalError("the model gave a score that is not a number")
    return Scored(scores, labels, scored.tokens, scored.cache, scored.route)


def _request(
    spec: ModelSpec, columns: Mapping[str, Sequence[Sequence[int]]], lengths: Sequence[int]
) -> InferRequest:
    """Token rows, padded, with their mask."""
    shape = (len(lengths), max(lengths))
    native = {each.name: each.dtypes[0] if each.dtypes else "I64" for each in signature_of(spec).inputs}
    request = InferRequest(model=spec.name, outputs=[LOGITS])
    for name, rows in columns.items():
        padded = np.zeros(shape, dtype=BITS[native[name]])
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        request.inputs.append(from_numpy(name, padded))
    request.inputs.append(from_numpy(MASK, np.arange(shape[1])[None] < np.asarray(lengths)[:, None]))
    return request


def _check_texts(texts: Sequence[str], field: str) -> None:
    if not texts:
        raise InvalidArgument(f"{field}: give at least one", field=field)
    if len(texts) > MAX_TEXTS:
        raise OutOfRange(f"{field}: more than {MAX_TEXTS} in one request", field=field)
    for index, text in enumerate(texts):
        if not text:
            raise InvalidArgument(f"{field}[{index}]: is empty", field=f"{field}[{index}]")
