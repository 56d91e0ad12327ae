"""Text generation through the Open Inference Protocol: `text_input` and parameters to a generation. Pure."""

import json
from typing import Any, TypeVar

from stagemesh.errors import InvalidArgument
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.v1 import inference_pb2

from .codec import parameter_values, read_texts

T = TypeVar("T", list[Any], dict[str, Any])
TEXT_INPUT = "text_input"
TEXT_OUTPUT = "text_output"
_INTEGERS = ("max_tokens", "min_tokens", "top_k", "seed", "n")
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
# Read elsewhere (`scheduling`, `codec`), or set by servers and clients of the protocol for themselves.
_IGNORED = (
    "stream",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "binary_data_output",
)


def has_text(request: oip.ModelInferRequest) -> bool:
    """Whether the request brings text instead of token tensors."""
    return any(tensor.name == TEXT_INPUT for tensor in request.inputs)


def only_text(request: oip.ModelInferRequest) -> list[str]:
    """The texts; `InvalidArgument` when another input comes beside them."""
    for index, tensor in enumerate(request.inputs):
        if tensor.name != TEXT_INPUT or index > 0:
            raise InvalidArgument(
                f"inputs[{index}].name: {TEXT_INPUT} must be the only input", field=f"inputs[{index}].name"
            )
    return read_texts(request, 0)


def generation_of(request: oip.ModelInferRequest) -> inference_pb2.GenerateRequest:
    """The generation that a request with `text_input` of shape [1] asks for."""
    texts = only_text(request)
    if len(texts) != 1:
        raise InvalidArgument(
            f"inputs[0].shape: {TEXT_INPUT} of a generation must be [1]", field="inputs[0].shape"
        )
    generation = inference_pb2.GenerateRequest(model=request.model_name, prompt=texts[0])
    for name, value in parameter_values(request.parameters).items():
        _set(generation, name, value)
    return generation


def _texts(value: str) -> list[str]:
    """One text, or several as a JSON list."""
    return _of(list, value) if value.startswith("[") and value.endswith("]") else [value]


def _of(kind: type[T], value: str) -> T:
    """A list or an object spelled as JSON: parameters of the protocol are scalars."""
    parsed = json.loads(value)
    if not isinstance(parsed, kind):
        raise ValueError
    return parsed


def _set(generation: inference_pb2.GenerateRequest, name: str, value: Any) -> None:
    field = f"parameters.{name}"
    try:
        if name in _INTEGERS:
            number = float(value) if isinstance(value, str) else value
            if isinstance(number, bool) or number != int(number):
                raise ValueError
            setattr(generation, name, int(number))
        elif name in _NUMBERS:
            setattr(generation, name, float(value))
        elif name == "ignore_eos" and isinstance(value, bool):
            generation.ignore_eos = value
        elif name == "stop" and isinstance(value, str):
            generation.stop.extend(_texts(value))
        elif name == "stop_token_ids" and isinstance(value, str):
            generation.stop_token_ids.extend(_of(list, value))
        elif name == "logit_bias" and isinstance(value, str):
            for token, bias in _of(dict, value).items():
                generation.logit_bias[int(token)] = bias
        elif name not in _IGNORED and not name.startswith("triton_"):
            raise InvalidArgument(f"{field}: unknown parameter", field=field)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidArgument(f"{field}: {str(value)[:40]!r} is not a fitting value", field=field) from None
