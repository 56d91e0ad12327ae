"""What a generation asks, apart from everything else that its answer depends on. Pure.

Two questions may share an answer only within one partition: the same tenant, model, revision, dtype, namespace, earlier
messages and parameters. The last message of a conversation, or the prompt, is the question; the rest is the partition.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .key import generation_key

MAX_QUESTION = 1000
"""Characters. A longer text is compared by its first part only, and much of it is no question."""


@dataclass(frozen=True, slots=True)
class Question:
    """`partition` is a SHA-256 of all but the text and the encoder."""

    text: str
    partition: bytes


def question_of(
    request: inference_pb2.GenerateRequest,
    spec: registry_pb2.ModelSpec,
    tenant: str,
    sampling: stage_pb2.Sampling,
    *,
    max_tokens: int,
    stop_token_ids: Sequence[int],
    namespace: str,
) -> Question | None:
    """The question of a request that repeats its answer; None for one of tokens, or that is no question or too long."""
    kind = request.WhichOneof("input")
    earlier: list[tuple[str, str]] = []
    if kind == "prompt":
        text = request.prompt
    elif kind == "chat" and request.chat.messages and request.chat.messages[-1].role == "user":
        text = request.chat.messages[-1].content
        earlier = [(each.role, each.content) for each in request.chat.messages[:-1]]
    else:
        return None
    if not text.strip() or len(text) > MAX_QUESTION:
        return None
    rest = generation_key(
        spec,
        tenant,
        (),
        sampling,
        max_tokens=max_tokens,
        stop=request.stop,
        stop_token_ids=stop_token_ids,
        min_tokens=request.min_tokens,
        namespace=namespace,
    )
    digest = hashlib.sha256(b"stagemesh-question-1" + kind.encode() + rest)
    for each in earlier:
        for part in each:
            data = part.encode()
            digest.update(struct.pack("<Q", len(data)))
            digest.update(data)
    return Question(text, digest.digest())


def partition_with(question: Question, encoder: str) -> bytes:
    """The partition among vectors of one encoder, named with its revision."""
    return hashlib.sha256(question.partition + encoder.encode()).digest()
