"""Vectors of texts by a model that the mesh serves, for the router's own needs."""

import asyncio
import random

import numpy as np
import numpy.typing as npt
from opentelemetry.trace import Span

from stagemesh.errors import InternalError
from stagemesh.v1.inference_pb2 import InferResponse
from stagemesh.v1.registry_pb2 import ModelSpec

from .context import RequestContext
from .dispatch import Dispatch
from .infer import Inference
from .text.tokenizers import Texts
from .validate_tensors import token_batch

OUTPUT = "sentence_embedding"


class Embedder:
    """Asks a model as any caller would; part of a request that was admitted already."""

    def __init__(
        self, dispatch: Dispatch, texts: Texts, rng: random.Random, *, max_output_bytes: int
    ) -> None:
        self._dispatch = dispatch
        self._texts = texts
        self._rng = rng
        self._max_output_bytes = max_output_bytes

    def __repr__(self) -> str:
        return "Embedder()"

    async def vectors(
        self, spec: ModelSpec, texts: list[str], ctx: RequestContext, span: Span
    ) -> tuple[npt.NDArray[np.float32], bool]:
        """A vector for each text, F32 [texts, d], and whether each was read to its end. Raises `StagemeshError`."""
        text = await self._texts.get(spec)
        rows = await asyncio.to_thread(text.encode_batch, texts)
        whole = all(len(row) < text.max_embed_tokens for row in rows)
        batch = token_batch({"input_ids": rows}, spec, OUTPUT)
        inference = Inference(
            batch, spec, ctx, span, self._dispatch, self._rng, max_output_bytes=self._max_output_bytes
        )
        made = InferResponse()
        await inference.run(made)
        output = made.outputs[0]
        if output.dtype != "F32" or len(output.shape) != 2 or output.shape[0] != len(texts):
            raise InternalError("the encoder gave no vectors")
        return np.frombuffer(output.data, "<f4").reshape(output.shape), whole
