"""Keys of cached answers: equal exactly when the answers must be equal. Pure."""

import hashlib
import struct
from collections.abc import Iterable, Sequence

from stagemesh.v1 import registry_pb2, stage_pb2, tensor_pb2

VERSION = b"stagemesh-cache-3"
_LENGTH = struct.Struct("<Q").pack


def generation_key(
    spec: registry_pb2.ModelSpec,
    tenant: str,
    token_ids: Sequence[int],
    sampling: stage_pb2.Sampling,
    *,
    max_tokens: int,
    stop: Sequence[str],
    stop_token_ids: Iterable[int],
    min_tokens: int = 0,
    namespace: str = "",
    drawn: int | None = None,
) -> bytes:
    """Key of a generation. Greedy ones ignore what does not change them: seed and sampling filters.

    `drawn` is set for an answer of a seed that nobody asked for, to its index among the request's answers: any such
    answer will do, whatever its seed.
    """
    greedy = sampling.temperature == 0
    seed = 0 if greedy or drawn is not None else sampling.seed
    return _digest(
        b"generate",
        *_model(spec, tenant, namespace),
        struct.pack(f"<{len(token_ids)}I", *token_ids),
        struct.pack("<I", max_tokens),
        struct.pack("<f", 0.0 if greedy else sampling.temperature),
        struct.pack("<I", 0 if greedy else sampling.top_k),
        struct.pack("<f", 0.0 if greedy else sampling.top_p),
        struct.pack("<f", 0.0 if greedy else sampling.min_p),
        struct.pack("<Q", seed),
        b"" if greedy or drawn is None else struct.pack("<I", drawn),
        _list(text.encode() for text in sorted(set(stop))),
        _list(struct.pack("<I", token) for token in sorted(set(stop_token_ids))),
        struct.pack("<I", min_tokens),
        struct.pack("<fff", *_penalties(sampling)),
        _list(struct.pack("<If", token, bias) for token, bias in sorted(sampling.logit_bias.items()) if bias),
    )


def infer_key(
    spec: registry_pb2.ModelSpec,
    tenant: str,
    inputs: Sequence[tensor_pb2.Tensor],
    outputs: Sequence[str],
    namespace: str = "",
) -> bytes:
    """Key of a stateless inference: inputs in any order, outputs in the order asked for."""
    tensors = [
        _digest(
            tensor.name.encode(),
            tensor.dtype.encode(),
            struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape),
            tensor.data,
        )
        for tensor in sorted(inputs, key=lambda each: each.name)
    ]
    return _digest(
        b"infer", *_model(spec, tenant, namespace), _list(tensors), _list(name.encode() for name in outputs)
    )


def embed_key(
    spec: registry_pb2.ModelSpec, tenant: str, rows: Sequence[Sequence[int]], namespace: str = ""
) -> bytes:
    """Key of an embedding of several tokenised texts."""
    return _digest(
        b"embed", *_model(spec, tenant, namespace), _list(struct.pack(f"<{len(row)}I", *row) for row in rows)
    )


def cache_tags(spec: registry_pb2.ModelSpec, namespace: str = "", tags: Iterable[str] = ()) -> list[str]:
    """What an entry can be invalidated by; `tags` are the caller's own."""
    found = [f"model:{spec.name}", f"revision:{spec.revision}"]
    if namespace:
        found.append(f"namespace:{namespace}")
    return found + [f"tag:{tag}" for tag in tags]


def value_digest(key: bytes, value: bytes) -> bytes:
    """What shows that a value was stored under this key, and is whole."""
    digest = hashlib.sha256(key)
    digest.update(value)
    return digest.digest()


def _penalties(sampling: stage_pb2.Sampling) -> tuple[float, float, float]:
    # Adding 0 makes a negative zero a positive one.
    return (
        sampling.repetition_penalty or 1.0,
        sampling.frequency_penalty + 0.0,
        sampling.presence_penalty + 0.0,
    )


def _model(spec: registry_pb2.ModelSpec, tenant: str, namespace: str) -> tuple[bytes, ...]:
    return (
        tenant.encode(),
        namespace.encode(),
        spec.name.encode(),
        spec.revision.encode(),
        spec.dtype.encode(),
    )


def _list(parts: Iterable[bytes]) -> bytes:
    return _digest(*parts)


def _digest(*parts: bytes) -> bytes:
    """SHA-256 over the parts, each with its length before it, so that no two lists of parts look alike."""
    pieces = [VERSION]
    for part in parts:
        pieces.append(_LENGTH(len(part)))
        pieces.append(part)
    return hashlib.sha256(b"".join(pieces)).digest()
