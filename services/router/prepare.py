"""From a checked request to what the head is told: token ids, sampling, stops, cache key."""

import asyncio
import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .cache.controls import NONE, CacheControls
from .cache.key import generation_key
from .cache.question import Question, question_of
from .resume import Drawn, ResumeTokens, answers_so_far, check_same, content_digest
from .text.answer import AnswerText
from .text.tokenizers import ModelText
from .validate import check_length, check_min_tokens, check_token_ids

THREAD_AT_CHARACTERS = 2000
"""Longer texts are tokenised off the event loop."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One answer, ready to be looked up or dispatched.

    `alternatives` is how many the caller wants per token: 0 with log probabilities on still gives each chosen
    token's own. `key` is None when the generation must not touch the cache; `drawn`: a kept answer may be of another seed. `index` says which of the request's
    answers it is; `question` is what it asks where another question's answer may do, or where others may be given its own;
    `so_far` is what had arrived of it when a stream broke with which this request goes on, else None.
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
    controls: CacheControls = NONE
    drawn: bool = False
    index: int = 0
    resume_token: bytes = b""
    so_far: inference_pb2.AnswerSoFar | None = None
    question: Question | None = None

    def answer_text(self) -> AnswerText:
        """What turns the answer's tokens to text."""
        return AnswerText(
            self.text,
            self.stop,
            self.stop_token_ids,
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
        )


async def prepare(
    request: inference_pb2.GenerateRequest,
    spec: registry_pb2.ModelSpec,
    text: ModelText,
    tenant: str,
    rng: random.Random,
    *,
    default_max_tokens: int,
    resume_tokens: ResumeTokens,
    controls: CacheControls = NONE,
) -> list[Plan]:
    """Tokenise and decide; a plan for each answer asked for, but for those that are finished already.

    Raises `OutOfRange` or `InvalidArgument` when the prompt does not fit; for a request that goes on with a broken
    stream also what `resume.ResumeTokens.read` says.
    """
    drawn = resume_tokens.read(request.resume.token, spec, tenant) if request.HasField("resume") else None
    token_ids = await tokenise(request, text)
    check_token_ids(token_ids, spec, "prompt")
    asked = request.max_tokens if request.HasField("max_tokens") else None
    if asked is None and drawn is not None:
        asked = drawn.max_tokens
    max_tokens = check_length(len(token_ids), asked, spec, default=default_max_tokens)
    min_tokens = request.min_tokens
    check_min_tokens(min_tokens, max_tokens)
    sampling = sampling_of(request, rng, drawn)
    stop_token_ids = sorted({*request.stop_token_ids, *(() if request.ignore_eos else text.eos_ids)})
    if min_tokens:
        sampling.held_ids.extend(stop_token_ids)
        sampling.held_before = len(token_ids) + min_tokens
    n = request.n or 1
    numbers = (n, max_tokens, min_tokens, request.logprobs)
    content = content_digest(spec.name, token_ids, sampling, request.stop, stop_token_ids, numbers)
    so_far: list[inference_pb2.AnswerSoFar] = []
    if drawn is not None:
        check_same(drawn, content)
        so_far = answers_so_far(request.resume, n, max_tokens, spec)
    token = resume_tokens.issue(spec, tenant, seed=sampling.seed, max_tokens=max_tokens, content=content)
    plans = []
    for index in range(n):
        if so_far and so_far[index].finished:
            continue
        own = stage_pb2.Sampling()
        own.CopyFrom(sampling)
        own.seed = seed_of(sampling.seed, index)
        key = None
        # What a caller says had arrived is no answer to give to others.
        if spec.cache and is_cached(request, controls) and not so_far:
            key = generation_key(
                spec,
                tenant,
                token_ids,
                own,
                max_tokens=max_tokens,
                stop=request.stop,
                stop_token_ids=stop_token_ids,
                min_tokens=min_tokens,
                namespace=controls.namespace,
                drawn=None if request.HasField("seed") else index,
            )
        question = None
        if key is not None and spec.semantic.enabled and repeats(request):
            question = question_of(
                request,
                spec,
                tenant,
                own,
                max_tokens=max_tokens,
                stop_token_ids=stop_token_ids,
                namespace=controls.namespace,
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
                controls=controls,
                drawn=key is not None and not repeats(request),
                index=index,
                resume_token=token,
                so_far=so_far[index] if so_far else None,
                question=question,
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


def sampling_of(
    request: inference_pb2.GenerateRequest, rng: random.Random, drawn: Drawn | None = None
) -> stage_pb2.Sampling:
    """Sampling with defaults filled in: temperature 1, filters off, a seed drawn before or now from `rng`."""
    if request.HasField("seed"):
        seed = request.seed
    elif drawn is not None:
        seed = drawn.seed
    else:
        seed = rng.getrandbits(63)
    top_p = request.top_p if request.HasField("top_p") else 0.0
    return stage_pb2.Sampling(
        temperature=request.temperature if request.HasField("temperature") else 1.0,
        top_k=request.top_k if request.HasField("top_k") else 0,
        top_p=0.0 if top_p == 1.0 else top_p,
        min_p=request.min_p if request.HasField("min_p") else 0.0,
        seed=seed,
        logprobs=max(request.logprobs, 1) if request.HasField("logprobs") else 0,
        repetition_penalty=0.0 if request.repetition_penalty == 1.0 else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
    )


def is_cached(request: inference_pb2.GenerateRequest, controls: CacheControls) -> bool:
    """Whether an answer may be given again: the same request gives it anyway, or the caller wants it so.

    A kept answer carries no log probabilities.
    """
    return (repeats(request) or controls.sampled) and not request.HasField("logprobs")


def repeats(request: inference_pb2.GenerateRequest) -> bool:
    """Whether the same request gives the same answer."""
    return request.HasField("seed") or (request.HasField("temperature") and request.temperature == 0)
