"""From a checked request to what the head is told: token ids, sampling, stops, cache key."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .cache_key import generation_key
from .text import ModelText
from .validate import check_length, check_token_ids

THREAD_AT_CHARACTERS = 2000
"""Longer texts are tokenised off the event loop."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One generation, ready to be looked up or dispatched.

    `alternatives` is how many the caller wants per token: 0 with log probabilities on still gives each chosen
    token's own. `key` is None when the generation must not touch the cache.
    """

    spec: registry_pb2.ModelSpec
    text: ModelText
    token_ids: list[int]
    max_tokens: int
    sampling: stage_pb2.Sampling
    stop: list[str]
    stop_token_ids: list[int]
    alternatives: int
    key: bytes | None
    lookup: bool
    store: bool


async def prepare(
    request: inference_pb2.GenerateRequest,
    spec: registry_pb2.ModelSpec,
    text: ModelText,
    tenant: str,
    rng: random.Random,
    *,
    default_max_tokens: int,
) -> Plan:
    """Tokenise and decide; raises `OutOfRange` or `InvalidArgument` when the prompt does not fit."""
    token_ids = await tokenise(request, text)
    check_token_ids(token_ids, spec, "prompt")
    asked = request.max_tokens if request.HasField("max_tokens") else None
    max_tokens = check_length(len(token_ids), asked, spec, default=default_max_tokens)
    sampling = sampling_of(request, rng)
    stop_token_ids = sorted({*request.stop_token_ids, *(() if request.ignore_eos else text.eos_ids)})
    key = None
    if spec.cache and is_deterministic(request):
        key = generation_key(
            spec,
            tenant,
            token_ids,
            sampling,
            max_tokens=max_tokens,
            stop=request.stop,
            stop_token_ids=stop_token_ids,
        )
    return Plan(
        spec=spec,
        text=text,
        token_ids=token_ids,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=list(request.stop),
        stop_token_ids=stop_token_ids,
        alternatives=request.logprobs,
        key=key,
        lookup=key is not None and not request.cache_no_lookup,
        store=key is not None and not request.cache_no_store,
    )


async def tokenise(request: inference_pb2.GenerateRequest, text: ModelText) -> list[int]:
    """Token ids of the prompt, chat or tokens given."""
    kind = request.WhichOneof("input")
    if kind == "tokens":
        return list(request.tokens.ids)
    if kind == "chat":
        messages = [{"role": each.role, "content": each.content} for each in request.chat.messages]
        return await asyncio.to_thread(text.encode_chat, messages)
    if len(request.prompt) > THREAD_AT_CHARACTERS:
        return await asyncio.to_thread(text.encode, request.prompt)
    return text.encode(request.prompt)


async def tokenise_batch(texts: Sequence[str], text: ModelText) -> list[list[int]]:
    """Token ids of texts to embed."""
    return await asyncio.to_thread(text.encode_batch, texts)


def sampling_of(request: inference_pb2.GenerateRequest, rng: random.Random) -> stage_pb2.Sampling:
    """Sampling with defaults filled in: temperature 1, filters off, a seed drawn from `rng`."""
    top_p = request.top_p if request.HasField("top_p") else 0.0
    return stage_pb2.Sampling(
        temperature=request.temperature if request.HasField("temperature") else 1.0,
        top_k=request.top_k if request.HasField("top_k") else 0,
        top_p=0.0 if top_p == 1.0 else top_p,
        min_p=request.min_p if request.HasField("min_p") else 0.0,
        seed=request.seed if request.HasField("seed") else rng.getrandbits(63),
        logprobs=max(request.logprobs, 1) if request.HasField("logprobs") else 0,
    )


def is_deterministic(request: inference_pb2.GenerateRequest) -> bool:
    """Whether the same request must give the same answer, and a cached one can carry all of it."""
    greedy = request.HasField("temperature") and request.temperature == 0
    return (greedy or request.HasField("seed")) and not request.HasField("logprobs")
