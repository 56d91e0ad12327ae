"""From a checked request to what the head is told: token ids, sampling, stops, cache key."""

import asyncio
import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .cache_key import generation_key
from .text import ModelText
from .validate import check_length, check_min_tokens, check_token_ids

THREAD_AT_CHARACTERS = 2000
"""Longer texts are tokenised off the event loop."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One answer, ready to be looked up or dispatched.

    `alternatives` is how many the caller wants per token: 0 with log probabilities on still gives each chosen
    token's own. `key` is None when the generation must not touch the cache.
    """

    spec: registry_pb2.ModelSpec
    text: ModelText
    token_ids: list[int]
    max_tokens: int
    min_tokens: int
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
) -> list[Plan]:
    """Tokenise and decide; a plan for each answer asked for.

    Raises `OutOfRange` or `InvalidArgument` when the prompt does not fit.
    """
    token_ids = await tokenise(request, text)
    check_token_ids(token_ids, spec, "prompt")
    asked = request.max_tokens if request.HasField("max_tokens") else None
    max_tokens = check_length(len(token_ids), asked, spec, default=default_max_tokens)
    min_tokens = request.min_tokens
    check_min_tokens(min_tokens, max_tokens)
    sampling = sampling_of(request, rng)
    stop_token_ids = sorted({*request.stop_token_ids, *(() if request.ignore_eos else text.eos_ids)})
    if min_tokens:
        sampling.held_ids.extend(stop_token_ids)
        sampling.held_before = len(token_ids) + min_tokens
    plans = []
    for index in range(request.n or 1):
        own = stage_pb2.Sampling()
        own.CopyFrom(sampling)
        own.seed = seed_of(sampling.seed, index)
        key = None
        if spec.cache and is_deterministic(request):
            key = generation_key(
                spec,
                tenant,
                token_ids,
                own,
                max_tokens=max_tokens,
                stop=request.stop,
                stop_token_ids=stop_token_ids,
                min_tokens=min_tokens,
            )
        plans.append(
            Plan(
                spec=spec,
                text=text,
                token_ids=token_ids,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                sampling=own,
                stop=list(request.stop),
                stop_token_ids=stop_token_ids,
                alternatives=request.logprobs,
                key=key,
                lookup=key is not None and not request.cache_no_lookup,
                store=key is not None and not request.cache_no_store,
            )
        )
    return plans


def seed_of(seed: int, index: int) -> int:
    """The seed of a request's answer `index`: the first one's is the request's own, so it is the answer to n = 1."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(struct.pack("<QI", seed, index), digest_size=8).digest(), "little")


async def tokenise(request: inference_pb2.GenerateRequest, text: ModelText) -> list[int]:
    """Token ids of the prompt, chat or tokens given."""
    kind = request.WhichOneof("input")
    if kind == "tokens":
        return list(request.tokens.ids)
    if kind == "chat":
        messages = [{"role": each.role, "content": each.content} for each in request.chat.messages]
        return await text.encode_conversation(messages)
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
        repetition_penalty=0.0 if request.repetition_penalty == 1.0 else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
    )


def is_deterministic(request: inference_pb2.GenerateRequest) -> bool:
    """Whether the same request must give the same answer, and a cached one can carry all of it."""
    greedy = request.HasField("temperature") and request.temperature == 0
    return (greedy or request.HasField("seed")) and not request.HasField("logprobs")
