"""Bodies to the core's requests. Pure."""

from collections.abc import Mapping
from typing import Any

from stagemesh.errors import InvalidArgument
from stagemesh.v1.inference_pb2 import EmbedRequest, GenerateRequest, Message, Messages, TokenIds

from .schema import ChatBody, ChatMessage, CompletionBody, EmbeddingBody, GenerationBody

MAX_CHOICES = 256
DEFAULT_COMPLETION_TOKENS = 16
# Named alike in both.
_SCALARS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
)


def completion_requests(body: CompletionBody, headers: Mapping[str, str]) -> list[GenerateRequest]:
    """One request per prompt; raises `InvalidArgument` that names the field."""
    prompts = parse_texts_or_tokens(body.prompt, "prompt")
    if len(prompts) > MAX_CHOICES:
        raise InvalidArgument(f"prompt: at most {MAX_CHOICES} in one request", field="prompt")
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidArgument(f"n: at most {MAX_CHOICES} answers to all prompts together", field="n")
    requests = []
    for prompt in prompts:
        request = _generation(body, body.max_tokens or DEFAULT_COMPLETION_TOKENS, headers)
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            request.tokens.ids.extend(prompt)
        if body.logprobs is not None:
            request.logprobs = body.logprobs
        requests.append(request)
    return requests


def chat_request(body: ChatBody, headers: Mapping[str, str]) -> GenerateRequest:
    """The request of a conversation; raises `InvalidArgument` that names the field."""
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise InvalidArgument(
            "max_completion_tokens: differs from max_tokens; give one of them", field="max_completion_tokens"
        )
    request = _generation(body, limits.pop() if limits else None, headers)
    request.chat.CopyFrom(Messages(messages=[_message(message) for message in body.messages]))
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidArgument("top_logprobs: needs logprobs to be true", field="top_logprobs")
    if body.logprobs:
        request.logprobs = body.top_logprobs or 0
    return request


def embed_request(body: EmbeddingBody) -> EmbedRequest:
    """The request of an embedding; raises `InvalidArgument` that names the field."""
    inputs = parse_texts_or_tokens(body.input, "input")
    request = EmbedRequest(model=body.model)
    for item in inputs:
        if isinstance(item, str):
            request.texts.append(item)
        else:
            request.tokens.append(TokenIds(ids=item))
    return request


def parse_texts_or_tokens(value: Any, field: str) -> list[str] | list[list[int]]:
    """A text, a list of texts, token ids, or a list of token ids, as a list; none of them empty."""
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list) and items and all(type(item) is int for item in items):
        items = [items]
    if not isinstance(items, list):
        raise InvalidArgument(f"{field}: must be a text, texts, token ids or lists of token ids", field=field)
    if not items:
        raise InvalidArgument(f"{field}: is empty", field=field)
    texts = isinstance(items[0], str)
    for index, item in enumerate(items):
        where = field if len(items) == 1 else f"{field}[{index}]"
        if isinstance(item, str) is not texts or not isinstance(item, str | list):
            raise InvalidArgument(f"{where}: must be all texts or all lists of token ids", field=where)
        if not item:
            raise InvalidArgument(f"{where}: is empty", field=where)
        if not isinstance(item, str):
            _check_ids(item, where)
    return items


def _check_ids(ids: list[Any], where: str) -> None:
    for token in ids:
        if type(token) is not int or not 0 <= token < 2**32:
            raise InvalidArgument(f"{where}: token ids must be integers from 0", field=where)


def _generation(body: GenerationBody, max_tokens: int | None, headers: Mapping[str, str]) -> GenerateRequest:
    cache_control = {part.strip().lower() for part in headers.get("cache-control", "").split(",")}
    request = GenerateRequest(
        model=body.model,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        cache_no_lookup="no-cache" in cache_control or "no-store" in cache_control,
        cache_no_store="no-store" in cache_control,
    )
    if max_tokens is not None:
        request.max_tokens = max_tokens
    for name in _SCALARS:
        if (value := getattr(body, name)) is not None:
            setattr(request, name, value)
    if body.seed is not None:
        request.seed = body.seed % 2**64
    for token, bias in (body.logit_bias or {}).items():
        if not token.isdecimal() or not token.isascii() or len(token) > 10 or int(token) >= 2**32:
            raise InvalidArgument(f"logit_bias: {token[:20]!r} is no token id", field="logit_bias")
        request.logit_bias[int(token)] = bias
    return request


def _message(message: ChatMessage) -> Message:
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    return Message(role="system" if message.role == "developer" else message.role, content=content)
