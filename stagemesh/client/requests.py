"""Keyword arguments to request messages. Pure: the server decides what is valid, this only names wrong types."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy.typing as npt

from stagemesh.client.arrays import tensor_of
from stagemesh.client.cache_control import cache_control_of
from stagemesh.errors import InvalidArgument
from stagemesh.v1 import inference_pb2

ChatMessage = Mapping[str, str]


class GenerateOptions(TypedDict, total=False):
    """What may follow the prompt in `generate` and `stream`; whatever is left out is the server's default.

    `temperature` 0 is greedy; `top_k`, `top_p` and `min_p` at 0 are off; the same `seed` gives the same tokens;
    `stop` texts end the generation and are not part of the output; `cache=False` neither looks the answer up nor
    stores it, and a `cache_control` such as "ttl=60, namespace=docs" says more (`cache_control.cache_control_of`).
    Penalties: `repetition_penalty` (1 is off) of prompt and output, `frequency_penalty` and `presence_penalty` (0 is
    off) of the output; `logit_bias` maps token ids to what is added to their logits. `n` answers, each with a seed of
    its own made from `seed`; `min_tokens` before anything may end one. `logprobs` is how many alternatives to report
    per token.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    n: int | None
    min_tokens: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    cache: bool
    cache_control: str


_SCALARS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "logprobs",
    "n",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def generate_request(
    model: str,
    prompt: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Sequence[int] | None,
    options: Mapping[str, Any],
) -> inference_pb2.GenerateRequest:
    """Build the request; raise `InvalidArgument` naming the field that has the wrong type or no input at all."""
    if sum(given is not None for given in (prompt, messages, token_ids)) != 1:
        raise InvalidArgument("prompt: give exactly one of prompt, messages and token_ids", field="prompt")
    request = inference_pb2.GenerateRequest()
    _set(request, "model", model)
    if prompt is not None:
        _set(request, "prompt", prompt)
    elif messages is not None:
        request.chat.SetInParent()
        for index, message in enumerate(messages):
            _add_message(request, index, message)
    else:
        request.tokens.SetInParent()
        _extend(request.tokens.ids, "token_ids", token_ids)
    for name in _SCALARS:
        if options.get(name) is not None:
            _set(request, name, options[name])
    stop = options.get("stop") or ()
    _extend(request.stop, "stop", [stop] if isinstance(stop, str) else stop)
    _extend(request.stop_token_ids, "stop_token_ids", options.get("stop_token_ids") or ())
    try:
        request.logit_bias.update(options.get("logit_bias") or {})
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"logit_bias: {error}", field="logit_bias") from error
    _set(request, "ignore_eos", bool(options.get("ignore_eos", False)))
    request.cache_no_lookup = request.cache_no_store = not options.get("cache", True)
    _control(request, options.get("cache_control") or "")
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    return request


def infer_request(
    model: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str],
    cache: bool,
    cache_control: str = "",
) -> inference_pb2.InferRequest:
    """Build the request from named arrays of shape [batch, ...], of any rank and dtype that the model takes."""
    request = inference_pb2.InferRequest()
    _set(request, "model", model)
    for name, array in inputs.items():
        request.inputs.append(tensor_of(name, array))
    _extend(request.outputs, "outputs", outputs)
    request.cache_no_lookup = request.cache_no_store = not cache
    _control(request, cache_control)
    return request


def embed_request(
    model: str, texts: str | Sequence[str], cache_control: str = ""
) -> inference_pb2.EmbedRequest:
    """Build the request; a single text is a list of one."""
    request = inference_pb2.EmbedRequest()
    _set(request, "model", model)
    _extend(request.texts, "texts", [texts] if isinstance(texts, str) else texts)
    _control(request, cache_control)
    return request


def _control(
    request: inference_pb2.GenerateRequest | inference_pb2.InferRequest | inference_pb2.EmbedRequest,
    text: str,
) -> None:
    if text:
        request.cache_control.CopyFrom(cache_control_of(text))


def _add_message(request: inference_pb2.GenerateRequest, index: int, message: ChatMessage) -> None:
    field = f"messages[{index}]"
    try:
        request.chat.messages.add(role=message["role"], content=message["content"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{field}: needs a text role and a text content", field=field) from error


def _set(request: Any, name: str, value: Any) -> None:
    try:
        setattr(request, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: {error}", field=name) from error


def _extend(repeated: Any, name: str, values: Any) -> None:
    try:
        repeated.extend(values)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: {error}", field=name) from error
