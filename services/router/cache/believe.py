"""Whether a kept answer can be the answer to this request: what a cache says is checked, not believed. Pure.

That it was stored under this very request's key is shown by its digest, which covers the key; here is what it holds.
What would not be believed is not stored either: an answer that ended before its end is no answer.
"""

from collections.abc import Sequence

from stagemesh.errors import StagemeshError
from stagemesh.tensor import check_layout
from stagemesh.v1 import cache_pb2, inference_pb2, registry_pb2, tensor_pb2

_ENDS = ("stop", "length")


def generation_fault(
    kept: cache_pb2.CachedGeneration, *, prompt_tokens: int, max_tokens: int, vocab_size: int
) -> str:
    """Why it is no whole answer to a prompt of so many tokens; empty when it is."""
    if kept.finish_reason in _ENDS and kept.prompt_tokens != prompt_tokens:
        return "another prompt"
    return _whole_fault(kept, max_tokens, vocab_size)


def answer_fault(
    kept: cache_pb2.CachedGeneration, *, partition: bytes, max_tokens: int, vocab_size: int
) -> str:
    """Why it is no whole answer to any question of that partition; empty when it is."""
    if not partition or kept.partition != partition:
        return "another partition"
    return _whole_fault(kept, max_tokens, vocab_size)


def _whole_fault(kept: cache_pb2.CachedGeneration, max_tokens: int, vocab_size: int) -> str:
    tokens = sum(len(chunk.token_ids) for chunk in kept.chunks)
    if kept.finish_reason not in _ENDS:
        return "no end"
    if tokens > max_tokens:
        return "too many tokens"
    if kept.finish_reason == "length" and tokens != max_tokens:
        return "cut off"
    if vocab_size and any(token >= vocab_size for chunk in kept.chunks for token in chunk.token_ids):
        return "unknown tokens"
    return ""


def in_one_chunk(kept: cache_pb2.CachedGeneration) -> cache_pb2.CachedGeneration:
    """The same answer, to be sent at once."""
    chunk = cache_pb2.CachedChunk(
        text="".join(each.text for each in kept.chunks),
        token_ids=[token for each in kept.chunks for token in each.token_ids],
    )
    return cache_pb2.CachedGeneration(
        chunks=[chunk], finish_reason=kept.finish_reason, prompt_tokens=kept.prompt_tokens
    )


def infer_fault(
    kept: inference_pb2.InferResponse,
    spec: registry_pb2.ModelSpec,
    outputs: Sequence[registry_pb2.TensorSpec],
    rows: int,
) -> str:
    """Why these are not the `outputs` of `rows` samples; empty when they are."""
    if (kept.model, kept.revision) != (spec.name, spec.revision):
        return "another model"
    if [each.name for each in kept.outputs] != [each.name for each in outputs]:
        return "other outputs"
    for tensor, wanted in zip(kept.outputs, outputs, strict=True):
        if fault := _tensor_fault(tensor, rows):
            return fault
        if wanted.dtypes and tensor.dtype not in wanted.dtypes:
            return "another dtype"
    return ""


def embed_fault(kept: inference_pb2.EmbedResponse, rows: int, tokens: int) -> str:
    """Why this is not a vector for each of `rows` texts of `tokens` tokens together; empty when it is."""
    if kept.usage.prompt_tokens != tokens:
        return "another prompt"
    if len(kept.embeddings.shape) != 2 or kept.embeddings.dtype != "F32":
        return "another shape"
    return _tensor_fault(kept.embeddings, rows)


def _tensor_fault(tensor: tensor_pb2.Tensor, rows: int) -> str:
    try:
        check_layout(tensor.dtype, tensor.shape, len(tensor.data))
    except StagemeshError:
        return "a broken tensor"
    if tensor.encoding or tensor.HasField("shared"):
        return "a broken tensor"
    return "" if tensor.shape and tensor.shape[0] == rows else "another number of rows"
