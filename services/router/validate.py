"""Checks of a generation before anything is spent on it. Pure; every error names the field."""

import math
from collections.abc import Sequence

from stagemesh.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from stagemesh.v1 import inference_pb2, registry_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_ANSWERS = 128
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 100.0
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_NAME = 80


def check_model(
    name: str, models: dict[str, registry_pb2.ModelSpec], *, field: str = "model"
) -> registry_pb2.ModelSpec:
    """The model of that name; `InvalidArgument` when the name is empty, `NotFound` when there is none."""
    if not name:
        raise InvalidArgument(f"{field}: name the model to use", field=field)
    spec = models.get(name)
    if spec is None:
        raise NotFound(f"{field}: no model named {name[:MAX_NAME]!r} is deployed", field=field)
    return spec


def check_task(spec: registry_pb2.ModelSpec, task: str) -> None:
    """`FailedPrecondition` unless the model is for `task` ("generate" or "embed")."""
    if spec.task != task:
        does = {"generate": "generates text", "embed": "embeds text"}.get(spec.task, f"does {spec.task!r}")
        raise FailedPrecondition(f"model: {spec.name!r} {does}, it cannot be asked to {task}", field="model")


def check_generate(request: inference_pb2.GenerateRequest, spec: registry_pb2.ModelSpec) -> None:
    """Everything about a generation that can be checked before tokenising."""
    check_task(spec, "generate")
    _check_input(request, spec)
    _check_sampling(request)
    _check_bias(request, spec)
    _check_stops(request, spec)


def check_length(
    prompt_tokens: int, max_tokens: int | None, spec: registry_pb2.ModelSpec, *, default: int
) -> int:
    """New tokens allowed after a prompt of that length.

    `OutOfRange` when the prompt leaves no room, or when prompt and an explicit `max_tokens` exceed the context;
    without one, the server's default as far as the context goes.
    """
    if prompt_tokens == 0:
        raise InvalidArgument("prompt: has no tokens", field="prompt")
    room = spec.context_length - prompt_tokens
    if room < 1:
        raise OutOfRange(
            f"prompt: {prompt_tokens} tokens do not fit the context of {spec.context_length} with room for one more",
            field="prompt",
        )
    if max_tokens is None:
        return min(default, room)
    if max_tokens > room:
        raise OutOfRange(
            f"max_tokens: {max_tokens} new tokens after a prompt of {prompt_tokens} exceed the context of "
            f"{spec.context_length}; {room} fit",
            field="max_tokens",
        )
    return max_tokens


def check_token_ids(ids: Sequence[int], spec: registry_pb2.ModelSpec, field: str) -> None:
    """`InvalidArgument` when one is outside the vocabulary."""
    if spec.vocab_size and ids and max(ids) >= spec.vocab_size:
        raise InvalidArgument(
            f"{field}: token id {max(ids)} is outside the vocabulary of {spec.vocab_size}", field=field
        )


def check_texts(texts: Sequence[str], *, max_texts: int) -> None:
    """`InvalidArgument` unless there is at least one text and none is empty; `OutOfRange` beyond `max_texts`."""
    if not texts:
        raise InvalidArgument("texts: give at least one text", field="texts")
    if len(texts) > max_texts:
        raise OutOfRange(f"texts: {len(texts)} are more than the {max_texts} of one request", field="texts")
    for index, text in enumerate(texts):
        if not text:
            raise InvalidArgument(f"texts[{index}]: is empty", field=f"texts[{index}]")


def _check_input(request: inference_pb2.GenerateRequest, spec: registry_pb2.ModelSpec) -> None:
    kind = request.WhichOneof("input")
    if kind is None or (kind == "prompt" and not request.prompt):
        raise InvalidArgument("prompt: is empty", field="prompt")
    if kind == "chat":
        if not request.chat.messages:
            raise InvalidArgument("chat.messages: is empty", field="chat.messages")
        for index, message in enumerate(request.chat.messages):
            if not message.role:
                raise InvalidArgument(
                    f"chat.messages[{index}].role: is empty", field=f"chat.messages[{index}].role"
                )
    if kind == "tokens":
        if not request.tokens.ids:
            raise InvalidArgument("tokens.ids: is empty", field="tokens.ids")
        check_token_ids(request.tokens.ids, spec, "tokens.ids")


def _check_sampling(request: inference_pb2.GenerateRequest) -> None:
    if request.HasField("max_tokens") and request.max_tokens <= 0:
        raise InvalidArgument(f"max_tokens: must be at least 1, not {request.max_tokens}", field="max_tokens")
    if request.HasField("temperature"):
        _within("temperature", request.temperature, 0.0, MAX_TEMPERATURE)
    if request.HasField("top_p"):
        _within("top_p", request.top_p, 0.0, 1.0, above=True)
    if request.HasField("min_p"):
        _within("min_p", request.min_p, 0.0, 1.0)
    if request.HasField("top_k") and request.top_k < 0:
        raise InvalidArgument(f"top_k: must be 0 (off) or more, not {request.top_k}", field="top_k")
    if request.HasField("logprobs"):
        _within("logprobs", request.logprobs, 0, MAX_LOGPROBS)
    for name in ("presence_penalty", "frequency_penalty"):
        if request.HasField(name):
            _within(name, getattr(request, name), -MAX_PENALTY, MAX_PENALTY)
    if request.HasField("repetition_penalty"):
        _within("repetition_penalty", request.repetition_penalty, 0.0, MAX_REPETITION_PENALTY, above=True)
    if request.HasField("n"):
        _within("n", request.n, 1, MAX_ANSWERS)
    if request.HasField("min_tokens") and request.min_tokens < 0:
        raise InvalidArgument(f"min_tokens: must be 0 or more, not {request.min_tokens}", field="min_tokens")


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """`InvalidArgument` when an answer would have to be longer than it may."""
    if min_tokens > max_tokens:
        raise InvalidArgument(
            f"min_tokens: {min_tokens} are more than the {max_tokens} that may be generated",
            field="min_tokens",
        )


def _check_bias(request: inference_pb2.GenerateRequest, spec: registry_pb2.ModelSpec) -> None:
    if len(request.logit_bias) > MAX_BIASES:
        raise InvalidArgument(
            f"logit_bias: at most {MAX_BIASES} tokens, not {len(request.logit_bias)}", field="logit_bias"
        )
    check_token_ids(list(request.logit_bias), spec, "logit_bias")
    for token, bias in request.logit_bias.items():
        _within(f"logit_bias[{token}]", bias, -MAX_BIAS, MAX_BIAS)


def _within(field: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    if math.isfinite(value) and (least < value if above else least <= value) and value <= most:
        return
    raise InvalidArgument(
        f"{field}: must be {'above' if above else 'at least'} {least:g} and at most {most:g}, not {value:g}",
        field=field,
    )


def _check_stops(request: inference_pb2.GenerateRequest, spec: registry_pb2.ModelSpec) -> None:
    if len(request.stop) > MAX_STOP_STRINGS:
        raise InvalidArgument(
            f"stop: at most {MAX_STOP_STRINGS} texts, not {len(request.stop)}", field="stop"
        )
    for index, text in enumerate(request.stop):
        if not text:
            raise InvalidArgument(f"stop[{index}]: is empty", field=f"stop[{index}]")
        if len(text) > MAX_STOP_LENGTH:
            raise InvalidArgument(
                f"stop[{index}]: is longer than {MAX_STOP_LENGTH} characters", field=f"stop[{index}]"
            )
    if len(request.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidArgument(
            f"stop_token_ids: at most {MAX_STOP_TOKENS}, not {len(request.stop_token_ids)}",
            field="stop_token_ids",
        )
    check_token_ids(request.stop_token_ids, spec, "stop_token_ids")
