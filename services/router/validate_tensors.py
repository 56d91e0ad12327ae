"""Checks of a stateless inference's tensors before anything is allocated. Pure; every error names the field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagemesh.errors import InvalidArgument, OutOfRange
from stagemesh.tensor import NUMPY_DTYPES
from stagemesh.v1 import inference_pb2, registry_pb2, tensor_pb2

MAX_DIMENSION = 2**31 - 1
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8, "U32": 4, "U64": 8}
_IDS = ("I64", "I32")
_ACCEPTS: dict[str, tuple[str, ...]] = {
    "input_ids": _IDS,
    "attention_mask": ("I64", "I32", "BOOL", "U8", "I8"),
    "token_type_ids": _IDS,
}
INPUTS = {
    "generate": ("input_ids", "attention_mask"),
    "embed": ("input_ids", "attention_mask", "token_type_ids"),
}
OUTPUTS = {"generate": ("logits",), "embed": ("sentence_embedding", "last_hidden_state")}
PER_TOKEN = frozenset({"logits", "last_hidden_state"})


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked inputs: I64 arrays [B, T] without the mask, which became `lengths` [B]; outputs by name."""

    inputs: dict[str, np.ndarray]
    lengths: list[int]
    outputs: list[str]

    @property
    def width(self) -> int:
        """T, padding included."""
        return int(self.inputs["input_ids"].shape[1])


def check_infer(
    request: inference_pb2.InferRequest, spec: registry_pb2.ModelSpec, *, max_output_bytes: int
) -> Batch:
    """Turn a request into a batch; raises `InvalidArgument` or `OutOfRange` naming the field."""
    known = INPUTS.get(spec.task, ())
    arrays: dict[str, np.ndarray] = {}
    where: dict[str, str] = {}
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if tensor.name not in known:
            raise InvalidArgument(
                f"{field}.name: no input {tensor.name[:80]!r}; model {spec.name!r} takes {', '.join(known)}",
                field=f"{field}.name",
            )
        if tensor.name in arrays:
            raise InvalidArgument(f"{field}.name: {tensor.name!r} is given twice", field=f"{field}.name")
        shape, data = check_tensor(tensor, field, _ACCEPTS[tensor.name], rank=2)
        array = np.frombuffer(data, NUMPY_DTYPES[tensor.dtype]).reshape(shape)
        arrays[tensor.name] = array.astype(np.int64, copy=False)
        where[tensor.name] = field
    if "input_ids" not in arrays:
        raise InvalidArgument("inputs: input_ids is missing", field="inputs")
    ids = arrays["input_ids"]
    for name, array in arrays.items():
        if array.shape != ids.shape:
            raise InvalidArgument(
                f"{where[name]}.shape: {name} is {list(array.shape)} but input_ids is {list(ids.shape)}",
                field=f"{where[name]}.shape",
            )
    mask = arrays.pop("attention_mask", None)
    lengths = (
        [ids.shape[1]] * ids.shape[0]
        if mask is None
        else mask_lengths(mask, f"{where['attention_mask']}.data")
    )
    _check_ids(ids, spec, f"{where['input_ids']}.data")
    if "token_type_ids" in arrays and bool((arrays["token_type_ids"] < 0).any()):
        field = f"{where['token_type_ids']}.data"
        raise InvalidArgument(f"{field}: a token type is negative", field=field)
    if spec.context_length and max(lengths) > spec.context_length:
        raise OutOfRange(
            f"{where['input_ids']}.shape: {max(lengths)} tokens exceed the context of {spec.context_length}",
            field=f"{where['input_ids']}.shape",
        )
    outputs = _outputs(request.outputs, spec)
    _check_output_size(outputs, ids.shape, spec, max_output_bytes)
    return Batch(arrays, lengths, outputs)


def check_tensor(
    tensor: tensor_pb2.Tensor, field: str, dtypes: Sequence[str], *, rank: int
) -> tuple[list[int], bytes]:
    """Check dtype, rank, every dimension, their product and the byte length; shape and payload of the tensor."""
    if tensor.dtype not in dtypes:
        raise InvalidArgument(
            f"{field}.dtype: {tensor.dtype[:20]!r} is not one of {', '.join(dtypes)}", field=f"{field}.dtype"
        )
    if tensor.encoding or tensor.HasField("shared"):
        raise InvalidArgument(f"{field}.encoding: must be raw bytes in `data`", field=f"{field}.encoding")
    shape = list(tensor.shape)
    if len(shape) != rank:
        raise InvalidArgument(
            f"{field}.shape: must have {rank} dimensions, not {len(shape)}", field=f"{field}.shape"
        )
    if any(size < 1 or size > MAX_DIMENSION for size in shape):
        raise InvalidArgument(
            f"{field}.shape: every dimension of {shape} must be between 1 and {MAX_DIMENSION}",
            field=f"{field}.shape",
        )
    expected = math.prod(shape) * _SIZES[tensor.dtype]
    if expected >= 2**63:
        raise InvalidArgument(f"{field}.shape: the product of {shape} overflows", field=f"{field}.shape")
    data = tensor.data  # each look at it is a copy
    if len(data) != expected:
        raise InvalidArgument(
            f"{field}.data: {tensor.dtype} of shape {shape} takes {expected} bytes, not {len(data)}",
            field=f"{field}.data",
        )
    return shape, data


def mask_lengths(mask: np.ndarray, field: str) -> list[int]:
    """Tokens per row of a mask [B, T] of ones, then zeros; `InvalidArgument` for any other mask."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidArgument(f"{field}: attention_mask must hold only 0 and 1", field=field)
    if bool((np.diff(mask.astype(np.int8), axis=1) > 0).any()):
        raise InvalidArgument(
            f"{field}: attention_mask must be padded on the right (ones, then zeros)", field=field
        )
    lengths = [int(length) for length in mask.sum(axis=1)]
    if 0 in lengths:
        raise InvalidArgument(f"{field}: row {lengths.index(0)} of attention_mask has no token", field=field)
    return lengths


def _check_ids(ids: np.ndarray, spec: registry_pb2.ModelSpec, field: str) -> None:
    # As unsigned numbers the negative ones are the largest: one pass tells both.
    if spec.vocab_size and int(ids.view(np.uint64).max()) < spec.vocab_size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (spec.vocab_size and high >= spec.vocab_size):
        raise InvalidArgument(
            f"{field}: token id {low if low < 0 else high} is outside the vocabulary of {spec.vocab_size}",
            field=field,
        )


def _outputs(wanted: Sequence[str], spec: registry_pb2.ModelSpec) -> list[str]:
    known = OUTPUTS[spec.task]
    for index, name in enumerate(wanted):
        field = f"outputs[{index}]"
        if name not in known:
            raise InvalidArgument(
                f"{field}: no output {name[:80]!r}; model {spec.name!r} has {', '.join(known)}", field=field
            )
        if name in wanted[:index]:
            raise InvalidArgument(f"{field}: {name!r} is asked for twice", field=field)
    return list(wanted) or [known[0]]


def output_bytes(outputs: Sequence[str], rows: int, tokens: int, spec: registry_pb2.ModelSpec) -> int:
    """What the outputs of so many samples take, with so many tokens in all."""
    total = 0
    for name in outputs:
        columns = spec.vocab_size if name == "logits" else spec.hidden_size
        total += 4 * columns * (tokens if name in PER_TOKEN else rows)
    return total


def _check_output_size(
    outputs: Sequence[str], shape: tuple[int, ...], spec: registry_pb2.ModelSpec, limit: int
) -> None:
    rows, width = shape
    total = output_bytes(outputs, rows, rows * width, spec)
    if total > limit:
        raise OutOfRange(
            f"inputs: the answer would take {total} bytes, more than the {limit} of one message; send fewer rows",
            field="inputs",
        )
